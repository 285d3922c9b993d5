"""Float Keras model -> the same model with quantization in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from kquant import targets
from kquant.calibration import observers
from kquant.core.float_formats import FLOAT_FORMATS
from kquant.core.messages import warn
from kquant.correct.steps import check_steps, function_of
from kquant.graph.copies import copy_of
from kquant.graph.given_model import float_layers
from kquant.graph.graph import Graph, trace
from kquant.graph.keras_private import mask_of
from kquant.graph.steps_kept import UNKNOWN, StepsKept, told
from kquant.graph.tensorflow_private import operations_as_kernels
from kquant.masking.method import methods
from kquant.ops.expansion import expanded, widened
from kquant.prepare.attach import attach
from kquant.prepare.folding import Folded, fold_graph
from kquant.prepare.notices import warn_equalized, warn_of_plan
from kquant.prepare.preprocessing import inputs_take
from kquant.prepare.unblock import move_into_relus
from kquant.recipe import recipe as recipes
from kquant.recipe.keys_apart import takes_recipe
from kquant.views import quantized_model
from kquant.views.encoding_sites import encoding_sites
from kquant.views.float_model import read_given
from kquant.views.loops import opened
from kquant.views.plan import Plan, make_plan
from kquant.views.recipe_steps import remember_steps, step_done


@takes_recipe
def quantize(
    model: keras.Model,
    recipe: str | Path | dict[str, Any] | recipes.Recipe = "int8",
    *,
    target: str = targets.DEFAULT,
    input_shape: Any = None,
    encodings: str | Path | dict[str, Any] | None = None,
) -> keras.Model:
    """Put quantize-dequantize nodes and wrapped kernels into a model.

    Copies: `model` stays as it was.

    Masks and codebooks of a model that `kquant.prune` or `kquant.cluster` returned go on in the new one. With a
    `[pruning]` or `[clustering]` section in the recipe, a model without masks or codebooks gets them here, as
    `kquant.prune` and `kquant.cluster` of the result would.

    Args:
        model: a built Keras 3 model: Functional, Sequential, nested or subclassed.
        recipe: name, TOML file, plain data or `Recipe`.
        target: where the file is to run: "litert", "tflm", "gpu" (`kquant.targets.names()`), or one of your own
            (`KQUANT_TARGETS`). For one that takes one scale for all weights of a layer, channels are equalized first,
            unless a step of the recipe does.
        input_shape: static shape(s), batch axis included, for models with open dimensions.
        encodings: AIMET's encodings as a JSON file or its data: ranges of all tensors, instead of calibration.

    Returns:
        A Functional model with weights of its own. Calibrate it, train it if you like, export it. The steps of the
        recipe were not run: they need data. `kquant.run_steps` runs them where there are more than "calibrate".

    Raises:
        ValueError: naming every layer that could not be integer on the target, with the remedy; a model that is not
            built, not Keras 3, not float32, or holds NaN; an unknown recipe, step or target; encodings that do not fit.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="relu")])
        >>> [type(layer).__name__ for layer in kquant.quantize(model).layers]
        ['InputLayer', 'FakeQuant', 'Compressed', 'ReLU', 'FakeQuant']
    """
    chosen, goal = recipes.load(recipe), targets.load(target)
    check_recipe(chosen, goal)
    with operations_as_kernels():
        qmodel = _quantized(model, chosen, goal, input_shape)
        if encodings is not None:
            from kquant.calibration.aimet_encodings import put_encodings  # few ask for it, and all would wait

            calls = opened(trace(qmodel, quantized_model.is_known))
            sites = encoding_sites(calls, peeks=True)
            put_encodings(sites, encodings)
            step_done(qmodel, "calibrate")
    return qmodel


def _quantized(model: keras.Model, chosen: recipes.Recipe, goal: targets.Target, input_shape: Any) -> keras.Model:
    layers = float_layers(model, "quantize")
    graph, carried = read_given(model, layers, input_shape)
    flat = expanded(graph, goal)
    plan, folded = planned(flat, chosen, goal)
    if plan.problems:
        raise ValueError(plan.refusal)
    warn_of_plan(plan)
    takes = inputs_take(graph)
    qmodel = attach(plan, folded, carried, takes)
    qmodel.kept = _masks_told(graph, qmodel)
    if _equalizes(chosen, goal):
        function_of("equalize")(qmodel, verbose=False)
        warn_equalized(goal)
    for method in methods(chosen):
        if not method.acts(qmodel):
            method.put(qmodel, chosen)
            # made anew, since an optimizer finds its state by the order of the variables, as a loaded model has it
            qmodel = copy_of(qmodel)
    remember_steps(qmodel, [step.name for step in chosen.steps])
    return qmodel


def _masks_told(graph: Graph, qmodel: keras.Model) -> tuple[StepsKept | None, ...]:
    """The masks that the model is to put on its outputs; those that nobody will put there are named."""
    outputs = zip(qmodel.output_names, keras.tree.flatten(qmodel.output), graph.kept, strict=True)
    lost = [name for name, y, kept in outputs if kept is UNKNOWN and mask_of(y) is None]
    if lost:
        warn(
            f"output {', '.join(map(repr, lost))}: the mask is of a tensor that the model computes, so `fit` and "
            "`evaluate` of the quantized model count the steps that it marks, which those of the float model leave "
            "out. Put the Masking layer first in the model, or give `sample_weight`, 0 at those steps."
        )
    return told(graph.kept, qmodel.output)


def _equalizes(recipe: recipes.Recipe, target: targets.Target) -> bool:
    """A default of targets with one scale for a kernel; a step of the recipe comes with its own settings, and data."""
    return target.per_tensor and recipe.mode == "static" and all(step.name != "equalize" for step in recipe.steps)


def planned(graph: Graph, recipe: recipes.Recipe, target: targets.Target) -> tuple[Plan, Folded]:
    """What becomes of the calls of a graph that was expanded, and what folding left beside them.

    Raises:
        ValueError: a rule of the recipe matches no layer.
    """
    live = recipe.training.batch_norm == "live"
    folded = fold_graph(graph, live=live) if recipe.fold else Folded(graph, {}, {}, {})
    graph = move_into_relus(folded.graph)
    plan = make_plan(opened(graph), recipe, target)
    if plan.widenable:
        plan = make_plan(opened(widened(graph, plan.widenable, target)), recipe, target)
    return plan, folded


def check_recipe(recipe: recipes.Recipe, target: targets.Target) -> None:
    """Refuse what no stage could carry out later.

    Args:
        recipe: that is wanted.
        target: that it is wanted for.

    Raises:
        ValueError: an unknown step, an option that it does not have, an unknown observer, one that is not for weights,
            a live batch norm without folding, learned ranges of floating-point activations, or floats where nothing
            computes them.
    """
    check_steps(recipe.steps)
    if recipe.mode != "static" and not target.floats:
        raise ValueError(
            f"recipe '{recipe.name}': its activations are floats (mode = \"{recipe.mode}\"), and {target.title} "
            "computes with integers only. Take a recipe that calibrates them ('int8', 'int4-weights', 'int16x8'), or "
            f"target '{targets.DEFAULT}'."
        )
    if recipe.training.batch_norm == "live" and not recipe.fold:
        raise ValueError(
            f"recipe '{recipe.name}': batch_norm = \"live\" needs fold = true: a live batch norm belongs to the layer "
            "before it."
        )
    if recipe.training.learns_tensors and recipe.activations.kind in FLOAT_FORMATS:
        raise ValueError(
            f"recipe '{recipe.name}': activations of kind '{recipe.activations.kind}' have no codes whose range could "
            'be learned; take kind = "uniform", or ranges = "moving".'
        )
    for settings in (recipe.activations.model_dump(), *(rule.activations for rule in recipe.rules)):
        if "observer" in settings:
            observers.find(settings["observer"])
    for settings in (recipe.weights.model_dump(), *(rule.weights for rule in recipe.rules)):
        if "observer" in settings:
            observers.check_for_weights(settings["observer"])

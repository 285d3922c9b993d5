"""Float Keras model -> the same model with quantization in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from kquant import targets
from kquant.calibration import observers
from kquant.calibration.aimet_encodings import set_encodings
from kquant.graph.defaults import own_defaults
from kquant.graph.given_model import check_keras, check_weights, warn_lost_losses, warn_lost_steps
from kquant.graph.graph import Graph, alone, trace
from kquant.graph.inputs import check_static, inputs_of
from kquant.layers.oscillations import warn_unfrozen
from kquant.masking.method import methods
from kquant.masking.stripping import release
from kquant.masking.wrapping import as_loaded
from kquant.ops import find
from kquant.ops.refused import remedy
from kquant.prepare.attach import attach
from kquant.prepare.expansion import expand_graph
from kquant.prepare.folding import Folded, fold_graph
from kquant.prepare.notices import warn_of_plan, warn_simulated
from kquant.prepare.preprocessing import inputs_take
from kquant.prepare.unblock import move_into_relus
from kquant.recipe import recipe as recipes
from kquant.views.plan import Plan, Problem, describe, make_plan
from kquant.views.quantized_model import is_quantized

REPLACE = "replace it by layers that have one, or leave it out of the exported model"


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
        target: where the file is to run: "litert", "tflm", "ethos-u" or one of your own (`KQUANT_TARGETS`).
        input_shape: static shape(s), batch axis included, for models with open dimensions.
        encodings: AIMET's encodings as a JSON file or its data: ranges of all tensors, instead of calibration.

    Returns:
        A Functional model with weights of its own. Calibrate it, train it if you like, export it.

    Raises:
        ValueError: naming every layer that could not be integer on the target, with the remedy; a model that is not
            built, not Keras 3, not float32, or holds NaN; an unknown recipe or target; encodings that do not fit.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="relu")])
        >>> [type(layer).__name__ for layer in kquant.quantize(model).layers]
        ['InputLayer', 'FakeQuant', 'Compressed', 'ReLU', 'FakeQuant']
    """
    chosen, goal = recipes.load(recipe), targets.load(target)
    check_recipe(chosen)
    check_model(model)
    warn_lost_losses(model)
    plain, carried = release(model)
    graph = read(plain, input_shape)
    with own_defaults(graph.layers()):
        plan, folded = planned(graph, chosen, goal)
        if plan.problems:
            raise ValueError(describe(plan.problems, goal))
        warn_of_plan(plan)
        qmodel = attach(plan, folded, carried, inputs_take(graph))
        warn_simulated(qmodel)
        warn_lost_steps(model, qmodel, "quantize")
        for method in methods(chosen):
            if not method.acts(qmodel):
                method.put(qmodel, chosen)
                qmodel = as_loaded(qmodel)
    warn_unfrozen(qmodel, "quantize")
    return qmodel if encodings is None else set_encodings(qmodel, encodings)


def planned(graph: Graph, recipe: recipes.Recipe, target: targets.Target) -> tuple[Plan, Folded]:
    """What becomes of the calls of a float model, and what folding left beside them.

    Raises:
        ValueError: see `expanded`; a rule of the recipe matches no layer.
    """
    flat = trace(expanded(graph, target), is_known)
    live = recipe.training.batch_norm == "live"
    folded = fold_graph(flat, live=live) if recipe.fold else Folded(flat, {}, {}, {})
    return make_plan(move_into_relus(folded.graph), recipe, target), folded


def read(model: keras.Model, input_shape: Any) -> Graph:
    """The calls of a float model, with static shapes.

    Raises:
        ValueError: open or empty shapes, an `input_shape` that does not fit, or a `call` that cannot be followed.
    """
    inputs = inputs_of(model, input_shape)
    check_static(model.name, inputs)
    try:
        graph = trace(model, lambda op: is_known(op) or remedy(op) is not None, input_shape)
    except ValueError as error:
        if input_shape is None:
            raise
        raise ValueError(f"{model.name}: with input_shape={input_shape}: {error}") from error
    check_dtypes(graph)
    return graph


def check_dtypes(graph: Graph) -> None:
    """Refuse inputs that are no numbers, and float64 (a model without weights may compute in it, too).

    Raises:
        ValueError: naming the input or the layer.
    """
    given = {id(t): t for t in keras.tree.flatten(graph.inputs)}
    for t in given.values():
        if not t.dtype.startswith(("float", "bfloat", "int", "uint", "bool")):
            raise ValueError(
                f"{graph.name}: input '{t.name}' is of type {t.dtype}, which no integer kernel reads. Keep what makes "
                "numbers of it in the application's preprocessing, and give the model those numbers."
            )
    for node in graph.nodes:
        read = {t.dtype for t in node.inputs if id(t) in given}
        if "float64" in ([node.op.compute_dtype] if isinstance(node.op, keras.layers.Layer) else read):
            raise ValueError(
                f"{node.name} ({type(node.op).__name__}): it computes in float64; kquant reads float32. Rebuild the "
                "model with dtype float32, its inputs and constants too."
            )


def expanded(graph: Graph, target: targets.Target) -> keras.Model:
    """`expand_graph`, or all that it refuses at once.

    Raises:
        ValueError: naming every layer without a rule, and every one that its rule refuses, with the remedy.
    """
    problems = unknown_layers(graph)
    try:
        if not problems:
            return expand_graph(graph)
    except ValueError as error:
        problems = _refusals(graph)
        if len(problems) < 2:
            raise error
        raise ValueError(describe(problems, target)) from error
    raise ValueError(describe([*problems, *_refusals(graph)], target))


def _refusals(graph: Graph) -> list[Problem]:
    """The calls that `expand_graph` refuses, each tried alone."""
    problems = []
    for node in graph.nodes:
        try:
            if is_known(node.op) and all(t.shape for t in node.inputs):  # without axes: what made it is refused
                expand_graph(alone(node))
        except ValueError as error:
            kind = type(node.op).__name__
            reason = str(error).removeprefix(f"{node.name} ({kind}): ").removeprefix(f"{node.name}: ").rstrip(".")
            problems.append(Problem(node.name, kind, reason))
    return problems


def unknown_layers(graph: Graph) -> list[Problem]:
    """Layers without a rule; one that was unfolded shows once, with the operations in it that have none."""
    unknown: dict[int, tuple[Any, set[str]]] = {}
    remedies: dict[str, str] = {}
    for node in graph.nodes:
        if not is_known(node.op):
            owner = None if isinstance(node.op, keras.layers.Layer) else node.owner
            kind = type(node.op).__name__
            unknown.setdefault(id(owner or node.op), (owner, set()))[1].add(kind)
            remedies[kind] = remedy(node.op) or ""
    problems = []
    for node in graph.nodes:
        owner = None if isinstance(node.op, keras.layers.Layer) else node.owner
        owner, kinds = unknown.pop(id(owner or node.op), (None, set()))
        said = "; ".join(f"{k}: {remedies[k]}" for k in sorted(kinds) if remedies[k])
        if owner is not None:
            reason = f"it unfolds into {', '.join(sorted(kinds))}, which kquant has no rule for; {said or REPLACE}"
            problems.append(Problem(owner.name, type(owner).__name__, reason))
        elif kinds:
            reason = remedy(node.op) or f"kquant has no rule for it; {REPLACE}"
            problems.append(Problem(node.name, type(node.op).__name__, reason))
    return problems


def check_recipe(recipe: recipes.Recipe) -> None:
    """Refuse what no stage could carry out later.

    Raises:
        ValueError: an unknown observer, one that is not for weights, or a live batch norm without folding.
    """
    if recipe.training.batch_norm == "live" and not recipe.fold:
        raise ValueError(
            f"recipe '{recipe.name}': batch_norm = \"live\" needs fold = true: a live batch norm belongs to the layer "
            "before it."
        )
    for settings in (recipe.activations.model_dump(), *(rule.activations for rule in recipe.rules)):
        if "observer" in settings:
            observers.find(settings["observer"])
    for settings in (recipe.weights.model_dump(), *(rule.weights for rule in recipe.rules)):
        if "observer" in settings:
            observers.check_for_weights(settings["observer"])


def is_known(op: Any) -> bool:
    """Layers and operations that stay whole when a float model is read."""
    return find(op) is not None


def check_model(model: Any) -> None:
    """Refuse what kquant cannot take, with the way out.

    Raises:
        ValueError: no Keras 3 model, quantized already (by Keras too), weights that are not float32 or not finite.
    """
    check_keras(model, "quantize")
    if is_quantized(model):
        raise ValueError(f"{model.name}: this model is quantized already; pass the float model.")
    check_weights(model)

"""A float model, trained or not -> what it will take on a target, without data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from kquant import targets
from kquant.core.checks import whole_budget
from kquant.exact.narrow import totals
from kquant.exporting.asked_storing import Compression, storing_of
from kquant.graph.given_model import check_keras
from kquant.prepare.forecast import forecast
from kquant.prepare.quantization import quantize
from kquant.recipe import recipe as recipes
from kquant.recipe.keys_apart import takes_recipe
from kquant.recipe.recipe import Recipe
from kquant.runtime.arenas import arena_of, has_kernels
from kquant.runtime.running import ARENA, available
from kquant.sizing.estimates import Estimate
from kquant.sizing.layer_sizes import layer_of, layer_sizes, macs_by_layer, owners_of
from kquant.sizing.made_up import from_batch_norms, make_up
from kquant.targets import Target
from kquant.tflite.arena_forecast import forecast_arena
from kquant.tflite.device_kernels import margin_of
from kquant.tflite.edges import IO
from kquant.tflite.file_content import Form, to_files
from kquant.tflite.lowering import lower
from kquant.tflite.memory_plan import memory_plan
from kquant.tflite.reader import read_model
from kquant.tflite.storage import refuse_undecoded
from kquant.views.quantized_model import read


@takes_recipe
def estimate(
    model: keras.Model,
    recipe: str | Path | dict[str, Any] | Recipe = "int8",
    *,
    target: str = targets.DEFAULT,
    input_shape: Any = None,
    io: IO = "model",
    compression: Compression = None,
    flash_bytes: int | str | None = None,
    arena_bytes: int | str | None = None,
) -> Estimate:
    """Tell what a model will take on a target, before it is trained: flash, arena, multiplications, operators.

    Reads: `model` stays as it was.

    The file is written in memory, with made-up ranges in place of those of data: the same operators, tensors and bytes
    as those of the trained model. Of a model with batch norms that saw data these tell the ranges, and what they prove
    that no output depends on is left out, as `kquant.export` does. Heads that a join gives out as one count with
    16 bits where `heads = "apart"` holds: `kquant.calibrate` gives those of like ranges 8. TensorFlow Lite Micro
    prepares the file, where the `micro` extra is installed.

    Args:
        model: a built float Keras 3 model, trained or not.
        recipe: see `kquant.quantize`.
        target: see `kquant.quantize`.
        input_shape: static shape(s), batch axis included, for models with open dimensions.
        io: type of the file's inputs and outputs, see `kquant.export`.
        compression: see `kquant.export`; "lut" counts what the weights of now take, so give a clustered model.
        flash_bytes: what there is of it; `ok` and `over` of the result compare.
        arena_bytes: likewise.

    Returns:
        The figures, layer by layer too. Layers that would not run, or that the recipe has simulated only, are in
        `refused`, and the figures are empty then.

    Raises:
        ValueError: not a float Keras 3 model, open shapes, an unknown recipe or target, a limit below 1.

    Example:
        >>> model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(16), keras.layers.Dense(4)], name="net")
        >>> found = kquant.estimate(model)
        >>> found.macs, found.operators, found.activation_bytes
        (576, {'FULLY_CONNECTED': 2}, 48)
    """
    check_keras(model, "estimate")
    chosen, goal = recipes.load(recipe), targets.load(target)
    budgets = {"flash_bytes": flash_bytes, "arena_bytes": arena_bytes}
    limits = {name: None if n is None else whole_budget("estimate", name, n) for name, n in budgets.items()}
    storing = storing_of(compression)
    refuse_undecoded(goal, storing.storages)
    try:
        qmodel = quantize(model, chosen, target=target, input_shape=input_shape)
        figures = _written(model, qmodel, Form(io, storing=storing))
    except ValueError as error:  # of weights and activations that are simulated only the writer tells
        figures = _refused(model, chosen, goal, input_shape, error)
    return replace(figures, flash_limit=limits["flash_bytes"], arena_limit=limits["arena_bytes"])


def _written(model: keras.Model, qmodel: keras.Model, form: Form) -> Estimate:
    """The figures of the file that a quantized model becomes."""
    make_up(qmodel, read(qmodel))
    # ranges that are made up prove nothing of what a channel can hold; weights do, and so do batch norms that saw data
    lowered = lower(qmodel, ranged=from_batch_norms(model, qmodel))
    content = to_files(lowered, form).content
    file = read_model(content)
    plan, owners = memory_plan(file), owners_of(lowered.graph)
    rows = layer_sizes(owners, macs_by_layer(lowered.graph, owners), file)
    unmeasured = ARENA not in available() and has_kernels(file)
    arena = forecast_arena(file, plan.size_bytes) if unmeasured else arena_of(content, file, lowered.target)
    return Estimate(
        model=model.name,
        target=lowered.target.name,
        recipe=lowered.recipe,
        flash_bytes=len(content),
        stored_bytes=file.weight_bytes,
        arena_bytes=arena,
        arena_is_forecast=unmeasured,
        activation_bytes=plan.size_bytes,
        peak_layer="" if plan.peak < 0 else layer_of(file, file.operators[plan.peak], owners),
        macs=sum(row.macs for row in rows),
        operators=file.operator_counts,
        layers=rows,
        reserve_bytes=None if arena is None else arena + margin_of(arena, file),
        channels_left_out=totals(lowered.narrowed.removed).get("channels", 0),
    )


def _refused(model: keras.Model, recipe: Recipe, target: Target, input_shape: Any, error: ValueError) -> Estimate:
    """The layers for which a model cannot be quantized, each as `kquant.check` tells of it.

    Raises:
        ValueError: it is not for its layers.
    """
    report = forecast(model, target.name, recipe=recipe, input_shape=input_shape)
    if report.ok:
        raise error
    bad = tuple(row for row in report.layers if row.status in ("no kernel", "refused"))
    return Estimate(model.name, target.name, recipe.name, None, 0, None, False, 0, "", 0, {}, (), bad)

"""Float Keras model -> the same model with quantization in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant import targets
from kquant.attach import attach
from kquant.core import recipe as recipes
from kquant.core.graph import trace
from kquant.core.nodes import Compressed, FakeQuant
from kquant.expand import expand
from kquant.fold import fold_expanded
from kquant.ops import find
from kquant.plan import describe, make_plan


def quantize(
    model: keras.Model,
    recipe: str | Path | dict[str, Any] | recipes.Recipe = "int8",
    *,
    target: str = "litert",
    input_shape: Any = None,
) -> keras.Model:
    """Put quantize-dequantize nodes and wrapped kernels into a model.

    Args:
        model: a built Keras 3 model: Functional, Sequential, nested or subclassed. It is not changed.
        recipe: name, TOML file, plain data or `Recipe`.
        target: where the file is to run: "litert", "tflm" or "ethos-u".
        input_shape: static shape(s), batch axis included, for models with open dimensions.

    Returns:
        A Functional model with weights of its own. Calibrate it, train it if you like, export it.

    Raises:
        ValueError: naming every layer that could not be integer on the target, with the remedy; a model that is not
            built, not Keras 3, not float32, or holds NaN; an unknown recipe or target.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="relu")])
        >>> [type(layer).__name__ for layer in kquant.quantize(model).layers]
        ['InputLayer', 'FakeQuant', 'Compressed', 'ReLU', 'FakeQuant']
    """
    chosen, goal = recipes.load(recipe), targets.load(target)
    check_model(model)
    flat = expand(model, input_shape)
    check_shapes(flat)
    flat = fold_expanded(flat) if chosen.fold else flat
    plan = make_plan(trace(flat, lambda op: find(op) is not None), chosen, goal)
    if plan.problems:
        raise ValueError(describe(plan.problems, goal))
    return attach(plan)


def check_model(model: Any) -> None:
    """Refuse what kquant cannot take, with the way out."""
    if not isinstance(model, keras.Model):
        if type(model).__module__.startswith(("tf_keras", "keras.src.engine", "tensorflow.python.keras")):
            raise ValueError(
                f"{getattr(model, 'name', 'model')}: this is a Keras 2 model ({type(model).__module__}). Save it with "
                "tf_keras as `model.save('m.keras')` or its weights, rebuild it in Keras 3 and load them; "
                "docs/migrate.md shows how."
            )
        raise ValueError(f"quantize: expected a keras.Model. Received: {type(model).__module__}.{type(model).__name__}.")
    if any(isinstance(layer, FakeQuant | Compressed) for layer in model._flatten_layers()):
        raise ValueError(f"{model.name}: this model is quantized already; pass the float model.")
    for variable in model.variables:
        if "float" in variable.dtype and variable.dtype != "float32":
            raise ValueError(
                f"{model.name}: variable '{variable.path}' is {variable.dtype}; kquant reads float32 weights. Rebuild the "
                "model with dtype float32 (or mixed_float16, which keeps float32 weights) and copy the weights."
            )
        if "float" in variable.dtype and not np.all(np.isfinite(keras.ops.convert_to_numpy(variable))):
            raise ValueError(f"{model.name}: variable '{variable.path}' holds NaN or Inf; restore a good checkpoint.")


def check_shapes(model: keras.Model) -> None:
    """Refuse open dimensions: the file's shapes are static."""
    for t in model.inputs:
        if any(n is None for n in t.shape[1:]):
            raise ValueError(
                f"{model.name}: input '{t.name}' has the open shape {t.shape}; a microcontroller needs a static one. Say "
                "which, with the batch axis: kquant.quantize(model, input_shape=(None, 96, 96, 3))."
            )

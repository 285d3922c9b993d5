"""What a Keras model takes: symbolic inputs with names, shapes and dtypes, whatever kind of model it is."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import keras
from keras import KerasTensor as Tensor
from keras import tree

from kquant.graph.keras_private import functional_of


def inputs_of(model: keras.Model, input_shape: Any = None) -> Any:
    """New symbolic inputs in the model's structure: a tensor, a list or a dict.

    Args:
        model: a built Keras 3 model.
        input_shape: shapes with batch axis (one, or a list for several inputs) that replace the model's own.

    Returns:
        Tensors of any batch size. Those of a subclassed model are named like the argument of its `call`, or the keys of
        the dict that it takes.

    Raises:
        ValueError: the model is not built, its inputs cannot be told, or `input_shape` does not fit.

    Example:
        >>> model = keras.Sequential([keras.Input((None, 3)), keras.layers.Conv1D(2, 1)])
        >>> inputs_of(model, (None, 4, 3)).shape
        (None, 4, 3)
    """
    if not model.built:
        raise ValueError(
            f"{model.name}: the model is not built, so its shapes are unknown. Call it once on data, "
            "or `model.build(input_shape)`, before quantizing."
        )
    if isinstance(model, keras.Sequential):
        model = functional_of(model)
    struct = model.input if isinstance(model, keras.Function) else _of_subclass(model, input_shape)
    if isinstance(struct, list | tuple) and len(struct) == 1:
        struct = struct[0]  # as Keras loads old files; a bare tensor is what everybody passes
    if input_shape is not None:
        struct = _reshaped(struct, input_shape, model.name)
    return like(struct)


def like(struct: Any) -> Any:
    """New symbolic inputs like these, of any batch size."""
    if isinstance(struct, dict) and all(isinstance(t, Tensor) for t in struct.values()):
        # the caller knows an input by its key, whatever its tensor is called
        return {k: Tensor((None, *t.shape[1:]), t.dtype, name=k) for k, t in struct.items()}
    return tree.map_structure(lambda t: Tensor((None, *t.shape[1:]), t.dtype, name=t.name), struct)


def check_static(name: str, inputs: Any) -> None:
    """Refuse open and empty dimensions: the file's shapes are static.

    Args:
        name: of the model.
        inputs: what `inputs_of` returned.

    Raises:
        ValueError: naming the input, and how to give it a shape.
    """
    for t in tree.flatten(inputs):
        if any(n is None for n in t.shape[1:]):
            like = tuple(None if i == 0 else n or 96 for i, n in enumerate(t.shape))
            raise ValueError(
                f"{name}: input '{t.name}' has the open shape {t.shape}; a TFLite file has static ones. Say "
                f"which, with the batch axis: kquant.quantize(model, input_shape={like})."
            )
        if any(n == 0 for n in t.shape[1:]):
            raise ValueError(
                f"{name}: input '{t.name}' of shape {t.shape} holds no values; every axis needs 1 or more."
            )


def _reshaped(struct: Any, input_shape: Any, name: str) -> Any:
    flat = tree.flatten(struct)
    if isinstance(input_shape, dict):
        # None for a name that is missing; counted below.
        input_shape = [input_shape.get(t.name) for t in flat]
    if isinstance(input_shape, str) or not isinstance(input_shape, Iterable):
        raise ValueError(
            f"{name}: input_shape must be a shape with batch axis, like {flat[0].shape}, or a list or dict of shapes. "
            f"Received: {input_shape!r}."
        )
    # A shape, or a list of them: what holds numbers only is one shape.
    shapes: list[Any] = [input_shape] if all(isinstance(n, int | None) for n in input_shape) else list(input_shape)
    if len(shapes) != len(flat) or any(shape is None for shape in shapes):
        raise ValueError(
            f"{name}: input_shape must give {len(flat)} shapes, one for each of the inputs "
            f"{', '.join(t.name for t in flat)}. Received: {input_shape}."
        )
    for t, shape in zip(flat, shapes, strict=True):
        if len(shape) != len(t.shape):
            raise ValueError(
                f"{name}: input_shape for '{t.name}' must have rank {len(t.shape)}, batch axis included, like "
                f"{t.shape}. Received: {tuple(shape)}."
            )
        if any(n is not None and (not isinstance(n, int) or n < 0) for n in shape[1:]):
            raise ValueError(f"{name}: input_shape for '{t.name}' must hold whole numbers. Received: {tuple(shape)}.")
    new = [Tensor((None, *shape[1:]), t.dtype, name=t.name) for t, shape in zip(flat, shapes, strict=True)]
    return tree.pack_sequence_as(struct, new)


def _of_subclass(model: keras.Model, input_shape: Any) -> Any:
    """Inputs of a subclassed model from the shapes it was built with, and the argument names of its `call`."""
    shapes = _build_shapes(model)
    first, *others = _arguments(model)
    if not shapes and not others:  # Keras could not build it on symbolic tensors, but has run it on data
        if input_shape is None:
            raise ValueError(
                f"{model.name} ({type(model).__name__}): Keras knows no input shape of it, most likely because its "
                "`call` cannot be followed on symbolic tensors (`float(x)`, an `if` on values, tf.py_function, numpy). "
                "Write it with Keras layers and `keras.ops`; to see what stands in the way, say which shape it takes, "
                f"with the batch axis: kquant.quantize(model, input_shape=(None, ...)). Its argument: {first}."
            )
        # By the shape that the user gave: whether `call` can be followed on it is seen next, with a message of its own.
        return _named(input_shape, first, model.input_dtype)
    if len(shapes) != 1 or others:
        raise ValueError(
            f"{model.name} ({type(model).__name__}): its `call` must take one argument (a tensor, list or dict) "
            f"besides `training` and `mask`, and the model must have been called on data once. Received: "
            f"call({', '.join([first, *others])}), built with {', '.join(sorted(shapes)) or 'no shapes'}. Take a dict "
            "of tensors instead of several arguments."
        )
    return _named(next(iter(shapes.values())), first, model.input_dtype)


def _build_shapes(model: keras.Model) -> dict[str, Any]:
    """The shapes that a model was built with, by argument of its `build`; a single one is its "input_shape"."""
    # Keras keeps the shapes of the first call: one as "input_shape", several as "shapes_dict"
    # (`Layer.get_build_config`).
    config = model.get_build_config() or {}
    return config.get("shapes_dict") or {name: config[name] for name in ("input_shape",) if name in config}


def _arguments(model: keras.Model) -> list[str]:
    """Names of the arguments of `call` that have no default."""
    parameters = inspect.signature(model.call).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in positional if p.default is p.empty and p.name not in ("training", "mask")]
    return required or [p.name for p in positional[:1]] or ["input"]


def _named(shape: Any, name: str, dtype: str) -> Any:
    """Tensors in the structure of shapes; a dict's keys are the names of its tensors."""
    if isinstance(shape, dict):
        return {key: _named(inner, str(key), dtype) for key, inner in shape.items()}
    if all(isinstance(n, int | None) for n in shape):
        return Tensor((None, *shape[1:]), dtype, name=name)
    return [_named(inner, f"{name}_{i}", dtype) for i, inner in enumerate(shape)]

"""Weights of an old model -> the variables of the Keras 3 model, by layer and by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import keras
import numpy as np

from kquant.core.messages import first_of
from kquant.graph.graph import legal_name
from kquant.graph.keras_private import own_states, own_weights
from kquant.migrate.old_model import Weights
from kquant.migrate.tables import layers
from kquant.migrate.tfmot_wrappers import last


def assign(model: keras.Model, weights: Mapping[str, Weights], where: str) -> None:
    """Give every variable of a model its old value.

    Args:
        model: of the same layers, by the same names.
        weights: name of a layer -> (name, value) pairs.
        where: the old file, for errors.

    Raises:
        ValueError: a weight without a place, or a variable without a value, naming layer and weight.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False, name="head")])
        >>> assign(model, {"head": (("head/kernel", np.float32([[3.0], [4.0]])),)}, "old.h5")
        >>> model.get_weights()[0].tolist()
        [[3.0], [4.0]]
    """
    named = {legal_name(name): held for name, held in weights.items()}
    lost = [name for name, held in named.items() if held and not any(layer.name == name for layer in model.layers)]
    if lost:
        raise ValueError(f"{where}: weights of layers that the model does not have: {first_of(lost)}.")
    for layer in model.layers:
        _assign(layer, named.get(layer.name, ()), f"{where}: layer '{layer.name}' ({type(layer).__name__})")
        # Normalization computes with what it made of its statistics
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def assign_by_attributes(model: keras.Model, weights: Weights, where: str) -> None:
    """Give the variables of a subclassed model the values that lay behind the same attributes.

    Args:
        model: called once, so that its variables are there.
        weights: path of attributes, "blocks/0/kernel" for `model.blocks[0].kernel` -> value.
        where: the old file, for errors.

    Raises:
        ValueError: a variable without a value, or a value without a variable, naming it.
    """
    left = dict(weights)
    for path, layer in _attributes(model, "", set()):
        for variable in (*own_weights(layer), *own_states(layer)):
            name = _renames(layer, back=True).get(variable.name, variable.name)
            place = f"{path}/{name}".lstrip("/")
            value = left.pop(place, None)
            if value is None or value.shape != tuple(variable.shape):
                had = "nothing" if value is None else f"an array {value.shape}"
                raise ValueError(
                    f"{where}: for '{place}' {tuple(variable.shape)} the file has {had}. It has: "
                    f"{first_of(sorted(dict(weights)), 20)}. Attributes must have the names of the old class."
                )
            variable.assign(value)
    if left:
        raise ValueError(f"{where}: the model given has no {first_of(sorted(left))}, whose values the file has.")


def _attributes(owner: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Layers by the attributes that lead to them, lists and dicts on the way included."""
    # attributes may lead back to their owner
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, keras.layers.Layer):
        if path:
            yield path, owner
        held = {k: v for k, v in vars(owner).items() if k not in _of_keras() and not k.startswith("_self_")}
    else:
        held = dict(owner.items()) if isinstance(owner, dict) else dict(enumerate(owner))
    for name, value in held.items():
        if isinstance(value, keras.layers.Layer) or (isinstance(value, list | tuple | dict) and value):
            yield from _attributes(value, f"{path}/{name}".lstrip("/"), seen)


@cache
def _of_keras() -> frozenset[str]:
    """Attributes that every model has."""
    return frozenset(vars(keras.Model()))


def _assign(layer: Any, held: Weights, where: str) -> None:
    left = [(path, value) for path, value in held if last(path) not in layers().left["weights"]]
    wanted = [v for v in layer.weights if v.name not in layers().left["weights"]]
    if len(left) != len(wanted):
        raise ValueError(
            f"{where}: the file has {len(left)} weights ({_shapes(left)}), the layer of Keras 3 has {len(wanted)} "
            f"({', '.join(f'{v.name} {tuple(v.shape)}' for v in wanted)}). Give a layer that has the file's in its "
            "place: replacing={name: layer}."
        )
    renames = _renames(layer)
    for variable in wanted:
        # by name among those of one shape: Keras 3 may list them in another order, and two may be shaped alike
        fitting = [i for i, (_, value) in enumerate(left) if value.shape == tuple(variable.shape)]
        likeness = {i: _likeness(renames, left[i][0], variable.path) for i in fitting}
        best = max(fitting, key=likeness.__getitem__, default=-1)
        # a shape without even the last part of the name proves nothing
        if best < 0 or likeness[best][0] == 0:
            raise ValueError(
                f"{where}: nothing in the file for '{variable.name}' {tuple(variable.shape)}. It has: {_shapes(left)}."
            )
        variable.assign(left.pop(best)[1])


def _shapes(held: Any) -> str:
    return ", ".join(f"{path} {value.shape}" for path, value in held) or "none"


def _renames(layer: Any, *, back: bool = False) -> dict[str, str]:
    table = layers().weights
    kinds = {type(inner).__name__ for inner in (layer, getattr(layer, "layer", layer), *getattr(layer, "layers", ()))}
    renames = {old: new for kind in kinds for old, new in table.get(kind, {}).items()}
    return {new: old for old, new in renames.items()} if back else renames


def _likeness(renames: Mapping[str, str], old: str, new: str) -> tuple[int, int, int]:
    """How much two names of a weight have in common: from the end exactly, then without numbers, then anywhere."""
    a, b = old.split("/"), new.split("/")
    a[-1] = renames.get(a[-1], a[-1])
    bare = [[re.sub(r"_\d+$", "", part) for part in parts] for parts in (a, b)]
    # 0 where the last parts differ: numbers in front of it are Keras' own count of layers, and say little
    return _tail(a, b) and _tail(*bare), _tail(a, b), len(set(a) & set(b))


def _tail(a: list[str], b: list[str]) -> int:
    """Parts that are the same, from the end.

    Example:
        >>> _tail(["x", "cell", "kernel"], ["y", "cell", "kernel"])
        2
    """
    count = 0
    for one, other in zip(reversed(a), reversed(b), strict=False):
        if one != other:
            break
        count += 1
    return count


def distances(model: keras.Model, samples: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> list[float]:
    """How far what a model makes of samples is from what was made of them before.

    Args:
        model: any.
        samples: an array for each input.
        outputs: an array for each output.

    Returns:
        `max |y - y'|` of each output; infinite where it has another shape.
    """
    made = keras.tree.flatten(model(list(samples) if len(samples) > 1 else samples[0], training=False))
    arrays = [np.asarray(y) for y in made]
    if [a.shape for a in arrays] != [b.shape for b in outputs]:
        return [float("inf")]
    return [float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(arrays, outputs, strict=True)]

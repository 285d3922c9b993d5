"""Layers with weights of their own, and which layers stay whole, where a float model becomes another float model."""

from __future__ import annotations

from typing import Any

import keras

from kquant.core.origin import mark, origins
from kquant.graph.creation import without_random
from kquant.graph.keras_private import LISTS, deep_graphs, every_layer, own_states, own_weights, set_trainable_alone


def stays_whole(op: Any) -> bool:
    """Keras' own layers, and those with variables of their own or none at all: models and blocks are opened."""
    if isinstance(op, keras.Model):
        return False
    if not isinstance(op, keras.layers.Layer):
        return True
    builtin = type(op).__module__.startswith(("keras.", "kquant."))
    own_variables = bool(own_weights(op) or own_states(op))
    return builtin or own_variables or (not op.weights and is_described(op))


def is_described(op: Any) -> bool:
    """True for a layer that its config makes again, no model: it may stay whole in a float model."""
    if isinstance(op, keras.Model):
        return False
    try:
        # By a trial: nothing in Keras tells whether a config says all that a layer is made of.
        return [v.shape for v in own(op).variables] == [v.shape for v in op.variables]
    except ValueError:
        return False


def own(op: Any, **changes: Any) -> Any:
    """A layer of the same config and state with variables of its own; an operation, made again where that goes.

    Args:
        op: layer or `keras.Operation`.
        **changes: to its config (a name).

    Raises:
        ValueError: the layer's config does not say all that it is made of.
    """
    if not isinstance(op, keras.layers.Layer):
        try:
            return type(op).from_config(op.get_config())
        except (NotImplementedError, TypeError, ValueError):
            return op
    new = again(op, **changes)
    if op.built:
        if not new.built:
            # The values are assigned below: to draw them first costs more than all the rest.
            with without_random(new):
                new.build_from_config(op.get_build_config() or {})
        copy_state(op, new)
    mark(new, origins(op))
    return new


def again(op: Any, **changes: Any) -> Any:
    """A new layer or operation with the config of `op`, but for `changes`; not built.

    Raises:
        ValueError: the config does not describe it.
    """
    try:
        with keras.saving.CustomObjectScope(_classes(op)):
            new = type(op).from_config({**config_of(op), **changes})
    except Exception as error:  # whatever a layer without a proper config raises
        raise ValueError(
            f"{op.name} ({type(op).__name__}): it cannot be copied, because get_config and from_config do not describe "
            f"it. Return every argument of its __init__ from get_config. It said: {error}"
        ) from error
    _same_functions(op, new, tuple(changes))
    return new


def _classes(op: Any) -> dict[str, type]:
    """The user's own classes in a layer, which nobody need have registered."""
    inside = every_layer(op) if isinstance(op, keras.layers.Layer) else ()
    kinds = {type(layer) for layer in inside if not type(layer).__module__.startswith(("keras.", "kquant."))}
    return {keras.saving.get_registered_name(kind): kind for kind in kinds}


def config_of(op: Any) -> dict[str, Any]:
    """`op.get_config()`, with "linear" for a user's own activation functions, in `op` and the layers in it.

    A config holds the name of a function only: another one of Keras may have it, or nobody may find it.
    """
    inside = every_layer(op) if isinstance(op, keras.layers.Layer) else ()
    taken_out = [(layer, name, function) for layer in inside for name, function in own_functions(layer).items()]
    try:
        for layer, name, _ in taken_out:
            setattr(layer, name, keras.activations.linear)
        return op.get_config()
    finally:
        for layer, name, function in taken_out:
            setattr(layer, name, function)


def own_functions(layer: Any) -> dict[str, Any]:
    """A user's own functions among the activations of a layer, by attribute."""
    return {
        name: held
        for name, held in vars(layer).items()
        if name.endswith("activation")
        and callable(held)
        and not isinstance(held, keras.layers.Layer)
        and getattr(keras.activations, getattr(held, "__name__", ""), None) is not held
    }


def _same_functions(old: Any, new: Any, changed: tuple[str, ...]) -> None:
    if not isinstance(old, keras.layers.Layer):
        return
    for source, target in zip(every_layer(old), every_layer(new), strict=False):
        for name, function in own_functions(source).items():
            if type(source) is type(target) and not (source is old and name in changed):
                setattr(target, name, function)


def copy_state(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Values and `trainable` of a layer and all in it; names of variables repeat inside (Bidirectional), places do not.

    Raises:
        ValueError: the two hold different variables.
    """
    values, places = _state(old, "", set()), _state(new, "", set())
    # By place and not in order: attributes may have been set in another order since.
    if list(values) != list(places) and set(values) != set(places):
        differing = sorted(set(values) ^ set(places))
        raise ValueError(
            f"{old.name} ({type(old).__name__}): a copy made from its config has other variables ({differing[0]}); its "
            "get_config or build does not say all that it is made of. Complete them."
        )
    # Alone, as the setter goes down to all inside and would undo what stands there.
    set_trainable_alone(new, old.trainable)
    for place, item in places.items():
        if isinstance(item, keras.layers.Layer):
            set_trainable_alone(item, values[place].trainable)
        else:
            item.assign(values[place])
            item.trainable = values[place].trainable  # of a layer that trains, some may be frozen
    finalize(new)


def copy_of(model: keras.Model, config: dict[str, Any] | None = None) -> keras.Model:
    """A Functional model of its own with the same state.

    Args:
        model: of layers that Keras saves.
        config: of the new one, with the layers of `model` in their order; by default its own.
    """
    with deep_graphs():
        new = type(model).from_config(model.get_config() if config is None else config)
    # By place: a layer that took on masks or corrections late holds its variables in another order.
    for old, fresh in zip(model.layers, new.layers, strict=True):
        copy_state(old, fresh)
    return new


def settle(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """What belongs to a layer's weights beside their values: `trainable`, and what is made of them."""
    for source, target in zip(every_layer(old), every_layer(new), strict=True):
        target.trainable = source.trainable
    finalize(new)


def finalize(layer: keras.layers.Layer) -> None:
    """A Normalization layer computes with numbers made of its variables; make them, in all that `layer` holds."""
    for inner in every_layer(layer):
        if isinstance(inner, keras.layers.Normalization):
            inner.finalize_state()


def _state(layer: Any, where: str, seen: set[int]) -> dict[str, Any]:
    """Place -> variable or layer: a layer's own variables in order, then what its attributes hold."""
    if id(layer) in seen:
        return {}
    seen.add(id(layer))
    places: dict[str, Any] = {}
    if isinstance(layer, keras.layers.Layer):
        places.update({f"{where}weights[{i}]": v for i, v in enumerate(own_weights(layer))})
        places.update({f"{where}states[{i}]": v for i, v in enumerate(own_states(layer))})
    for name, held in vars(layer).items():
        # Keras' lists hold the same layers once more, in the order in which they were made.
        if name in LISTS:
            continue
        # A layer that is held twice has its first place only.
        for place, inner in _parts(held, f"{where}{name}"):
            if isinstance(inner, keras.random.SeedGenerator):
                places[place] = inner.state
            elif id(inner) not in seen:
                places[place] = inner
                places.update(_state(inner, f"{place}.", seen))
    return places


def _parts(held: Any, place: str) -> list[tuple[str, Any]]:
    """Layers and seeds in an attribute, also in lists and dicts."""
    if isinstance(held, keras.layers.Layer | keras.random.SeedGenerator):
        return [(place, held)]
    if isinstance(held, dict):
        return [part for key, item in held.items() for part in _parts(item, f"{place}[{key!r}]")]
    if isinstance(held, list | tuple):
        return [part for i, item in enumerate(held) for part in _parts(item, f"{place}[{i}]")]
    return []

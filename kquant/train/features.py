"""What layers give inside a model: names matched between a student and a teacher, outputs taken as the model runs."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from kquant.core.messages import did_you_mean
from kquant.graph.inputs import inputs_of
from kquant.graph.keras_private import inner_layers
from kquant.graph.wrapped_calls import wrapped_calls
from kquant.layers.nodes import Compressed, FakeQuant

Seen = dict[int, list[tf.Tensor]]
_SEEN: contextvars.ContextVar[Seen | None] = contextvars.ContextVar("seen", default=None)


@contextlib.contextmanager
def watching(layers: Sequence[keras.layers.Layer]) -> Iterator[Seen]:
    """Inside, collects what the layers return: id(layer) -> its first output at every call."""
    seen: Seen = {id(layer): [] for layer in layers}
    with wrapped_calls(layers, _collecting):  # replicas of one model run in threads
        token = _SEEN.set(seen)
        try:
            yield seen
        finally:
            _SEEN.reset(token)


def _collecting(layer: keras.layers.Layer, call: Any) -> Any:
    @functools.wraps(call)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        outputs = call(*args, **kwargs)
        # each replica's thread has a context of its own, and so collects its own
        seen = _SEEN.get()
        if seen is not None and id(layer) in seen:
            seen[id(layer)].append(keras.tree.flatten(outputs)[0])
        return outputs

    return wrapped


def traced(model: keras.Model) -> Any:
    """The model's outputs as TensorFlow sees them before there are data: their shapes and types.

    Args:
        model: a built Keras model; nothing of it changes.
    """

    def compute(x: Any) -> Any:
        # training=True moves batch norms and ranges, which ends with this scope
        with keras.StatelessScope():
            return model(x, training=True)

    specs = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), inputs_of(model))
    return tf.function(compute, autograph=False).get_concrete_function(specs).structured_outputs


def shapes(model: keras.Model, layers: Sequence[keras.layers.Layer]) -> dict[int, list[tuple[int | None, ...]]]:
    """id(layer) -> shape of its output at every call.

    Args:
        model: a built Keras model.
        layers: of that model, nested ones too.
    """
    with watching(layers) as seen:
        traced(model)
    return {key: [tuple(t.shape) for t in tensors] for key, tensors in seen.items()}


def adapters_of(
    student: keras.Model, teacher: keras.Model, pairs: Sequence[tuple[keras.layers.Layer, keras.layers.Layer]]
) -> list[keras.layers.Layer]:
    """For each pair a layer that brings the student's channels to the teacher's: a 1x1 convolution, where they differ.

    Args:
        student: a built Keras model.
        teacher: another.
        pairs: what `pairs_of` returned.

    Raises:
        ValueError: layers that are called at different numbers of places, or whose other axes differ.
    """
    if not pairs:
        return []
    ours, theirs = shapes(student, [a for a, _ in pairs]), shapes(teacher, [b for _, b in pairs])
    adapters = []
    for a, b in pairs:
        given, wanted = ours[id(a)], theirs[id(b)]
        if not given or [s[1:-1] for s in given] != [s[1:-1] for s in wanted]:
            raise ValueError(
                f"distill: features: the student's '{a.name}' gives {given}, the teacher's '{b.name}' {wanted}; all "
                "axes but the last must be alike. Name layers of the same size."
            )
        if given[0][-1] == wanted[0][-1]:
            adapters.append(keras.layers.Identity(name=f"{a.name}_as_is"))
            continue
        # on the last axis a Dense is a 1x1 convolution, of tensors of any rank
        adapter = keras.layers.Dense(wanted[0][-1], name=f"{a.name}_adapter", dtype="float32")
        adapter.build(given[0])
        adapters.append(adapter)
    return adapters


def pairs_of(
    student: keras.Model, teacher: keras.Model, features: Sequence[str] | Mapping[str, str]
) -> list[tuple[keras.layers.Layer, keras.layers.Layer]]:
    """The layers whose outputs are to match.

    A float layer of the teacher is met by the student's quantized place of the same name: `relu` by `relu_quant`, and
    `Conv2D(name="conv", activation="relu")` by `conv_relu_quant`.

    Args:
        student: a built Keras model.
        teacher: another.
        features: names that both have, or student's name -> teacher's name.

    Raises:
        ValueError: a name that is not there, or one that stands for two different tensors.
    """
    ours, theirs = _by_name(student), _by_name(teacher)
    if isinstance(features, str):
        raise ValueError(f"distill: features must be a list of layer names. Received: '{features}'.")
    if isinstance(features, Mapping):
        return [(_named(ours, a, "student"), _named(theirs, b, "teacher")) for a, b in features.items()]
    return [(_place(ours, _named(theirs, name, "teacher")), theirs[name]) for name in features]


def _by_name(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Layers of the model and of models inside it; a wrapper comes before what it wraps, which has its name."""
    layers: dict[str, keras.layers.Layer] = {}
    for layer in inner_layers(model):
        layers.setdefault(layer.name, layer)
    return layers


def _named(layers: Mapping[str, keras.layers.Layer], name: str, whose: str) -> keras.layers.Layer:
    if name not in layers:
        raise ValueError(f"distill: features: the {whose} has no layer '{name}'.{did_you_mean(name, layers)}")
    return layers[name]


def _place(ours: Mapping[str, keras.layers.Layer], layer: keras.layers.Layer) -> keras.layers.Layer:
    """The student's layer whose output is what `layer` of the teacher gives."""
    name = layer.name
    activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
    # where the student's activation stands alone its layer gives the sums before it, which are another tensor
    opened = [] if activation == "linear" else [f"{name}_{activation}_quant", f"{name}_{activation}"]
    for candidate in (*opened, f"{name}_quant", name):
        place = ours.get(candidate)
        # one encoding of several tensors is called once for each: which of them is meant, nobody said
        if place is not None and not (isinstance(place, FakeQuant) and place.sites > 1):
            break
    else:
        raise ValueError(
            f"distill: features: the student has no layer '{name}': it may be folded into the one before. Name the "
            "layer behind it, or give pairs {student's name: teacher's name}."
        )
    # its output is what the teacher's batch norm gives, and not its convolution
    if isinstance(place, Compressed) and place.gain is not None and not isinstance(layer, Compressed):
        raise ValueError(
            f"distill: features: the student's '{name}' has a batch norm folded into it, the teacher's has not. Name "
            f"the layer behind the batch norm, or give the pair {{'{name}': name of the teacher's batch norm}}."
        )
    return place

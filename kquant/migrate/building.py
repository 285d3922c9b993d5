"""The configuration of a model of Keras 2 -> a Keras 3 model, layer by layer, call by call. Weights come later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from kquant.core.messages import first_of
from kquant.graph.graph import legal_name
from kquant.graph.keras_private import maker
from kquant.migrate.tables import Operation, layers, operations
from kquant.migrate.tfmot_wrappers import MODELS, entries, is_reference
from kquant.migrate.translation import activation_of, translated

FUNCTION, SLICE, CONSTANT = "TFOpLambda", "SlicingOpLambda", "_CONSTANT_VALUE"
TIME_MAJOR = "time_major"
Replacements = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Parts:
    """What a caller gives beside the file.

    Attributes:
        where: the file, for errors.
        classes: name -> Keras 3 class of a custom layer.
        layers: name of a layer -> the Keras 3 layer in its place.
        code: file of Python with the classes of the old model, which tf_keras runs in its own process.
    """

    where: str
    classes: Mapping[str, Any] = field(default_factory=dict)
    layers: Replacements = field(default_factory=dict)
    code: Path | None = None


def build(class_name: str, config: Any, parts: Parts) -> keras.Model:
    """A Keras 3 model of the same layers, by the same names, without its weights.

    Args:
        class_name: "Sequential", "Functional", "Model".
        config: of the model, without tfmot's wrappers.
        parts: see there.

    Raises:
        ValueError: a layer that Keras 3 cannot have, naming it, with a way out.

    Example:
        >>> dense = {"class_name": "Dense", "config": {"name": "head", "units": 2, "batch_input_shape": [None, 4]}}
        >>> model = build("Sequential", {"name": "net", "layers": [dense]}, Parts("old.h5"))
        >>> model.name, model.input_shape, model.output_shape
        ('net', (None, 4), (None, 2))
    """
    if class_name == "Sequential":
        return _sequential(config, parts)
    return _Functional(config, parts).model()


def _sequential(config: Any, parts: Parts) -> keras.Model:
    listed = entries(config)
    if not listed:
        raise ValueError(f"{parts.where}: a Sequential model without layers.")
    name = None if isinstance(config, list) else config.get("name")
    first = listed[0]
    made: list[Any] = []
    if first["class_name"] != "InputLayer":
        shape = first["config"].get("batch_input_shape") or _build_shape(config)
        if shape is None and first["class_name"] not in MODELS:
            raise ValueError(
                f"{parts.where}: this Sequential model was saved before it knew the shape of its input. Call it on one "
                "sample in tf_keras (model(x)), save it again, and migrate that file."
            )
        if shape is not None:
            made.append(keras.Input(batch_shape=tuple(shape)))
    for entry in listed:
        made += _layers(entry, parts)
    return keras.Sequential(made, name=name)


def _build_shape(config: Any) -> Any:
    shape = config.get("build_input_shape") if isinstance(config, dict) else None
    return shape if isinstance(shape, list) else None


def _layers(entry: Mapping[str, Any], parts: Parts) -> list[Any]:
    """The Keras 3 layer of an entry, and what has to stand behind it."""
    kind, config = entry["class_name"], dict(entry["config"])
    name = config.get("name") or entry.get("name") or kind
    where = f"{parts.where}: layer '{name}' ({kind})"
    if name in parts.layers:
        return [parts.layers[name]]
    if kind in MODELS:
        return [build(kind, entry["config"], parts)]
    behind: list[Any] = []
    ramp = layers().other_values.get(activation_of(config) or "")
    if ramp is not None:
        _check_ramp(where, kind)
        config["activation"] = "linear"
        scale = keras.layers.Rescaling(ramp.scale, ramp.offset, name=f"{legal_name(name)}_scale")
        behind = [scale, keras.layers.ReLU(max_value=ramp.highest, name=f"{legal_name(name)}_clip")]
    if layers().other_values.get(activation_of(config, "recurrent_activation") or "") is not None:
        _refuse_gates(where, config)
    config["name"] = legal_name(name)
    fresh, kept = translated(kind, config, where)
    known = parts.classes.get(fresh.rsplit(">", 1)[-1]) or getattr(keras.layers, fresh, None)
    if known is None:
        said = layers().gone.get(fresh)
        about = f" ({said})" if said else ""
        raise ValueError(
            f"{where}: Keras {keras.__version__} has no such layer{about}. Give another in its place: "
            f"replacing={{'{name}': keras_3_layer}}, which takes on the old weights where the shapes are the same."
        )
    try:
        return [known.from_config(kept), *behind]
    except Exception as error:  # whatever the constructors of any layer raise at their arguments
        said = str(error).rsplit("Exception encountered:", 1)[-1].strip().splitlines()
        raise ValueError(
            f"{where}: Keras {keras.__version__} does not take its configuration: "
            f"{(said or [type(error).__name__])[0][:240]} Give another layer in its place: "
            f"replacing={{'{name}': keras_3_layer}}."
        ) from error


def _check_ramp(where: str, kind: str) -> None:
    if kind in ("LSTM", "GRU", "SimpleRNN"):
        raise ValueError(
            f"{where}: activation='hard_sigmoid' inside a recurrent layer; Keras 3 computes another function under "
            "that name. Train the model a little with 'sigmoid' in tf_keras, and migrate that file."
        )


def _refuse_gates(where: str, config: Mapping[str, Any]) -> None:
    raise ValueError(
        f"{where}: recurrent_activation='{activation_of(config, 'recurrent_activation')}' is clip(0.2 x + 0.5, 0, 1) "
        "in Keras 2 and another function in Keras 3. Train the model a little with 'sigmoid' in tf_keras, and migrate "
        "that file."
    )


class _Functional:
    """One Functional model while it is built."""

    def __init__(self, config: Mapping[str, Any], parts: Parts) -> None:
        self.config, self.parts = config, parts
        self.listed = {entry.get("name", entry["config"].get("name")): entry for entry in entries(config)}
        self.tensors: dict[str, list[Any]] = {}  # name -> outputs of each of its calls
        self.turned: dict[int, Any] = {}  # id of a tensor -> the one of which it is the transpose in time
        self.kept: list[Any] = []  # what is asked for by its id must not go

    def model(self) -> keras.Model:
        made = {name: self.prepare(entry) for name, entry in self.listed.items()}
        waiting = {name: _calls(entry) for name, entry in self.listed.items()}
        for name, layer in made.items():
            if isinstance(layer, keras.KerasTensor):
                self.tensors[name] = [layer]
            elif self.listed[name]["class_name"] in MODELS and self.counted_from_one(name):
                self.tensors[name] = [None]
        # by what is there, not down the list: a later call of a shared layer may read what stands behind it
        while any(waiting.values()):
            ready = [name for name, calls in waiting.items() if calls and self.knows(calls[0])]
            if not ready:
                raise ValueError(f"{self.parts.where}: layers that wait for each other: {first_of(waiting)}; damaged.")
            for name in ready:
                node = waiting[name].pop(0)
                self.tensors.setdefault(name, []).append(self.call(name, made[name], node))
        return keras.Model(
            self.ends("input_layers"), self.ends("output_layers"), name=legal_name(self.config.get("name", "model"))
        )

    def prepare(self, entry: Mapping[str, Any]) -> Any:
        """A tensor for an input, a list of layers, or nothing for a function of TensorFlow."""
        kind = entry["class_name"]
        if kind == "InputLayer":
            _, kept = translated(kind, entry["config"], f"{self.parts.where}: layer '{entry['config'].get('name')}'")
            return keras.layers.InputLayer(**kept).output
        if kind in (FUNCTION, SLICE) and entry["config"]["name"] not in self.parts.layers:
            return []
        config = entry["config"]
        # the layer is made without; `in_time` turns the axes around it
        if isinstance(config, Mapping) and config.get(TIME_MAJOR):
            entry = {**entry, "config": {**config, TIME_MAJOR: False}}
        return _layers(entry, self.parts)

    def counted_from_one(self, name: str) -> bool:
        """True for a model whose call 0 was that on its own inputs, which a file does not list."""
        ends = [self.config[key] for key in ("input_layers", "output_layers")]
        read = _reads([*ends, *(node for entry in self.listed.values() for node in _calls(entry))])
        return any(number >= len(_calls(self.listed[name])) for other, number in read if other == name)

    def knows(self, node: Any) -> bool:
        """True where all that a call reads is there."""
        return all(len(self.tensors.get(name, ())) > number for name, number in _reads(node))

    def tensor(self, reference: Sequence[Any]) -> Any:
        """What a reference stands for."""
        name, number, place = reference[:3]
        made = self.tensors[name][number]
        return made[place] if isinstance(made, list | tuple) else made

    def value(self, value: Any) -> Any:
        """An argument: references become tensors."""
        if is_reference(value) and (value[0] in self.listed):
            return self.tensor(value)
        if isinstance(value, list):
            return [self.value(each) for each in value]
        return value

    def call(self, name: str, made: list[Any], node: Any) -> Any:
        """One call of a layer, or of a function."""
        first, given = self.arguments(node)
        entry = self.listed[name]
        if not made:
            return self.function(name, entry, first, given)
        if isinstance(entry["config"], Mapping) and entry["config"].get(TIME_MAJOR):
            return self.in_time(name, entry, made, first, given)
        # arguments are the layer's; the ramp behind it takes what comes out
        for layer in made:
            first, given = layer(first, **given), {}
        return first

    def arguments(self, node: Any) -> tuple[Any, dict[str, Any]]:
        """Positional tensors, one or a list, and keyword arguments."""
        single = is_reference(node) or node[0] == CONSTANT
        references = [node] if single else node
        tensors = [r[2] if r[0] == CONSTANT else self.tensor(r) for r in references]
        given = {key: self.value(v) for key, v in (references[0][3] if len(references[0]) > 3 else {}).items()}
        given = {key: v for key, v in given.items() if not (v is None and key in ("mask", "training", "initial_state"))}
        return (tensors[0] if len(tensors) == 1 else tensors), given

    def in_time(self, name: str, entry: Mapping[str, Any], made: list[Any], x: Any, given: dict[str, Any]) -> Any:
        """A layer that had the steps first: Keras 3 has the samples first, so axes are turned before and behind it.

        Where the old model turned them itself, what it turned is taken, and nothing is turned twice.
        """
        y = made[0](self.turn(x, f"{name}_samples_first"), **given)
        return self.turn(y, f"{name}_steps_first") if entry["config"].get("return_sequences") else y

    def turn(self, x: Any, name: str) -> Any:
        """Samples and steps change places."""
        if id(x) in self.turned:
            return self.turned[id(x)]
        turned = _called(keras.ops.transpose(x, [1, 0, *range(2, len(x.shape))]), name)
        self.note(x, turned)
        return turned

    def note(self, x: Any, turned: Any) -> None:
        """Remember that one is the other, turned."""
        self.turned |= {id(turned): x, id(x): turned}
        self.kept += [x, turned]

    def function(self, name: str, entry: Mapping[str, Any], x: Any, given: dict[str, Any]) -> Any:
        """A function of TensorFlow, or a slice, in `keras.ops`."""
        where = f"{self.parts.where}: layer '{name}'"
        if entry["class_name"] == SLICE:
            return _called(x[tuple(_slice(each, where) for each in given["slice_spec"])], name)
        called = entry["config"]["function"]
        known = operations().get(called)
        if known is None:
            raise ValueError(
                f"{where}: tf.{called} has no entry in kquant/migrate/operations.toml. Give a Keras 3 layer in its "
                f"place: replacing={{'{name}': layer}}."
            )
        arguments = _by_name(known, x, given, f"{where} (tf.{called})")
        axes = arguments.get("axes")
        if (
            known.ops == "transpose"
            and isinstance(axes, list)
            and axes[:2] == [1, 0]
            and axes[2:] == list(range(2, len(axes)))
        ):
            return self.turn(arguments["x"], name)
        return _called(getattr(keras.ops, known.ops)(**arguments), name)

    def ends(self, key: str) -> Any:
        """Inputs or outputs, in the structure that the model had."""

        def tensors_in(value: Any) -> Any:
            if is_reference(value):
                return self.tensor(value)
            if isinstance(value, dict):
                return {name: tensors_in(each) for name, each in value.items()}
            return [tensors_in(each) for each in value]

        made = tensors_in(self.config[key])
        return made[0] if isinstance(made, list) and len(made) == 1 else made


def _calls(entry: Mapping[str, Any]) -> list[Any]:
    """The calls of a layer: each a list of references, or one reference."""
    return list(entry.get("inbound_nodes") or [])


def _reads(node: Any) -> list[tuple[str, int]]:
    """Layers and numbers of their calls that a call reads."""
    if is_reference(node):
        own = [] if node[0] == CONSTANT else [(node[0], node[1])]
        return own + [read for each in node[3:] for read in _reads(each)]
    if isinstance(node, dict):
        return [read for each in node.values() for read in _reads(each)]
    return [read for each in node for read in _reads(each)] if isinstance(node, list) else []


def _called(made: Any, name: str) -> Any:
    """Name the operation behind a tensor as the old one was: Keras may call two of them alike, or like a layer."""
    if isinstance(made, keras.KerasTensor):
        maker(made).name = legal_name(name)
    return made


def _slice(spec: Any, where: str) -> Any:
    if isinstance(spec, dict) and set(spec) == {"start", "stop", "step"}:
        return slice(spec["start"], spec["stop"], spec["step"])
    if isinstance(spec, dict) and spec.get("value") == "Ellipsis":
        return Ellipsis
    if isinstance(spec, int):
        return spec
    raise ValueError(f"{where}: a slice by {spec!r}; give a Keras 3 layer in its place with replacing={{...}}.")


def _by_name(known: Operation, x: Any, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Arguments by the names of `keras.ops`."""
    signs = {parameter.lstrip("-="): parameter[0] for parameter in known.parameters}
    first = next(iter(signs))
    arguments: dict[str, Any] = {first: x}
    for key, value in given.items():
        fresh = known.names.get(key, key)
        sign = signs.get(fresh)
        if sign is None:
            raise ValueError(f"{where}: its argument '{key}' is not known here; give a Keras 3 layer in its place.")
        if sign == "=" and value not in (None, False, 1.0):
            raise ValueError(f"{where}: {key}={value!r} is not known here; give a Keras 3 layer in its place.")
        if sign not in "-=":
            arguments[fresh] = known.nulls.get(fresh) if value is None else value
    return {key: value for key, value in arguments.items() if value is not None or key == "axis"}

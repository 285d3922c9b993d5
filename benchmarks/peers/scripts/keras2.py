"""A Keras 3 model's layers and joints in Keras 2, out of its `.keras` file; weights stay behind."""

from __future__ import annotations

import inspect
import json
import zipfile
from pathlib import Path
from typing import Any

LEFT_OUT = ("Rescaling",)  # tfmot refuses every model with one; whoever uses it scales images before


class NotRebuilt(Exception):
    """Keras 2 has no such layer or operation, or not as it is set: the tool was not asked."""


def model_of(keras: Any, folder: Path) -> Any:
    """The model of `folder/float.keras` in Keras 2, without layers of `LEFT_OUT`.

    Args:
        keras: tf_keras.
        folder: with `application.json`, too, where Keras 2 has the whole architecture.

    Raises:
        NotRebuilt: it cannot be built there.
    """
    try:
        return _built(keras, folder)
    except Exception as error:
        raise NotRebuilt(f"{type(error).__name__}: {error}") from error


def _built(keras: Any, folder: Path) -> Any:
    whole = folder / "application.json"
    if whole.is_file():
        told = json.loads(whole.read_text())
        return getattr(keras.applications, told["constructor"])(**told["arguments"])
    with zipfile.ZipFile(folder / "float.keras") as archive:
        config = json.loads(archive.read("config.json"))["config"]
    return _functional(keras, config) if "input_layers" in config else _sequential(keras, config)


def _sequential(keras: Any, config: dict[str, Any]) -> Any:
    model = keras.Sequential()
    for entry in config["layers"]:
        model.add(_layer(keras, entry))
    return model


def _functional(keras: Any, config: dict[str, Any]) -> Any:
    """Each layer called on what Keras 3 says that it was called on."""
    tensors: dict[tuple[str, int, int], Any] = {}

    def put(value: Any) -> Any:
        if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
            return tensors[tuple(value["config"]["keras_history"])]
        if isinstance(value, dict):
            return {key: put(inner) for key, inner in value.items()}
        return [put(inner) for inner in value] if isinstance(value, list) else value

    waiting = [(entry, _layer(keras, entry), n, node) for entry in config["layers"] for n, node in _nodes(entry)]
    while waiting:
        left = []
        for entry, layer, n, node in waiting:
            try:
                given = put(node["args"]) if node else []
                named = put(node["kwargs"]) if node else {}
            except KeyError:  # of a layer that comes later
                left.append((entry, layer, n, node))
                continue
            made = layer.output if not node else layer(*given, **{k: v for k, v in named.items() if v is not None})
            for place, tensor in enumerate(made if isinstance(made, (list, tuple)) else [made]):
                tensors[entry["config"]["name"], n, place] = tensor
        if len(left) == len(waiting):
            raise ValueError("joints of layers that Keras 2 does not know")
        waiting = left
    first, last = (_pick(tensors, config[key]) for key in ("input_layers", "output_layers"))
    return keras.Model(first, last)


def _nodes(entry: dict[str, Any]) -> list[tuple[int, Any]]:
    return list(enumerate(entry["inbound_nodes"])) or [(0, None)]


def _pick(tensors: dict[tuple[str, int, int], Any], place: Any) -> Any:
    if isinstance(place, list) and place and isinstance(place[0], str):
        return tensors[tuple(place)]
    inner = place.values() if isinstance(place, dict) else place
    return [_pick(tensors, each) for each in inner]


def _layer(keras: Any, entry: dict[str, Any]) -> Any:
    """A layer with what of its settings Keras 2 knows, too."""
    name, config = entry["class_name"], dict(entry["config"])
    made = getattr(keras.layers, name, None)
    if made is None or entry.get("module") != "keras.layers":  # keras.ops has an Add, too
        raise ValueError(f"Keras 2 has no layer {name}")
    if name in LEFT_OUT:
        return keras.layers.Activation("linear", name=config["name"])
    if name == "InputLayer":
        return made(input_shape=tuple(config["batch_shape"][1:]), dtype=config["dtype"], name=config["name"])
    known = {key for kind in made.__mro__ if kind is not object for key in inspect.signature(kind.__init__).parameters}
    known -= {key for key in known if key.endswith(("initializer", "regularizer", "constraint"))} | {"dtype"}
    kept = {key: value for key, value in config.items() if key in known}
    return made.from_config(kept)

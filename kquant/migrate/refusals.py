"""What an old file may hold that is code, or needs code: it is named, with the way out, before anything is made of it.

A Lambda is the bytecode of a Python function, which can do anything. A configuration may name any class of any module,
and tf_keras would import it. Neither is given to tf_keras: files come from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from kquant.core.messages import first_of
from kquant.migrate.building import FUNCTION, SLICE
from kquant.migrate.tables import layers
from kquant.migrate.tfmot_wrappers import INPUT, MODELS, WRAPPERS, entries
from kquant.migrate.translation import INNER

LAMBDA, BYTECODE, FUNCTIONS = "Lambda", "__lambda__", "function"
# What tf_keras' own classes and functions say of where they are.
OWN = ("keras", "tf_keras", "tensorflow_model_optimization")
BUILT_IN = ("builtins", None)
SEPARABLE = re.compile(r"sepconv1d_(expand|squeeze)(?:_\d+)?")  # what tfmot calls the Lambdas around a SeparableConv1D


@dataclass(frozen=True)
class Foreign:
    """What is not Keras' own in a configuration.

    Attributes:
        lambdas: names of Lambda layers.
        custom: names of layers -> their class.
        others: classes and functions in the arguments of layers: (layer, name).
    """

    lambdas: tuple[str, ...]
    custom: Mapping[str, str]
    others: tuple[tuple[str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.lambdas or self.custom or self.others)


def foreign(config: Any) -> Foreign:
    """Look through a model's configuration.

    Args:
        config: of a Sequential or Functional model.

    Example:
        >>> foreign({"layers": [{"class_name": "Lambda", "config": {"name": "twice"}}]}).lambdas
        ('twice',)
    """
    lambdas, custom, others = [], {}, []
    for name, entry in _all(config):
        kind = entry["class_name"]
        if kind == LAMBDA:
            lambdas.append(name)
        elif kind not in MODELS and not _is_layer(kind):
            custom[name] = kind
        elif not _is_own(entry):
            custom[name] = f"{entry['module']}.{kind}"
        else:
            others += [(name, said) for said in _arguments(_beside_layers(entry["config"]))]
    return Foreign(tuple(lambdas), custom, tuple(others))


def check(unknown: Foreign, where: str, classes: Collection[str], replaced: Collection[str]) -> None:
    """Refuse what nobody gave a Keras 3 counterpart of.

    Args:
        unknown: in the file.
        where: the file, for errors.
        classes: names of custom classes that the caller gave.
        replaced: names of layers that the caller gave.

    Raises:
        ValueError: naming layer and class, with the way out.
    """
    lambdas = [name for name in unknown.lambdas if name not in replaced]
    if lambdas:
        raise ValueError(
            f"{where}: layer '{lambdas[0]}' is a Lambda: the bytecode of a Python function, which is not run"
            + (f" (and so are {first_of(lambdas[1:])})" if lambdas[1:] else "")
            + f". Give a Keras 3 layer that computes the same, in Python: {_instead(lambdas)}."
        )
    custom = {
        name: kind for name, kind in unknown.custom.items() if name not in replaced and _bare(kind) not in classes
    }
    if custom:
        name, kind = next(iter(custom.items()))
        raise ValueError(
            f"{where}: layer '{name}' is of the class {_bare(kind)}, which is not Keras' own; its code is not in the "
            "file. Write the class for Keras 3 (weights by the same names), and give it, in Python: "
            f"kquant.migrate.from_tf_keras(path, custom_objects={{'{_bare(kind)}': {_bare(kind)}}})."
        )
    for name, said in unknown.others:
        if name not in replaced:
            raise ValueError(
                f"{where}: layer '{name}' names '{said}', which is not Keras' own and is not looked up. Give a Keras 3 "
                f"layer in its place, in Python: kquant.migrate.from_tf_keras(path, replacing={{'{name}': layer}})."
            )


def _instead(lambdas: list[str]) -> str:
    """The call that replaces Lambdas; tfmot makes two of every SeparableConv1D, and what they compute is known."""
    shapes = {"expand": "(1, -1, channels)", "squeeze": "(-1, filters)"}
    made = [(name, match[1]) for name in lambdas if (match := SEPARABLE.fullmatch(name))]
    if len(made) < len(lambdas):
        return f"kquant.migrate.from_tf_keras(path, replacing={{'{lambdas[0]}': keras.layers.Rescaling(2.0)}})"
    turned = ", ".join(f"'{name}': keras.layers.Reshape({shapes[what]})" for name, what in made)
    return (
        f"kquant.migrate.from_tfmot(path, replacing={{{turned}}}), with the channels that enter the SeparableConv1D "
        "and those that leave it"
    )


def _bare(kind: str) -> str:
    return kind.rsplit(">", 1)[-1].rsplit(".", 1)[-1]


def _all(config: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and entry of every layer, in models and wrappers, too."""
    for entry in entries(config):
        yield from _entry(entry)


def _entry(entry: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    config = entry["config"]
    name = str(config.get("name", entry.get("name", entry["class_name"])) if isinstance(config, Mapping) else "")
    if entry["class_name"] in MODELS:
        yield from _all(config)
        return
    yield name, entry
    for key in INNER:
        value = config.get(key)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict) and "class_name" in inner:
                yield from _entry(inner)


def _is_layer(kind: str) -> bool:
    """A class of Keras 3, of Keras 2, or of tfmot."""
    known = getattr(keras.layers, kind, None)
    return (
        (isinstance(known, type) and issubclass(known, keras.layers.Layer))
        or kind in layers().classes
        or kind in layers().gone
        or kind in (INPUT, *WRAPPERS, FUNCTION, SLICE)
    )


def _is_own(entry: Mapping[str, Any]) -> bool:
    module = entry.get("module")
    return module in BUILT_IN or str(module).split(".")[0] in OWN


def _beside_layers(config: Any) -> Any:
    """A layer's arguments without the layers in it, which are looked at by their own names."""
    if not isinstance(config, Mapping):
        return config
    return {key: value for key, value in config.items() if not (key in INNER and _is_entry(value))}


def _is_entry(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return all(isinstance(each, dict) and "class_name" in each for each in listed)


def _arguments(value: Any) -> Iterator[str]:
    """Names in a layer's arguments that lead out of Keras and tfmot."""
    if isinstance(value, list):
        for each in value:
            yield from _arguments(each)
    elif isinstance(value, dict):
        kind = value.get("class_name")
        if kind in (BYTECODE, LAMBDA) or (kind and not _is_own(value)):
            yield str(kind if kind != FUNCTIONS else value.get("config"))
            return
        for each in value.values():
            yield from _arguments(each)

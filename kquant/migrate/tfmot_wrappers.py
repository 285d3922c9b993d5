"""A model that tfmot wrapped -> the model inside, and what the wrappers held, by layer and weight.

    QuantizeLayer, QuantizeWrapper, QuantizeWrapperV2    ranges: `kernel_min`, `post_activation_max`, `output_min`, ...
    PruneLowMagnitude                                    masks: `mask`, in the order of the pruned weights
    ClusterWeights, ClusterWeightsRNN, ...               values: `cluster_centroids_kernel`; each weight is one

Plain data in, plain data out. Source: tensorflow-model-optimization 0.8.1, `quantize_wrapper.py`, `pruning_wrapper.py`,
`cluster_wrapper.py`, `cluster_preserve_quantize_registry.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kquant.migrate.old_model import OldModel, Weights

Config = dict[str, Any]
INPUT = "QuantizeLayer"
QUANTIZED, PRUNED = ("QuantizeWrapper", "QuantizeWrapperV2"), ("PruneLowMagnitude",)
CLUSTERED = ("ClusterWeights", "ClusterWeightsRNN", "ClusterWeightsMHA")
WRAPPERS = (*QUANTIZED, *PRUNED, *CLUSTERED)
MODELS = ("Functional", "Model", "Sequential")
# What a wrapper adds to the weights of the layer inside; the rest of a name is the weight's.
_RANGE = re.compile(r"(?P<what>\w+)_(?P<end>min|max)")
_COUNTERS = ("optimizer_step", "pruning_step", "threshold")
_CENTROIDS = re.compile(r"cluster_centroids_(?P<weight>\w+)")
_INDICES = re.compile(r"pulling_indices_\w+|ori_weights_vars_tf")
OUTPUTS = ("output", "post_activation")
# Files of PQAT have no mask, those of CQAT an older or no codebook: what was kept shows in the weights. One that
# trained in float is never 0 by itself, nor equal to another.
LEAST_ZEROS, MOST_VALUES = 0.01, 256
BITS = 8  # of the default scheme; only the n-bit one tells


@dataclass(frozen=True)
class OldRange:
    """What one of tfmot's quantizers learned.

    Attributes:
        layer: whose tensor it is, by the name that it has without wrappers; of an input its name.
        tensor: "output" (behind the activation), "pre_activation", or the name of a weight.
        low, high: float32[1] or [channels].
        bits: of its grid.
    """

    layer: str
    tensor: str
    low: np.ndarray
    high: np.ndarray
    bits: int = BITS

    @property
    def is_output(self) -> bool:
        """True for what leaves the layer."""
        return self.tensor == "output"


@dataclass(frozen=True, eq=False)
class Unwrapped:
    """A model without wrappers.

    Attributes:
        model: config and weights of the layers inside; samples and outputs are those of the wrapped model.
        ranges: of tfmot's quantizers.
        masks: (layer, weight) -> bool, like the weight.
        books: (layer, weight) -> shared values: float32[n], or [channels, n].
    """

    model: OldModel
    ranges: tuple[OldRange, ...] = ()
    masks: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    books: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What tfmot did to it: "quantized", "pruned", "clustered", two of them, or "float"."""
        said = {"quantized": self.ranges, "pruned": self.masks, "clustered": self.books}
        return ", ".join(name for name, held in said.items() if held) or "float"


def entries(config: Any) -> list[Config]:
    """The layers of a model's config; a Sequential of early versions is the list itself."""
    return list(config if isinstance(config, list) else config["layers"])


def unwrap(old: OldModel) -> Unwrapped:
    """Take tfmot's wrappers off.

    Args:
        old: with or without wrappers.

    Raises:
        ValueError: a wrapper without what it needs, naming it.

    Example:
        >>> dense = {"class_name": "Dense", "config": {"name": "head", "units": 1}}
        >>> config = {"name": "prune_low_magnitude_head", "layer": dense}
        >>> wrapper = {"class_name": "PruneLowMagnitude", "config": config}
        >>> kernel, mask = np.float32([[2.0], [3.0]]), np.float32([[1.0], [0.0]])
        >>> held = {"prune_low_magnitude_head": (("head/kernel", kernel), ("prune_low_magnitude_head/mask", mask))}
        >>> old = OldModel("old.h5", "Sequential", {"name": "net", "layers": [wrapper]}, held)
        >>> new = unwrap(old)
        >>> new.model.config["layers"][0]["class_name"], new.masks["head", "kernel"].tolist(), new.kind
        ('Dense', [[True], [False]], 'pruned')
    """
    if not old.config:  # weights alone
        return Unwrapped(old)
    held = _Held()
    config, weights = _unwrapped(old.config, old.weights, held)
    return Unwrapped(replace(old, config=config, weights=weights), tuple(held.ranges), held.masks, held.books)


@dataclass(eq=False)
class _Held:
    ranges: list[OldRange] = field(default_factory=list)
    masks: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    books: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)


def _unwrapped(given: Any, known: Mapping[str, Weights], held: _Held) -> tuple[Config, dict[str, Weights]]:
    """Config and weights of the layers inside the wrappers of a model, those of models in it among them."""
    renames: dict[str, str] = {}
    aliases: dict[str, list[Any]] = {}
    kept, weights = [], {}
    source = None
    for entry in entries(given):
        name = entry["config"].get("name") or entry.get("name", "")  # the layer's own may be null
        own = known.get(name, ())
        if entry["class_name"] in MODELS and _is_wrapped(entry["config"]):
            inner, nested = _unwrapped(entry["config"], _by_layer(entry["config"], own), held)
            entry, own = {**entry, "config": inner}, tuple(pair for held_by in nested.values() for pair in held_by)
        if entry["class_name"] == INPUT:
            taken = next(_references(entry.get("inbound_nodes")), [source, 0, 0])
            aliases[name] = taken
            held.ranges += _ranges(str(taken[0]), own, BITS, input_name=name)
            continue
        if entry["class_name"] in WRAPPERS:
            inner, own = _inside(entry, own, held)
            renames[name] = inner["config"]["name"]
            entry, name = inner, renames[name]
        source = name
        kept.append(entry)
        weights[name] = own
    config: Config = dict(given) if isinstance(given, dict) else {"name": "sequential"}
    config["layers"] = [_rewired(entry, renames, aliases) for entry in kept]
    for ends in ("input_layers", "output_layers"):
        if ends in config:
            config[ends] = _followed(config[ends], renames, aliases)
    return config, weights


def _by_layer(config: Any, own: Weights) -> dict[str, Weights]:
    """The weights of a model inside another, which a file lists together, by its layers; what is nobody's stays away.

    A weight stands behind the name of its layer, one that a wrapper adds behind the wrapper's.
    """
    made: dict[str, Weights] = {}
    left = list(own)
    for entry in entries(config):
        name, inner = entry["config"].get("name"), entry["config"].get("layer")
        names = {name, inner["config"].get("name")} if entry["class_name"] in WRAPPERS and inner else {name}
        if entry["class_name"] in MODELS:
            names = set(_names(entry["config"]))
        made[str(name)] = tuple(pair for pair in left if names & set(pair[0].split("/")))
        left = [pair for pair in left if not names & set(pair[0].split("/"))]
    return made


def _is_wrapped(config: Any) -> bool:
    """True where a wrapper is in a model, at any depth."""
    kinds = [(entry["class_name"], entry["config"]) for entry in entries(config)]
    return any(kind in (INPUT, *WRAPPERS) or (kind in MODELS and _is_wrapped(inner)) for kind, inner in kinds)


def _names(config: Any) -> Iterator[str]:
    """Names of all layers in a model, with and without wrappers."""
    for entry in entries(config):
        inner = entry["config"].get("layer")
        yield str(entry["config"].get("name"))
        if entry["class_name"] in MODELS:
            yield from _names(entry["config"])
        elif entry["class_name"] in WRAPPERS and inner:
            yield str(inner["config"].get("name"))


def _inside(entry: Config, own: Weights, held: _Held) -> tuple[Config, Weights]:
    """The layer in a wrapper, with its weights as it computes with them."""
    kind, config = entry["class_name"], entry["config"]
    inner = {**config["layer"], "config": _plain_activations(config["layer"]["config"])}
    # a Sequential of early versions tells the shape of its input at the wrapper
    if "batch_input_shape" in config:
        inner["config"].setdefault("batch_input_shape", config["batch_input_shape"])
    if "inbound_nodes" in entry:
        inner["inbound_nodes"] = entry["inbound_nodes"]
    name = inner["name"] = inner["config"]["name"]
    weights, added = _apart(own)
    if kind in QUANTIZED:
        settings = (config.get("quantize_config") or {}).get("config") or {}
        ranges = _ranges(name, added, int(settings.get("num_bits_activation", BITS)))
        bits = int(settings.get("num_bits_weight", BITS))
        named = {last(path) for path, _ in weights}
        held.ranges += [replace(r, bits=bits) if r.tensor in named else r for r in ranges]
        _found(name, weights, {r.tensor for r in ranges}, held)
        return inner, weights
    if kind in PRUNED:
        weights = _masked(name, weights, [value for path, value in added if last(path).startswith("mask")], held)
    return inner, _shared(name, weights, added, held, bool(config.get("preserve_sparsity")))


def last(path: str) -> str:
    """The last part of a weight's name."""
    return path.rsplit("/", 1)[-1]


def _apart(own: Weights) -> tuple[Weights, Weights]:
    """Weights of the layer inside, and those of the wrapper."""

    def is_added(path: str) -> bool:
        end = last(path)
        return (
            end in _COUNTERS
            or bool(re.fullmatch(r"mask(_\d+)?", end) or _RANGE.fullmatch(end))
            or bool(_CENTROIDS.search(path) or _INDICES.search(path))
        )

    inside = tuple(pair for pair in own if not is_added(pair[0]))
    return inside, tuple(pair for pair in own if is_added(pair[0]))


def _ranges(layer: str, added: Weights, bits: int, input_name: str = "") -> list[OldRange]:
    """Pairs of ends, in order."""
    ends: dict[str, dict[str, np.ndarray]] = {}
    for path, value in added:
        match = _RANGE.fullmatch(last(path))
        if match:
            ends.setdefault(match["what"], {})[match["end"]] = np.asarray(value, np.float32).reshape(-1)
    made = []
    for what, both in ends.items():
        if set(both) != {"min", "max"}:
            raise ValueError(f"layer '{layer}': one end of the range of '{what}' is missing; the file is damaged.")
        tensor = "output" if what in (*OUTPUTS, input_name) else what
        made.append(OldRange(layer, tensor, both["min"], both["max"], bits))
    return made


def _found(layer: str, weights: Weights, quantized: set[str], held: _Held) -> None:
    """Shared values or zeros that weights had before they were quantized, and kept."""
    for path, value in weights:
        if last(path) not in quantized:
            continue
        book = shared_values(value)
        if book is not None:
            held.books[layer, last(path)] = book
        elif np.mean(value == 0.0) > LEAST_ZEROS:
            held.masks[layer, last(path)] = value != 0.0


def shared_values(weights: np.ndarray) -> np.ndarray | None:
    """The few values of a kernel, or of each of its channels.

    Args:
        weights: float32[..., channels].

    Returns:
        float32[n], or [channels, n] (shorter lists end in their last value again); None where they are not few.

    Example:
        >>> shared_values(np.float32([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])).tolist()
        [0.0, 1.0]
        >>> shared_values(np.float32([[0.5, 0.1], [0.6, 0.2]])) is None
        True
    """
    values = np.unique(weights)
    rows = weights.reshape(-1, weights.shape[-1])
    lists = [np.unique(row) for row in rows.T]
    most = max(row.size for row in lists)
    # lists of channels where they are much shorter than the one of all
    if 1 < most <= min(MOST_VALUES, len(rows) // 2) and 2 * most <= values.size:
        return np.stack([np.pad(row, (0, most - row.size), "edge") for row in lists]).astype(np.float32)
    return np.asarray(values, np.float32) if 1 < values.size <= min(MOST_VALUES, weights.size // 2) else None


def _masked(layer: str, weights: Weights, masks: Sequence[np.ndarray], held: _Held) -> Weights:
    """Each mask is that of the first weight of its shape that has none yet, as tfmot lists them."""
    left = list(masks)
    made = []
    for path, value in weights:
        place = next((i for i, mask in enumerate(left) if mask.shape == value.shape and value.ndim > 1), None)
        if place is not None:
            mask = held.masks[layer, last(path)] = left.pop(place) != 0.0
            value = value * mask
        made.append((path, value))
    if left:
        raise ValueError(f"layer '{layer}': a mask {left[0].shape} fits none of its weights; the file is damaged.")
    return tuple(made)


def _shared(layer: str, weights: Weights, added: Weights, held: _Held, keeps_zero: bool) -> Weights:
    """Each weight of a clustered kernel becomes the nearest value, as the wrapper does before every call.

    Where zeros are kept, the value nearest to 0 is set to 0 first: the last step of training moved it.
    """
    centroids = ((_CENTROIDS.search(path), value) for path, value in added)
    books = {match["weight"]: value for match, value in centroids if match}
    made = []
    for path, value in weights:
        book = books.get(last(path))
        if book is not None:
            book = np.asarray(book, np.float32)
            book = _with_zero(book) if keeps_zero else book
            held.books[layer, last(path)] = book
            value = nearest(value, book)
        made.append((path, value))
    return tuple(made)


def _with_zero(book: np.ndarray) -> np.ndarray:
    lists = np.atleast_2d(book).copy()
    lists[np.arange(len(lists)), np.argmin(np.abs(lists), axis=1)] = 0.0
    return lists.reshape(book.shape)


def nearest(weights: np.ndarray, book: np.ndarray) -> np.ndarray:
    """The nearest of the values for every weight.

    Args:
        weights: float32[..., channels].
        book: float32[n], or [channels, n].

    Example:
        >>> nearest(np.float32([[0.1, 0.9]]), np.float32([0.0, 1.0])).tolist()
        [[0.0, 1.0]]
    """
    if book.ndim == 2:
        columns = [nearest(weights[..., i], row) for i, row in enumerate(book)]
        return np.stack(columns, axis=-1)
    return book[np.argmin(np.abs(weights[..., None] - book), axis=-1)]


def _plain_activations(config: Mapping[str, Any]) -> Config:
    """The activation inside tfmot's `QuantizeAwareActivation`."""
    value = config.get("activation")
    if isinstance(value, dict) and value.get("class_name") == "QuantizeAwareActivation":
        value = value["config"]["activation"]
    if isinstance(value, dict) and value.get("class_name") == "NoOpActivation":
        value = "linear"
    return {**config, "activation": value} if "activation" in config else dict(config)


def is_reference(value: Any) -> bool:
    """True for `[layer, call, output, ...]`."""
    return (
        isinstance(value, list)
        and len(value) >= 3
        and isinstance(value[0], str)
        and all(isinstance(n, int) and not isinstance(n, bool) for n in value[1:3])
    )


def _references(value: Any) -> Iterator[list[Any]]:
    if is_reference(value):
        yield value[:3]
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def _rewired(entry: Config, renames: Mapping[str, str], aliases: Mapping[str, list[Any]]) -> Config:
    if "inbound_nodes" not in entry:
        return entry
    return {**entry, "inbound_nodes": _followed(entry["inbound_nodes"], renames, aliases)}


def _followed(value: Any, renames: Mapping[str, str], aliases: Mapping[str, list[Any]]) -> Any:
    """References by the names of the layers inside, past layers that are gone; constants stay."""
    if is_reference(value):
        name, call, output, *rest = value
        if name in aliases:
            name, call, output = aliases[name]
        return [renames.get(name, name), call, output, *(_followed(each, renames, aliases) for each in rest)]
    if isinstance(value, list):
        return [_followed(each, renames, aliases) for each in value]
    if isinstance(value, dict):
        return {key: _followed(each, renames, aliases) for key, each in value.items()}
    return value

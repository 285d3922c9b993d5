"""Encodings as AIMET's JSON: written beside an exported file, read back as the ranges of a quantized model.

Versions 0.6.1 (`activation_encodings` and `param_encodings` by name) and 1.0.0 (lists of entries with a name). Source:
AIMET, docs "Quantization encoding specification". AIMET counts codes from 0, and its offset is `round(min / scale)`, so
it is negative: an int8 zero point is `-offset - 128`.

Names are those of Keras layers, as `views.encoding_sites` has them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np

from kquant.calibration.encodings_version import Version
from kquant.core.messages import did_you_mean, first_of, warn
from kquant.core.renamed import renamed
from kquant.core.spec import QuantSpec, range_of
from kquant.files.untrusted import read_json
from kquant.graph.given_model import check_keras
from kquant.layers.head_quant import HeadQuant
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.views.encoding_sites import EncodingSites, encoding_sites
from kquant.views.loops import opened
from kquant.views.quantized_model import forget_graphs, read
from kquant.views.recipe_steps import step_done

VERSIONS = get_args(Version)
# Scales of the file and of the model's own weights that differ more than this are worth a warning.
TOLERANCE = 1e-3
MOST_BITS = 32


@dataclass(frozen=True)
class Grid:
    """One entry of a file: `real = scale * (code - zero_point)`, one scale or one for each channel."""

    bits: int
    symmetric: bool
    scale: np.ndarray
    zero_point: np.ndarray


def encodings(qmodel: keras.Model, version: Version = "0.6.1") -> dict[str, Any]:
    """The encodings of a quantized model as AIMET's JSON has them.

    Reads: `qmodel` stays as it was.

    Args:
        qmodel: quantized and calibrated or trained.
        version: "0.6.1" or "1.0.0".

    Returns:
        Plain data for `json.dump`. Biases are not listed: their scale is that of the input times that of the kernel.

    Raises:
        ValueError: an unknown version, not a quantized model, or a node without a range, by name.

    Example:
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="head")])
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 4), "float32"), verbose=False)
        >>> entries = kquant.encodings(q)
        >>> sorted(entries["activation_encodings"]), sorted(entries["param_encodings"])
        (['head', 'x'], ['head/kernel'])
    """
    check_keras(qmodel, "encodings")
    if version not in VERSIONS:
        raise ValueError(f"encodings: version must be one of {', '.join(VERSIONS)}. Received: {version!r}.")
    sites = encoding_sites(opened(read(qmodel)))
    held = {n: layer for n, (layer, _) in (*sites.tensors.items(), *sites.inside.items())}
    unseen = [n for n, x in held.items() if x.has_range and not np.any(x.count.numpy() > 0)]
    if unseen:
        raise ValueError(
            f"encodings: no range yet at {first_of(unseen)}. Run kquant.calibrate(model, data) or train first."
        )
    # floats of few bits have no codes, as weights on such grids have none
    activations = {name: _grid_of(source) for name, (_, source) in sites.tensors.items() if source.spec.has_codes}
    width = max((g.bits for g in activations.values()), default=8)  # the cell state of an LSTM is int16 in any case
    for name, (layer, scale) in sites.inside.items():
        activations[name] = Grid(layer.spec.bits, layer.spec.symmetric, scale, np.zeros(1, np.int64))
    weights = {name: grid for name, layer in sites.kernels.items() if (grid := _kernel_grid(layer)) is not None}
    if version == "1.0.0":
        return {
            "version": version,
            "activation_encodings": [_entry_1_0(name, grid) for name, grid in activations.items()],
            "param_encodings": [_entry_1_0(name, grid) for name, grid in weights.items()],
        }
    return {
        "version": version,
        "activation_encodings": {name: _entries_0_6(grid) for name, grid in activations.items()},
        "param_encodings": {name: _entries_0_6(grid) for name, grid in weights.items()},
        "quantizer_args": {
            "activation_bitwidth": width,
            "dtype": "int",
            "is_symmetric": True,
            "param_bitwidth": max((g.bits for g in weights.values()), default=8),
            "per_channel_quantization": any(g.scale.size > 1 for g in weights.values()),
            "quant_scheme": "post_training_tf",
        },
    }


@renamed
def set_encodings(qmodel: keras.Model, encodings: str | Path | dict[str, Any]) -> keras.Model:
    """Set the ranges of a quantized model from encodings.

    In place: changes `qmodel` and returns it.

    Activations take scale and zero point as they stand. Scales of kernels follow from the weights, in kquant as on
    export; those of the file are compared, and a difference is a warning. Tensors that share one encoding on the device
    (a concatenation, a pool) take the widest range of their entries.

    Args:
        qmodel: what `kquant.quantize` returned.
        encodings: path of the JSON file, or its data: versions 0.4.0 to 0.6.1 and 1.0.0.

    Returns:
        `qmodel`.

    Raises:
        ValueError: not such a file, a name that matches nothing, or an entry that the model's grid cannot hold.

    Example:
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="head")])
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 4), "float32"), verbose=False)
        >>> again = kquant.quantize(model, encodings=kquant.encodings(q))
        >>> kquant.encodings(again) == kquant.encodings(q)
        True
    """
    check_keras(qmodel, "set_encodings")
    put_encodings(encoding_sites(opened(read(qmodel)), peeks=True), encodings)
    forget_graphs(qmodel)  # of an output that joins heads the bits may be others now
    return step_done(qmodel, "calibrate")


def put_encodings(sites: EncodingSites, encodings: str | Path | dict[str, Any]) -> None:
    """`set_encodings` of a quantized model whose places were read, peeks too.

    Raises:
        ValueError: see `set_encodings`.
    """
    activations, weights, where = _read(encodings)
    tensors = {**sites.tensors, **{name: (layer, layer) for name, (layer, _) in sites.inside.items()}}
    _refuse_unknown(where, "activation_encodings", activations, tensors)
    _refuse_unknown(where, "param_encodings", weights, (*sites.kernels, *sites.biases))
    chosen: dict[int, list[tuple[str, Grid]]] = {}
    for name, grid in activations.items():
        layer = tensors[name][0]
        # one that follows, or is prescribed, cannot be set: `_set` compares it
        if layer.has_range:
            bits = chosen[id(layer)][0][1].bits if id(layer) in chosen else grid.bits
            _check_grid(where, name, grid, layer.grid_for(bits) if isinstance(layer, HeadQuant) else layer.spec)
        # tensors of one encoding on the device may have entries of their own: all of them before any is set
        chosen.setdefault(id(layer), []).append((name, grid))
    for name, grid in weights.items():
        if name in sites.kernels:
            _compare(where, name, grid, sites.kernels[name])
    for layer in {id(x): x for x, _ in tensors.values()}.values():
        if id(layer) in chosen:
            _set(where, tensors, layer, chosen[id(layer)])
    left = [name for name, (layer, _) in tensors.items() if layer.has_range and id(layer) not in chosen]
    if left:
        warn(
            f"{where}: nothing for {first_of(left)} ({len(left)} tensors); calibration would set all ranges "
            "again, so give encodings for every tensor or for none."
        )


def _grid_of(layer: FakeQuant) -> Grid:
    """The encoding that a layer holds."""
    scale, zero_point, _ = layer.grid()
    points = np.asarray(zero_point).reshape(1).astype(np.int64)
    points -= _shift(layer.spec) if layer.has_range else 0
    return Grid(layer.spec.bits, layer.spec.symmetric, np.asarray(scale, np.float32).reshape(1), points)


def _kernel_grid(layer: Compressed) -> Grid | None:
    """Scales that follow from the weights alone."""
    if layer.spec is None or not layer.spec.has_codes:
        return None
    scale = layer.scale_of(layer.weights_as_used()).numpy().reshape(-1)
    return Grid(layer.spec.bits, True, scale, np.zeros(scale.size, np.int64))


def _shift(spec: QuantSpec) -> int:
    # where the codes of unsigned grids lie above those of signed ones
    return 0 if spec.signed else 2 ** (spec.bits - 1)


def _offset(zero_point: int, bits: int) -> int:
    return -zero_point - 2 ** (bits - 1)


def _entries_0_6(grid: Grid) -> list[dict[str, Any]]:
    entries = []
    for scale, zero_point in zip(grid.scale, grid.zero_point, strict=True):
        offset = _offset(int(zero_point), grid.bits)
        entries.append(
            {
                "bitwidth": grid.bits,
                "dtype": "int",
                "is_symmetric": str(grid.symmetric),
                "max": float(scale) * (offset + 2**grid.bits - 1),
                "min": float(scale) * offset,
                "offset": offset,
                "scale": float(scale),
            }
        )
    return entries


def _entry_1_0(name: str, grid: Grid) -> dict[str, Any]:
    return {
        "bw": grid.bits,
        "dtype": "INT",
        "enc_type": "PER_CHANNEL" if grid.scale.size > 1 else "PER_TENSOR",
        "is_sym": grid.symmetric,
        "name": name,
        "offset": [_offset(int(z), grid.bits) for z in grid.zero_point],
        "scale": [float(s) for s in grid.scale],
    }


def _read(given: str | Path | dict[str, Any]) -> tuple[dict[str, Grid], dict[str, Grid], str]:
    """Activations and parameters by name, and what errors call the file."""
    where, data = "encodings", given
    if isinstance(given, str | Path):
        where = f"encodings: {given}"
        data = read_json(given, where)
    if not isinstance(data, dict) or not {"activation_encodings", "param_encodings"} <= set(data):
        raise ValueError(
            f"{where}: expected AIMET's encodings: an object with version, activation_encodings and param_encodings."
        )
    sections = (data["activation_encodings"], data["param_encodings"])
    activations, weights = (dict(_grids(section, where)) for section in sections)
    return activations, weights, where


def _grids(section: Any, where: str) -> Iterable[tuple[str, Grid]]:
    """Entries of a section: an object of lists (0.x) or a list of objects with names (1.0.0)."""
    if not isinstance(section, dict | list):
        raise ValueError(f"{where}: expected sections with entries by name, or lists of them. Received: {section!r}.")
    entries = section.items() if isinstance(section, dict) else ((_name(e, where), e) for e in section)
    for name, entry in entries:
        try:
            yield str(name).removesuffix(":0"), _grid(entry)
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(
                f"{where}: '{name}' is not an entry with {'bw' if isinstance(entry, dict) else 'bitwidth'}, scale and "
                f"offset of integers: {type(error).__name__}: {error}."
            ) from error


def _name(entry: Any, where: str) -> str:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a list of entries with names. Received: {first_of([repr(entry)])[:80]}.")
    return str(entry.get("name", "?"))


def _grid(entry: Any) -> Grid:
    if isinstance(entry, dict):
        bits, dtype, symmetric = entry["bw"], entry.get("dtype", "INT"), entry.get("is_sym", False)
        scales, offsets = entry["scale"], entry["offset"]
    else:
        first = entry[0]
        bits, dtype, symmetric = first["bitwidth"], first.get("dtype", "int"), first.get("is_symmetric", "False")
        scales, offsets = [e["scale"] for e in entry], [e["offset"] for e in entry]
    if str(dtype).lower() != "int":
        raise ValueError(f"dtype {dtype!r}; kquant's files hold integers")
    if isinstance(bits, float) or not 2 <= int(bits) <= MOST_BITS:
        raise ValueError(f"{bits} bits; kquant's grids have 2 to {MOST_BITS}")
    exact = np.asarray(scales, np.float64)
    # beyond float32 there is no scale: NaN, which the next line refuses, in place of a warning of NumPy's
    scale = np.where(np.abs(exact) <= np.finfo(np.float32).max, exact, np.nan).astype(np.float32)
    if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
        raise ValueError("a scale that is not a positive number")
    given = np.asarray(offsets)
    if given.dtype.kind not in "iuf" or not np.all(np.abs(given) <= 2.0**MOST_BITS) or np.any(given != np.rint(given)):
        raise ValueError("an offset that is no integer of a grid")
    # AIMET's codes begin at 0, signed ones at -2^(b-1)
    points = -given.astype(np.int64) - 2 ** (int(bits) - 1)
    if scale.shape != points.shape or scale.ndim != 1 or scale.size == 0:
        raise ValueError("scale and offset of different lengths")
    return Grid(int(bits), str(symmetric).lower() == "true", scale, points)


def _refuse_unknown(where: str, section: str, given: Iterable[str], known: Iterable[str]) -> None:
    names = list(known)
    for name in given:
        if name not in names:
            hint = did_you_mean(name, names, 0.3, most=3) or f" There are: {first_of(sorted(names), 20)}."
            raise ValueError(f"{where}: {section} names '{name}', which is no tensor of this model.{hint}")


def _check_grid(where: str, name: str, grid: Grid, spec: QuantSpec) -> None:
    """The width and the zero point must be ones that the recipe's grid has."""
    if grid.scale.size != 1:
        raise ValueError(f"{where}: '{name}' has {grid.scale.size} scales; activations have one.")
    if grid.bits != spec.bits:
        raise ValueError(
            f"{where}: '{name}' has {grid.bits} bits, the recipe's activations have {spec.bits}. Quantize with a "
            f"recipe of bits = {grid.bits}."
        )
    point, offset = int(grid.zero_point[0]) + _shift(spec), _offset(int(grid.zero_point[0]), grid.bits)
    if not spec.low <= point <= spec.high or (spec.symmetric and point):
        raise ValueError(
            f"{where}: '{name}' has offset {offset}, a zero point of {point}, which is not on the "
            f"recipe's grid {spec.low} to {spec.high}{' with zero point 0' if spec.symmetric else ''}."
        )


def _set(
    where: str, tensors: dict[str, tuple[FakeQuant, FakeQuant]], layer: FakeQuant, given: list[tuple[str, Grid]]
) -> None:
    """One layer's range from the entries of all its tensors."""
    if not layer.has_range:
        name, grid = given[0]
        own = _grid_of(tensors[name][1])
        if not np.isclose(own.scale[0], grid.scale[0], rtol=TOLERANCE) or own.zero_point[0] != grid.zero_point[0]:
            reason = "follows its input" if layer.follows else "is prescribed by its kernel"
            warn(
                f"{where}: '{name}' has scale {grid.scale[0]:.6g} and zero point {grid.zero_point[0]}; it {reason} "
                f"({own.scale[0]:.6g}, {own.zero_point[0]}), so the entry is left out."
            )
        return
    if isinstance(layer, HeadQuant):
        layer.take(given[0][1].bits)
    ranges = [range_of(grid.scale[0], int(grid.zero_point[0]) + _shift(layer.spec), layer.spec) for _, grid in given]
    if len(set(ranges)) > 1:
        names = ", ".join(name for name, _ in given)
        warn(f"{where}: {names} share one encoding on the device; it takes the widest range.")
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    # exact: neither rows that no sample looked up nor padding may widen what the file says
    for site in range(layer.sites):
        layer.set_range(site, low, high, exact=True)


def _compare(where: str, name: str, grid: Grid, layer: Compressed) -> None:
    """Warn where the file's scales are not those of the weights."""
    own = _kernel_grid(layer)
    if own is None:
        return
    if own.scale.size != grid.scale.size or own.bits != grid.bits:
        warn(
            f"{where}: '{name}' has {grid.scale.size} scales of {grid.bits} bits; the recipe gives {own.scale.size} of "
            f"{own.bits} bits, computed from the weights, and those are used."
        )
        return
    # relative, as scales of channels differ by orders of magnitude
    difference = float(np.max(np.abs(grid.scale / own.scale - 1.0)))
    if difference > TOLERANCE:
        warn(
            f"{where}: '{name}' has scales up to {difference:.2%} away from those of the model's weights, which are "
            "used. Were the encodings made from other weights?"
        )

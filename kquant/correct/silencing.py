"""Silence: channels that next to nothing depends on get zero codes at their readers, and leave the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kquant.calibration.data import gather
from kquant.correct.options import check_option
from kquant.exact.quiet import Quiet, quiet_channels
from kquant.exact.sums import sums_of
from kquant.graph.given_model import check_keras
from kquant.graph.graph import run
from kquant.masking.kernel_sites import Site, sites
from kquant.tflite.lowering import lower
from kquant.views.quantized_model import forget_graphs, read
from kquant.views.recipe_steps import step_done

HALF = 0.5  # of a code: with less no code of a reader moves by more than one
SAMPLES = 64


def silence(
    qmodel: keras.Model,
    data: Any = None,
    *,
    codes: float = HALF,
    sqnr_db: float | None = None,
    limit: int | None = SAMPLES,
    verbose: bool = True,
) -> keras.Model:
    """Zero the codes that read channels of which next to nothing depends; `kquant.export` leaves the channels out then.

    In place: changes `qmodel` and returns it.

    What a channel adds to the output of each reader is bounded for all inputs by interval arithmetic over codes:
    `u_o sum_c max |w+_oc (high_c - z) + w-_oc (low_c - z)|` codes of output o, over all silenced channels c, with
    `u_o = s_in s_o / s_out` (`kquant.exact.quiet`). Without `sqnr_db` that stays below `codes` for every output: with
    half a code no code of a reader moves by more than one, whatever the input is. With `sqnr_db` channels go in the
    order of that bound, as many as the noise of the model's outputs on the data allows.

    Float weights stay as they are, as after AdaRound: what is set are the codes. Steps that choose codes anew
    (`sequential-mse`, `adaround`) come before this one.

    Args:
        qmodel: what `kquant.quantize` returned, calibrated or trained.
        data: representative samples, see `kquant.calibrate`; needed for `sqnr_db`, and else to tell what changed.
        codes: bound, in codes of a reader's output.
        sqnr_db: power of each output over that of its change, in dB, at least; `codes` is left out of account then.
        limit: compare this many samples, the first ones.
        verbose: print what went.

    Returns:
        `qmodel`.

    Raises:
        ValueError: not a quantized model, no range yet, a bound that is not above 0, or `sqnr_db` without data.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
        >>> model.layers[1].kernel.assign(model.layers[1].kernel * np.float32(8 * [[1e-4]])) is None
        False
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 4), "float32"), verbose=False)
        >>> q = kquant.silence(q, np.ones((64, 4), "float32"), verbose=False)
    """
    check_keras(qmodel, "silence")
    check_option("silence: ", "codes", codes)
    check_option("silence: ", "sqnr_db", sqnr_db)
    if sqnr_db is not None and data is None:
        raise ValueError(f"silence: the noise is measured; give data with sqnr_db={sqnr_db}, or leave it out.")
    lowered = lower(qmodel, shrink=False)
    kernels = {f"{site.holder.layer.name}/{site.path}": site for site in sites(qmodel) if site.holder.takes("rounding")}

    def able(op: Any) -> bool:
        sums = sums_of(op)
        site = None if sums is None or sums.depthwise else kernels.get(sums.weights.name)
        return sums is not None and site is not None and _is_that(site, sums.codes)

    silent = quiet_channels(lowered.program, able, codes if sqnr_db is None else math.inf)
    x = None if data is None else gather(qmodel, data, limit)
    before = None if x is None else _outputs(qmodel, x)
    if sqnr_db is not None and x is not None and before is not None:
        silent = silent[: _most(qmodel, kernels, silent, (x, before), sqnr_db)]
    _set(qmodel, kernels, silent)
    if verbose:
        noise = "" if x is None or before is None else f", outputs at {_noise(before, _outputs(qmodel, x)):.1f} dB"
        worst = max((quiet.codes for quiet in silent), default=0.0)
        print(f"silence: {sum(q.channels for q in silent)} channels, at most {worst:.2g} codes each{noise}")
    return step_done(qmodel, "silence")


def _codes(site: Site) -> np.ndarray:
    """int64, like the kernel."""
    layer = site.holder
    scale = np.asarray(layer.scale_of(layer.weights_as_used()), np.float64)
    return np.rint(np.asarray(site.on_grid, np.float64) / scale).astype(np.int64)


def _is_that(site: Site, codes: np.ndarray) -> bool:
    """Whether a kernel of the file, [outputs, positions, inputs], is this one, as far as its input channels go."""
    axis = site.geometry.input_axis
    if axis is None or site.shape[axis] != codes.shape[-1]:
        return False
    own = np.abs(np.moveaxis(_codes(site), axis, -1).reshape(-1, codes.shape[-1])).sum(axis=0)
    return np.array_equal(own, np.abs(codes).sum(axis=(0, 1)))


def _set(qmodel: keras.Model, kernels: dict[str, Site], silent: Sequence[Quiet]) -> None:
    """Zero codes where these channels are read."""
    places: dict[str, list[int]] = {}
    for name, channel in (place for quiet in silent for place in quiet.reads):
        places.setdefault(name, []).append(channel)
    for name, channels in places.items():
        site = kernels[name]
        codes = np.moveaxis(_codes(site), site.geometry.input_axis or 0, 0)
        codes[channels] = 0
        site.holder.round_by(np.moveaxis(codes, 0, site.geometry.input_axis or 0))
    forget_graphs(qmodel)


def _most(
    qmodel: keras.Model,
    kernels: dict[str, Site],
    silent: Sequence[Quiet],
    known: tuple[list[np.ndarray], list[np.ndarray]],
    sqnr_db: float,
) -> int:
    """How many of them, from the first on, the noise allows; the model comes back as it was."""
    (x, before), held = known, {name: _codes(site) for name, site in kernels.items()}
    fewest, most = 0, len(silent)
    while fewest < most:
        tried = (fewest + most + 1) // 2
        _set(qmodel, kernels, silent[:tried])
        enough = _noise(before, _outputs(qmodel, x)) >= sqnr_db
        fewest, most = (tried, most) if enough else (fewest, tried - 1)
        for name in {name for quiet in silent[:tried] for name, _ in quiet.reads}:
            kernels[name].holder.round_by(held[name])
    return fewest


def _outputs(qmodel: keras.Model, x: list[np.ndarray]) -> list[np.ndarray]:
    graph = read(qmodel)
    values = run(graph, keras.tree.pack_sequence_as(graph.inputs, x))
    return [np.asarray(values[id(t)], np.float64) for t in graph.output_tensors]


def _noise(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    """SQNR in dB of the worst output; inf where nothing changed."""
    pairs = ((float(np.mean(a**2)), float(np.mean((a - b) ** 2))) for a, b in zip(before, after, strict=True))
    return min(math.inf if not noise else 10 * math.log10(max(power, 1e-300) / noise) for power, noise in pairs)

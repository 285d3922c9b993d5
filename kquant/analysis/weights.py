"""What became of a layer's weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from kquant.analysis.results import WeightReport
from kquant.analysis.sqnr import Noise
from kquant.core.spec import SMALLEST_CHANNEL
from kquant.layers.kernel import Holder, Kernel

GRID_BINS = 32  # of a histogram, for each half of the grid
FARTHEST = 3.0  # ends of the grid that a histogram reaches


def weight_report(layer: Holder) -> WeightReport:
    """Range, spread over channels, clipping and SQNR of a layer's weights.

    Args:
        layer: that holds them, see `layers.kernel`; what counts as a channel is what shares a scale in the file.
    """
    kernels = layer.kernels()
    real = [row for kernel in kernels for row in kernel.rows]
    grid = [row for kernel in kernels for row in kernel.rows_on_grid]
    clipped = sum(_clipped(kernel) for kernel in kernels) / sum(row.size for row in real)
    spec = layer.spec
    bits, per_axis = 16 if spec is None else spec.bits, spec is not None and spec.per_axis
    counts, edges = _histogram([_over_grid(kernel) for kernel in kernels])
    return replace(_report(real, grid, bits, per_axis, clipped), counts=counts, edges=edges)


def _over_grid(kernel: Kernel) -> np.ndarray:
    """float64[n], the weights over the last code of their channel; over the largest one where nothing has codes."""
    rows, scale, spec = kernel.rows, kernel.scale, kernel.holder.spec
    if scale is None or spec is None:
        return np.ravel(rows / (np.abs(rows).max(initial=0.0) or 1.0))
    ends = spec.high * np.asarray(scale, np.float64)
    over = rows / np.where(ends > 0.0, ends, 1.0)
    # half a step beyond still rounds to the last code; a hair inside, where a bin ends that does not hold its end
    kept = np.abs(over) <= 1.0 + 0.5 / spec.high
    return np.ravel(np.where(kept, np.clip(over, -1.0, 1.0 - 1e-12), over))


def _histogram(values: list[np.ndarray]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Counts, and the ends of the bins; the ends of the grid are among them, and what lies far off is in the last."""
    reach = max(float(np.abs(v).max(initial=1.0)) for v in values)
    number = math.ceil(min(reach, FARTHEST) * GRID_BINS)
    edges = np.arange(-number, number + 1) / GRID_BINS
    counts = sum(np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] for v in values)
    return tuple(int(n) for n in np.atleast_1d(counts)), tuple(edges.tolist())


def _clipped(kernel: Kernel) -> int:
    """Weights that lie more than half a step beyond the last code."""
    scale, spec = kernel.scale, kernel.holder.spec
    if scale is None or spec is None:
        return 0
    # half a step beyond still rounds to the last code, with an error like that of any other
    return int(np.sum(np.abs(kernel.rows) > (spec.high + 0.5) * np.asarray(scale, np.float64)))


def _report(real: Any, grid: Any, bits: int, per_axis: bool, clipped: float) -> WeightReport:
    noise = Noise(
        sum(float(np.sum(row**2)) for row in real),
        sum(float(np.sum((a - b) ** 2)) for a, b in zip(real, grid, strict=True)),
    )
    return WeightReport(
        bits=bits,
        per_axis=per_axis,
        low=min(float(row.min()) for row in real),
        high=max(float(row.max()) for row in real),
        spread=spread_of(np.array([np.abs(row).max() for row in real])),
        sqnr_db=noise.db,
        clipped=clipped,
        channels=tuple(float(np.abs(row).max()) for row in real),
    )


def spread_of(reaches: np.ndarray) -> float:
    """Largest over smallest, those left out that are dead: 2^-16 of the largest, as `encode_weights` sees them.

    Args:
        reaches: float64[channels], `max|w|` of each.

    Example:
        >>> spread_of(np.array([0.0, 0.5, 2.0]))
        4.0
    """
    live = reaches[reaches > reaches.max(initial=0.0) * SMALLEST_CHANNEL]
    return float(live.max() / live.min()) if live.size else 1.0

"""What became of a layer's weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from kquant.analysis.results import WeightReport
from kquant.analysis.sqnr import Noise
from kquant.core.spec import SMALLEST_CHANNEL
from kquant.layers.kernel import Holder, Kernel


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
    return _report(real, grid, 16 if spec is None else spec.bits, spec is not None and spec.per_axis, clipped)


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

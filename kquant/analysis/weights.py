"""What became of a layer's weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from kquant.analysis.results import WeightReport
from kquant.analysis.sqnr import Noise
from kquant.analysis.units import Weighted
from kquant.core.spec import SMALLEST_CHANNEL, QuantSpec
from kquant.layers.nodes import QuantizedLSTM

GATES = 4


def weight_report(layer: Weighted) -> WeightReport:
    """Range, spread over channels, clipping and SQNR of a layer's weights.

    Args:
        layer: a `Compressed`, or a `QuantizedLSTM`, whose channels are the four gates of its two matrices.
    """
    if isinstance(layer, QuantizedLSTM):
        pairs = [_by_gate(w, layer._on_grid(w)) for w in layer._floats()[:2]]
        real = [row for floats, _ in pairs for row in floats]
        grid = [row for _, quantized in pairs for row in quantized]
        return _report(real, grid, layer.spec.bits, False, 0.0)
    weights = layer.weights_as_used().numpy().astype(np.float64)
    spec = layer.spec
    real, grid = (_rows(w, layer.channel_axes) for w in (weights, np.asarray(layer.weights_on_grid(), np.float64)))
    clipped = 0.0
    if spec is not None and spec.has_codes:
        scale = np.asarray(layer.scale_of(layer.weights_as_used()), np.float64)
        clipped = float(np.mean(np.abs(weights) > _end(spec) * scale))
    return _report(real, grid, 16 if spec is None else spec.bits, spec is not None and spec.per_axis, clipped)


def _end(spec: QuantSpec) -> float:
    """Steps from 0 to where a weight is more than half a step beyond the last code."""
    return spec.high + 0.5


def _rows(weights: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """float64[channels, n]."""
    kept = [axis % weights.ndim for axis in axes]
    rest = [axis for axis in range(weights.ndim) if axis not in kept]
    return weights.transpose(*kept, *rest).reshape(int(np.prod([weights.shape[a] for a in kept])), -1)


def _by_gate(real: Any, grid: Any) -> tuple[Any, Any]:
    floats, quantized = (np.asarray(w, np.float64).reshape(w.shape[0], GATES, -1).swapaxes(0, 1) for w in (real, grid))
    return floats, quantized


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

"""`kquant.on_ray.scan_sparsity`: each layer pruned alone, and judged, by a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant.on_ray.candidates import Evaluate
from kquant.on_ray.shipping import finished, packed, sent, started, unpacked
from kquant.search.sparsity_scan import LEVELS, Measured, Scan, SparsityScan, Wanted, scanned, wanted_of


class Layers:
    """What `kquant.scan_sparsity` asks for."""

    def __init__(self, ray: Any, evaluate: Evaluate | None) -> None:
        self.ray, self.evaluate = ray, evaluate

    def measured(
        self, model: keras.Model, inputs: list[np.ndarray] | None, wanted: Wanted, layers: Sequence[str]
    ) -> Iterator[Measured]:
        """See `search.sparsity_scan`."""
        shared = sent(self.ray, "on_ray.scan_sparsity", model=packed(model), data=inputs, evaluate=self.evaluate)
        calls = [(*shared, replace(wanted, folder=None), layer) for layer in layers]
        return (row for _, row in finished(self.ray, _measured, calls))


def scan_sparsity(
    model: keras.Model,
    data: Any = None,
    *,
    evaluate: Evaluate | None = None,
    sparsities: Sequence[float] = LEVELS,
    sparsity: float = 0.5,
    structure: str | tuple[int, int] = "unstructured",
    depthwise: bool = False,
    protect: str | Sequence[str] = (),
    limit: int | None = 256,
    folder: str | Path | None = None,
    verbose: bool = True,
) -> SparsityScan:
    """`kquant.scan_sparsity`, with each layer measured by a task of Ray.

    Reads: `model` stays as it was.

    Args:
        model: see `kquant.scan_sparsity`.
        data: likewise; the samples that are used are sent to each process once.
        evaluate: likewise; sent along with what it refers to.
        sparsities: likewise.
        sparsity: likewise.
        structure: likewise.
        depthwise: likewise.
        protect: likewise.
        limit: likewise.
        folder: likewise.
        verbose: likewise.

    Returns:
        What `kquant.scan_sparsity` returns, to the bit.

    Raises:
        ValueError: see `kquant.scan_sparsity`; Ray is not installed; or an `evaluate` that does not pickle.

    Example:
        >>> kquant.on_ray.scan_sparsity(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
        Traceback (most recent call last):
        ValueError: scan_sparsity: give data or evaluate, one of the two.
    """
    wanted = wanted_of(sparsities, sparsity, structure, depthwise, protect, limit, folder)
    wanted.check(data, evaluate)
    return scanned(model, data, evaluate, wanted, Layers(started(), evaluate), verbose=verbose)


def _measured(
    content: bytes, inputs: list[np.ndarray] | None, evaluate: Evaluate | None, wanted: Wanted, layer: str
) -> Measured:
    """A task: one layer."""
    return Scan(unpacked(content), inputs, evaluate, wanted).measured(layer)

"""Weights refitted by least squares, so that a layer of a changed model gives what it gave before.

    W', b' = argmin sum over rows of |y - (x W + b)|^2 + ridge * |W - W0|^2

y is the layer's output in the old model (before its activation), x what it reads in the new one. Layers are refitted in
the model's order, so that each makes up for what those before it have lost. Rows are positions picked at random.

Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv:1707.06168, section 3.1,
equation 1, and section 3.2 (y from the original model, x from the one pruned so far).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kquant.calibration.data import batches_of, gather
from kquant.core.progress import tqdm
from kquant.graph.graph import Graph, Node
from kquant.ops.rows import as_matrix, from_matrix
from kquant.shrink.narrow import kernel_of
from kquant.views.flat_copy import read
from kquant.views.quantized_model import tensors

RIDGE = 1e-6  # of the mean square of what a layer reads
ROWS = 10  # for each weight of an output channel, and never less than
LEAST_ROWS = 20_000
BATCH = 64
SAMPLES = 1024
FEW = 256  # for each of many candidates
SEED = 0


@dataclass(frozen=True, eq=False)
class Job:
    """A layer to be refitted.

    Attributes:
        name: of the layer in the new model.
        old: the calls of the old layer, in the old graph.
        makes: int[m], the old layer's output channels that the new one has.
        norm: name of the new model's batch norm behind it, which takes up a bias where the layer has none.
    """

    name: str
    old: tuple[Node, ...]
    makes: np.ndarray
    norm: str | None


def refit(
    old: Graph, new: keras.Model, jobs: Sequence[Job], data: Any, *, samples: int = SAMPLES, verbose: bool
) -> None:
    """Refit layers of a new model in place; nothing changes where it is interrupted.

    Args:
        old: graph of the model whose outputs are wanted.
        new: the model, flat and plain.
        jobs: in the new model's order.
        data: representative samples, see `kquant.calibrate`.
        samples: the first of them are read.
        verbose: show a bar.

    Raises:
        ValueError: no data, or data that do not fit.
    """
    if not jobs:
        return
    read_in = gather(new, data, samples)
    picks = np.random.default_rng(SEED)
    graph, before = read(new), new.get_weights()
    places: list[list[np.ndarray]] = [[] for _ in jobs]
    wanted: list[list[np.ndarray]] = [[] for _ in jobs]
    inputs = [call.inputs[0] for job in jobs for call in job.old]
    parts = -(-len(read_in[0]) // BATCH)
    for values in tensors(old, inputs, batches_of(new, read_in, BATCH), quantized=True):
        given = iter(values)
        for number, job in enumerate(jobs):
            for call in job.old:
                rows, matrix, bias = _as_rows(call.op, next(given))
                # So many rows of each batch and call that they make up the wanted number together.
                count = -(-max(LEAST_ROWS, ROWS * len(matrix)) // (parts * len(job.old)))
                place = picks.choice(len(rows), min(count, len(rows)), replace=False)
                # Kept, as the same positions are read in the new model, batch by batch in this order.
                places[number].append(place)
                # Before the activation, which least squares cannot fit through; of the channels that the new layer
                # still has.
                wanted[number].append((rows[place] @ matrix + bias)[:, job.makes])
    try:
        for job, place, y in tqdm(
            list(zip(jobs, places, wanted, strict=True)), desc="reconstruct", unit="layer", disable=not verbose
        ):
            _set(new, job, _read_sums(graph, job, batches_of(new, read_in, BATCH), place, y))
    # Also on Ctrl-C, which is no `Exception`.
    except BaseException:
        new.set_weights(before)
        raise


@dataclass
class Sums:
    """All that least squares needs of its rows, part after part.

    Attributes:
        x, y: float64[k] and float64[m], sums.
        xx, xy: float64[k, k] and float64[k, m], of products.
        count: of rows.
    """

    x: Any = 0.0
    y: Any = 0.0
    xx: Any = 0.0
    xy: Any = 0.0
    count: int = 0

    def add(self, x: np.ndarray, y: np.ndarray) -> Sums:
        """Take float[n, k] and float[n, m] in."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        self.x, self.y = self.x + x.sum(axis=0), self.y + y.sum(axis=0)
        self.xx, self.xy = self.xx + x.T @ x, self.xy + x.T @ y
        self.count += len(x)
        return self


def least_squares(
    sums: Sums, start: np.ndarray, *, intercept: bool, ridge: float = RIDGE
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias that are nearest to given outputs, and to given weights where the outputs do not tell.

        W = W0 + (X'X + r I)^-1 (X'Y - X'X W0),    b = mean(y - x W),    r = ridge * trace(X'X) / k

    X and Y less their means where there is an intercept.

    Args:
        sums: of the rows of X and Y.
        start: float[k, m], W0.
        intercept: fit a bias too; zeros are returned without.
        ridge: of the mean square of x.

    Returns:
        float64[k, m] and float64[m].

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 3))
        >>> weights, bias = least_squares(Sums().add(x, x @ np.eye(3) + 2.0), np.zeros((3, 3)), intercept=True)
        >>> np.allclose(weights, np.eye(3), atol=1e-4), bias.round(3).tolist()
        (True, [2.0, 2.0, 2.0])

    Source: Hoerl and Kennard, "Ridge Regression", Technometrics 12 (1970), shrinking towards W0 instead of 0.
    """
    start, mean_x, mean_y = np.asarray(start, np.float64), sums.x / sums.count, sums.y / sums.count
    gram, cross = sums.xx / sums.count, sums.xy / sums.count
    # Least squares with a bias is that without one, of what varies about the means.
    if intercept:
        gram, cross = gram - np.outer(mean_x, mean_x), cross - np.outer(mean_x, mean_y)
    # In units of the mean square of an input, whatever its scale; and above 0 where all inputs are.
    ridged = gram + max(ridge * np.trace(gram) / len(gram), np.finfo(np.float64).tiny) * np.eye(len(gram))
    weights = start + np.linalg.lstsq(ridged, cross - gram @ start, rcond=None)[0]
    return weights, (mean_y - mean_x @ weights if intercept else np.zeros(len(mean_y)))


def can_refit(op: Any) -> bool:
    """A layer whose sums over its input's channels are written as one product of matrices."""
    weights = kernel_of(op)
    if weights is None or weights.rows is None or getattr(op, "padding", "valid") == "causal":
        return False
    return getattr(op, "groups", 1) == 1 and len(weights.channel_axes) == 1 and weights.width is not None


def _as_rows(op: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a layer's kernel is multiplied by, the kernel and the bias as matrices."""
    weights = kernel_of(op)
    if weights is None or weights.rows is None:
        raise ValueError(f"{op.name} ({type(op).__name__}): it is not written as a product of matrices.")
    kernel = getattr(op, weights.kernel).numpy().astype(np.float64)
    bias = getattr(op, weights.bias or "", None)
    # [rows, groups, k]: layers that are refitted have one group.
    rows = np.asarray(weights.rows(op, keras.ops.convert_to_tensor(x, "float32")))[:, 0]
    matrix = as_matrix(kernel, 1, kernel.shape[-1])[0]
    return rows, matrix, np.zeros(kernel.shape[-1]) if bias is None else bias.numpy().astype(np.float64)


def _read_sums(
    graph: Graph, job: Job, batches: Iterator[Any], places: list[np.ndarray], wanted: list[np.ndarray]
) -> Sums:
    """What the new layer reads at these places, with what it should give there."""
    calls = [node for node in graph.nodes if node.op.name == job.name]
    sums, chosen = Sums(), iter(zip(places, wanted, strict=True))
    for values in tensors(graph, [call.inputs[0] for call in calls], batches, quantized=True):
        for call, x in zip(calls, values, strict=True):
            place, y = next(chosen)
            sums.add(_as_rows(call.op, x)[0][place], y)
    return sums


def _set(new: keras.Model, job: Job, sums: Sums) -> None:
    """Fit the layer, and put its bias where there is one."""
    layer = new.get_layer(job.name)
    weights: Any = kernel_of(layer)  # a layer of another kind is no `Job`
    norm = None if job.norm is None else new.get_layer(job.norm)
    bias = getattr(layer, weights.bias or "", None)
    kernel = getattr(layer, weights.kernel)
    shape = tuple(kernel.shape)
    start = as_matrix(kernel.numpy().astype(np.float64), 1, shape[-1])[0]
    matrix, shift = least_squares(sums, start, intercept=bias is not None or norm is not None)
    kernel.assign(from_matrix(matrix[None], shape).astype(np.float32))
    if bias is not None:
        bias.assign(shift.astype(np.float32))
    elif norm is not None:
        # A norm takes its mean away: to add to what it reads is to lower that.
        norm.moving_mean.assign_sub(shift.astype(np.float32))

"""Rounding of one matrix that weighs the error of the layer's output against bits in the file.

    least   sum_m a_m (q_m s_m - w_m)' G (q_m s_m - w_m)  +  strength * sum_km b(q_km)

G are the second moments of the layer's inputs about their mean (a bias takes the mean), a_m what an error of output m
is worth to the model's output (`output_worth`), b the bits of a code (`code_bits`). Inputs are taken one after the
other: each weight takes the code of the least cost among all, and the weights behind it move to make up for its error:

    q = argmin_q  a (w - q s)^2 / u_kk^2 + strength b(q),   w_j -= (w - q s) u_kj / u_kk  for j > k,   u' u = G^-1

Source: Frantar et al., "GPTQ", arXiv:2210.17323, section 3.3, for what the weights behind do; to choose by rate and
distortion is Chou, Lookabaugh, Gray, "Entropy-Constrained Vector Quantization", IEEE Trans. ASSP 37 (1989), (4).

The step follows from the strength. Of fine uniform steps the error is D = a g s^2 / 12, and the rate R falls by a bit
where s doubles; dD/dR = -strength gives s = sqrt(6 strength / (ln 2 a g)), with the error g that a weight makes by
itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kquant.correct.code_bits import code_bits
from kquant.correct.compensation import compensated, factor

PASSES = 3  # roundings, each with the bits of the one before
FINE = 6.0 / np.log(2.0)


@dataclass(frozen=True, eq=False)
class Moments:
    """Of what a layer reads and of what it should make, over rows.

    Attributes:
        gram: float64[g, k, k], E[x x'], about the mean where a bias makes up for it.
        cross: float64[g, k, m], E[x (y - w' x)'] likewise: what outputs of the float model have that the quantized
            model's inputs do not give.
        mean: float64[g, k], E[x].
        target: float64[g, m], E[y], without the bias.
    """

    gram: np.ndarray
    cross: np.ndarray
    mean: np.ndarray
    target: np.ndarray

    def error(self, wrong: np.ndarray) -> np.ndarray:
        """Mean squared error of each output, less what no weight changes: float64[g, m] of float64[g, k, m]."""
        return np.sum(wrong * (self.gram @ wrong - 2.0 * self.cross), axis=1)


@dataclass(frozen=True, eq=False)
class Task:
    """A matrix to round.

    Attributes:
        weights: float64[g, k, m].
        worth: float64[g, m], see above.
        low, high: of the codes.
        per_channel: a scale for each output; else one for all.
        free: bool[g, k, m], weights that a mask has not taken out.
    """

    weights: np.ndarray
    worth: np.ndarray
    low: int
    high: int
    per_channel: bool
    free: np.ndarray


@dataclass(frozen=True, eq=False)
class Chosen:
    """Codes of a matrix.

    Attributes:
        codes: float64[g, k, m].
        scale: float64[g, 1, m].
        bits: of each code, float64[2 n + 1] for -n .. n.
    """

    codes: np.ndarray
    scale: np.ndarray
    bits: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """float64[g, k, m]."""
        return self.codes * self.scale

    @property
    def size_bits(self) -> float:
        """Of all codes, each with its share of the tables."""
        return float(np.sum(self.bits[(self.codes + len(self.bits) // 2).astype(np.int64)]))


@dataclass(frozen=True, eq=False)
class Solver:
    """The moments of a task as the rounding uses them, for one damping.

    Attributes:
        task: with the weights that give the least error (of the float model's outputs, from these inputs).
        upper: float64[g, k, k], u above.
    """

    task: Task
    upper: np.ndarray

    @property
    def alone(self) -> np.ndarray:
        """float64[g]: g above, of the inputs that count: dead ones would make any step seem fine enough."""
        own = np.diagonal(self.upper, axis1=1, axis2=2)
        single = own**-2.0
        return np.sum(single**2, axis=1) / np.sum(single, axis=1)


def solver(task: Task, moments: Moments, damping: float) -> Solver:
    """Damped: `G + damping diag(G)`, so that what few rows say of many inputs is not taken for the truth.

    Args:
        task: with the float weights.
        moments: of its rows.
        damping: share of the diagonal that is added.
    """
    # About their mean, inputs that never change have moments of rounding errors only, of either sign.
    own = np.maximum(np.diagonal(moments.gram, axis1=1, axis2=2), 0.0)
    power = np.mean(own + 1e-4 * moments.mean**2, axis=1, keepdims=True)
    floor = np.maximum(power * 1e-6, 1e-20)
    damped = moments.gram.copy()
    index = np.arange(own.shape[1])
    damped[:, index, index] += damping * own + floor
    inverse = np.linalg.inv(damped)
    weights = task.weights + np.where(task.free, inverse @ moments.cross, 0.0)
    return Solver(replace(task, weights=weights), factor(inverse))


def step_of(made: Solver, strength: float, share: float = 1.0) -> np.ndarray:
    """The scales that suit a strength: float64[g, 1, m]."""
    task = made.task
    widest = np.abs(task.weights).max(axis=1)
    wanted = share * np.sqrt(FINE * strength / np.maximum(task.worth * made.alone[:, None], 1e-300))
    if not task.per_channel:
        # of the layer: as much error as the single ones would make together
        widest = np.full_like(widest, widest.max())
        worth = np.mean(task.worth * made.alone[:, None])
        wanted = np.full_like(widest, share * np.sqrt(FINE * strength / max(worth, 1e-300)))
    # never finer than all codes reach, nor so wide that no weight reaches half a step
    lowest = np.where(widest > 0.0, widest, 1.0) / task.high
    return np.clip(wanted, lowest, 2.5 * task.high * lowest)[:, None, :]


def round_short(made: Solver, strength: float, scale: np.ndarray, passes: int = PASSES) -> Chosen:
    """The codes of least cost, as the head of this file says.

    Args:
        made: the task, and the moments.
        strength: error that one bit is worth.
        scale: float64[g, 1, m].
        passes: roundings; each counts bits by the codes of the one before.
    """
    task = made.task
    codes = np.clip(np.rint(task.weights / scale), task.low, task.high)
    for _ in range(passes):
        bits = bits_of(codes, task)
        # the alphabet: what occurs, and the neighbours between
        least, most = int(codes.min()), int(codes.max())
        known = np.arange(min(least, 0), max(most, 0) + 1)
        codes = _one_by_one(made, strength * bits[known - task.low], known.astype(np.float64), scale)
    return Chosen(codes, scale, bits_of(codes, task))


def bits_of(codes: np.ndarray, task: Task) -> np.ndarray:
    """`code_bits` of all codes from the lowest on."""
    counts = np.bincount((codes - task.low).astype(np.int64).ravel(), minlength=task.high - task.low + 1)
    return code_bits(counts.astype(np.float64))


def _one_by_one(made: Solver, price: np.ndarray, known: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Codes of all inputs in order; what is still to come makes up for each error."""
    task, steps = made.task, scale[:, 0, :]
    codes = np.empty_like(task.weights)

    def rounded(k: int, left: np.ndarray) -> np.ndarray:
        own = made.upper[:, k, k][:, None]
        cost = (task.worth * (steps / own) ** 2)[..., None] * ((left / steps)[..., None] - known) ** 2 + price
        codes[:, k] = np.where(task.free[:, k], known[np.argmin(cost, axis=-1)], 0.0)
        return codes[:, k] * steps

    compensated(task.weights, made.upper, rounded)
    return codes

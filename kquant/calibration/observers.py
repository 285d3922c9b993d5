"""How a range is chosen from what calibration saw of a tensor (`tensor_statistics`): an observer is one function.

Plain NumPy, so that a command refuses a wrong name before TensorFlow has loaded. A range for 4 or 8 bits trades what it
clips for what it rounds, so an observer is told the grid:

    minmax, moving-average   clip nothing (of the averaged batch)
    sound                    of waveforms: the range of 16-bit samples
    percentile               clips a fixed share
    mse                      the least mean squared error of clipping and rounding together
    sqnr                     the same, an error of clipping counted three times (AIMET's "tf_enhanced")
    kl                       the least loss of information (TensorRT's entropy calibration)
    cross-entropy            logits: the least change of the softmax behind them
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kquant.calibration.tensor_statistics import Statistics, histogram
from kquant.core.messages import check_known
from kquant.core.quant_spec import QuantSpec

Observer = Callable[[Statistics, QuantSpec], tuple[float, float]]
CLIPPED_COUNTS = 3.0  # AIMET's gamma: how much more an error of clipping costs than one of rounding
# Shares of the seen range that are tried, from all of it to a thousandth.
SHARES = 2.0 ** (-np.arange(81, dtype=np.float64) / 8)
# Of weights: shares of the largest one, and how much an error of the channel's sum counts. Chosen by the accuracy of
# ResNet8, keyword spotting and visual wake words in 4 bits: against 5, 0 gives -5.4, +0.2 and -10 points, 20 gives
# +2.9, -0.2 and -2.
WEIGHT_SHARES = np.linspace(1.0, 0.3, 36)
MEAN_COUNTS = 5.0
# Samples from -1 to 1 that a resampler has made a little larger; the least that whole numbers of 16 bits reach.
SOUND_BITS, OVERSHOOT, QUIET_SOUND = 16, 1.05, 64.0
SMOOTHING = 1e-4  # of a histogram, so that no bin of it is impossible
ROUNDS = 3  # in which the two ends of a range are moved in turn


def minmax(statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
    """The smallest and the largest value of all.

    Example:
        >>> minmax(Statistics(np.float32([-1, -2]), np.float32([3, 1])), QuantSpec())
        (-2.0, 3.0)
    """
    return float(statistics.lows.min()), float(statistics.highs.max())


def is_sound(reach: float, spec: QuantSpec) -> bool:
    """Whether samples that reach so far lie within -1 .. 1, or are whole numbers of 16 bits, and the grid has them.

    Example:
        >>> [is_sound(reach, QuantSpec(16, symmetric=True)) for reach in (0.3, 1.2, 20000.0, 50000.0)]
        [True, False, True, False]
    """
    return spec.bits >= SOUND_BITS and (reach <= OVERSHOOT or QUIET_SOUND <= reach <= OVERSHOOT * spec.high)


def sound(statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
    """The range of 16-bit sound whose samples are told as -1 .. 1, or as whole numbers; else all that was seen.

    A range that follows the loudest clip would have the application rescale what its microphone gives.

    Example:
        >>> sound(Statistics(np.float32([-0.2]), np.float32([0.3])), QuantSpec(16, symmetric=True))
        (-0.999969482421875, 0.999969482421875)
    """
    low, high = minmax(statistics, spec)
    reach = max(-low, high)
    if not is_sound(reach, spec):
        return low, high
    whole = float(spec.high) if reach >= QUIET_SOUND else spec.high / (spec.high + 1)
    return -whole, whole


def moving_average(statistics: Statistics, spec: QuantSpec, momentum: float = 0.9) -> tuple[float, float]:
    """Exponential moving average of the batches' extremes, divided by `1 - momentum^n`.

    Source: the zero debias of Adam, Kingma and Ba, arXiv:1412.6980, section 3.

    Example:
        >>> moving_average(Statistics(np.float32([-1, -1]), np.float32([2, 2])), QuantSpec())
        (-1.0, 2.0)
    """
    n = statistics.lows.size
    weights = momentum ** np.arange(n - 1, -1, -1, dtype=np.float64)
    weights /= weights.sum()  # equals (1 - momentum) * momentum^k / (1 - momentum^n)
    return float(weights @ statistics.lows.astype(np.float64)), float(weights @ statistics.highs.astype(np.float64))


def percentile(statistics: Statistics, spec: QuantSpec, percent: float = 99.99) -> tuple[float, float]:
    """The range that holds `percent` of the values, half of the rest beyond each end; to a bin of the histogram.

    Example:
        >>> values = np.linspace(0, 1, 10001, dtype="float32")
        >>> s = histogram(values)
        >>> percentile(Statistics(values[:1], values[-1:], s.counts, s.reach), QuantSpec(), 90.0)
        (0.048828125, 0.951171875)
    """
    edges = np.linspace(-statistics.reach, statistics.reach, statistics.counts.size + 1)
    below = np.cumsum(statistics.counts)
    total = int(below[-1])
    left_out = int(total * (100.0 - percent) / 200.0)  # values beyond each end
    # the lower edge of the bin with the first value that is kept, the upper edge of the one with the last
    low = edges[int(np.searchsorted(below, left_out, side="right"))]
    high = edges[int(np.searchsorted(below, total - left_out)) + 1]
    # bins are wider than what they hold: no further than the extremes
    return max(float(low), float(statistics.lows.min())), min(float(high), float(statistics.highs.max()))


def mse(statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
    """The range with the least mean squared error of `quantize(x) - x`.

    Example:
        >>> values = np.random.default_rng(0).normal(size=20000).astype("float32")
        >>> s, ends = histogram(values), (values.min(keepdims=True), values.max(keepdims=True))
        >>> low, high = mse(Statistics(*ends, s.counts, s.reach), QuantSpec(4))
        >>> bool(2.0 < high < values.max())
        True
    """
    return _least(statistics, spec, lambda low, high: squared_error(statistics, spec, low, high, 1.0))


def sqnr(statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
    """Like `mse`, an error of clipping counted three times. Source: AIMET's "tf_enhanced" analyzer.

    Example:
        >>> values = np.random.default_rng(0).normal(size=20000).astype("float32")
        >>> s, ends = histogram(values), (values.min(keepdims=True), values.max(keepdims=True))
        >>> seen = Statistics(*ends, s.counts, s.reach)
        >>> mse(seen, QuantSpec(4))[1] < sqnr(seen, QuantSpec(4))[1]
        True
    """
    return _least(statistics, spec, lambda low, high: squared_error(statistics, spec, low, high, CLIPPED_COUNTS))


def kl(statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
    """The range that keeps most information: the least divergence `sum p log(p / q)`.

    p is the histogram with what lies outside moved to the ends of the range, q the inside with the bins of one code
    spread evenly over those that hold anything. More codes than bins (16 bits) leave nothing to choose: min-max.
    Source: S. Migacz, "8-bit inference with TensorRT", 2017.

    Example:
        >>> values = np.random.default_rng(0).normal(size=20000).astype("float32")
        >>> s = histogram(values)
        >>> ends = values.min(keepdims=True), values.max(keepdims=True)
        >>> bool(2.0 < kl(Statistics(*ends, s.counts, s.reach), QuantSpec())[1] <= values.max())
        True
    """
    if 2**spec.bits >= statistics.counts.size:
        return minmax(statistics, spec)
    return _least(statistics, spec, lambda low, high: _divergence(statistics, spec, low, high))


def cross_entropy(statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
    """The range of logits whose quantized softmax is nearest to the float one: the least `-sum p log(q)`.

    Source: Nagel et al., "A White Paper on Neural Network Quantization", arXiv:2106.08295, section 3.1.

    Example:
        >>> logits = np.random.default_rng(0).normal(size=(64, 10)).astype("float32")
        >>> s = Statistics(logits.min(keepdims=True)[0], logits.max(keepdims=True)[0], samples=logits)
        >>> bool(cross_entropy(s, QuantSpec())[1] <= logits.max())
        True
    """
    logits = statistics.samples.astype(np.float64)
    wanted = _softmax(logits)

    def cost(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        costs = []
        # one by one: a grid for all candidates would hold 81 copies of the logits
        for scale, first, last in zip(*_grid(spec, low, high), strict=True):
            # 0 is a code, so multiples of the scale are the codes' values
            quantized = np.clip(np.rint(logits / scale) * scale, first, last)
            costs.append(-np.mean(np.sum(wanted * _log_softmax(quantized), axis=-1)))
        return np.array(costs)

    return _least(statistics, spec, cost)


Cost = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _least(statistics: Statistics, spec: QuantSpec, cost: Cost) -> tuple[float, float]:
    """The cheapest of the ranges inside the seen one; its two ends move in turn. Of equal ones the widest."""
    # the grid holds 0 whatever is seen: candidates are shares of the way from 0 to each end
    low, high = min(float(statistics.lows.min()), 0.0), max(float(statistics.highs.max()), 0.0)
    if spec.symmetric:
        low, high = -max(-low, high), max(-low, high)
        return _first(cost(low * SHARES, high * SHARES), low * SHARES, high * SHARES)
    lows, highs = low * SHARES, high * SHARES
    best = _first(cost(lows, highs), lows, highs)  # both together first: a good start for either
    # 81 candidates for one end, then for the other: all pairs of them would be 6,561, each a pass over the histogram
    for _ in range(ROUNDS):
        before = best
        best = _first(cost(lows, np.full_like(lows, best[1])), lows, np.full_like(lows, best[1]))
        best = _first(cost(np.full_like(highs, best[0]), highs), np.full_like(highs, best[0]), highs)
        if best == before:
            break
    return best


def _first(costs: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> tuple[float, float]:
    # the first of equal ones, and the shares begin with the whole range
    i = int(np.argmin(costs))
    return float(lows[i]), float(highs[i])


def _grid(spec: QuantSpec, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale, smallest and largest value of each candidate's grid, as `core.spec.encode_range` makes it."""
    if spec.symmetric:
        # a range of zeros has no width to divide by
        scale = np.maximum(np.maximum(-low, high) / spec.high, 1e-30)
        return scale, spec.low * scale, spec.high * scale
    scale = np.maximum((high - low) / (spec.high - spec.low), 1e-30)
    zero_point = np.clip(np.rint(spec.low - low / scale), spec.low, spec.high)
    return scale, (spec.low - zero_point) * scale, (spec.high - zero_point) * scale


def squared_error(s: Statistics, spec: QuantSpec, low: np.ndarray, high: np.ndarray, clipped: float) -> np.ndarray:
    """Mean squared error of each candidate, values taken to lie evenly inside their bin.

    The squared error of a value has an integral in closed form: with t moved to c inside the grid, whose steps have
    width w, and r = c - w round(c / w), it is `w^3 / 12 round(c / w) + r^3 / 3 + (t - c)^3 / 3`.
    """
    edges = np.linspace(-s.reach, s.reach, s.counts.size + 1)
    used = np.flatnonzero(s.counts)
    # a histogram reaches to a power of two on both sides: the empty bins at its ends are most of it behind a ReLU
    edges, counts = edges[used[0] : used[-1] + 2], s.counts[used[0] : used[-1] + 1]
    scale, first, last = (v[:, None] for v in _grid(spec, low, high))
    inside = np.clip(edges, first, last)
    # the integral from 0 to each edge, odd in it; the difference of two edges is that over a bin
    steps = np.rint(inside / scale)
    rounding = scale**3 / 12 * steps + (inside - steps * scale) ** 3 / 3
    clipping = (edges - inside) ** 3 / 3
    density = counts / (counts.sum() * (edges[1] - edges[0]))
    return np.diff(rounding + clipped * clipping, axis=1) @ density


def _divergence(s: Statistics, spec: QuantSpec, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of each candidate."""
    edges = np.linspace(-s.reach, s.reach, s.counts.size + 1)
    centers, counts = (edges[1:] + edges[:-1]) / 2, s.counts.astype(np.float64)
    divergences = []
    for scale, first, last in zip(*_grid(spec, low, high), strict=True):
        inside = (centers >= first - scale / 2) & (centers <= last + scale / 2)
        if inside.sum() < 2**spec.bits or not counts[inside].any():  # with a code for each bin nothing is lost
            divergences.append(np.inf)
            continue
        # what is clipped is found at the ends in p, and not in q: that is what makes clipping cost something
        p = np.where(inside, counts, 0.0)
        where = np.flatnonzero(inside)
        p[where[0]] += counts[: where[0]].sum()
        p[where[-1]] += counts[where[-1] + 1 :].sum()
        codes = np.rint((centers[inside] - first) / scale).astype(int)
        filled = counts[inside] > 0
        total = np.bincount(codes, counts[inside])
        bins = np.bincount(codes, filled)
        # a bin that nothing fell into stays empty in q too: else data with gaps would look lost on any grid
        q = np.where(filled, total[codes] / np.maximum(bins[codes], 1), 0.0)
        p, q = p[inside] / p.sum(), (1.0 - SMOOTHING) * q / q.sum() + SMOOTHING / q.size
        divergences.append(float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0]))))
    return np.array(divergences)


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(_log_softmax(logits))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


OBSERVERS: dict[str, Observer] = {
    "minmax": minmax,
    "moving-average": moving_average,
    "sound": sound,
    "percentile": percentile,
    "mse": mse,
    "sqnr": sqnr,
    "kl": kl,
    "cross-entropy": cross_entropy,
}
NEED_HISTOGRAM = frozenset({"percentile", "mse", "sqnr", "kl"})
NEED_SAMPLES = frozenset({"cross-entropy"})


def reach_of_weights(name: str, weights: np.ndarray, spec: QuantSpec, channel_axes: tuple[int, ...]) -> np.ndarray:
    """The range of a kernel by an observer, for each channel or for the whole of it.

    "mse" and "sqnr" look at every weight: `sum e^2 + 5 (sum e)^2` with e the errors of a channel is the least. The
    second term is what the errors do together to inputs that have a mean (behind a ReLU) and to neighbouring inputs,
    which are alike; without it, clipping moves the sums of 4-bit convolutions.

    Args:
        name: of the observer; weights are one batch, so that "moving-average" is "minmax".
        weights: float32[...].
        spec: symmetric grid; `per_axis` gives one range for each index over `channel_axes`.
        channel_axes: the axes that number the output channels together.

    Returns:
        float32 with size 1 on every other axis, 0 where all weights are.

    Raises:
        ValueError: an observer that does not exist, or one of logits.

    Example:
        >>> weights = np.random.default_rng(0).normal(size=(512, 2)).astype("float32")
        >>> reach = reach_of_weights("mse", weights, QuantSpec(4, symmetric=True, narrow=True, per_axis=True), (1,))
        >>> bool(np.all(reach < np.abs(weights).max(0)))
        True
    """
    check_for_weights(name)
    observer = find(name)
    kept = {axis % weights.ndim for axis in channel_axes} if spec.per_axis else set()
    # rows[channel, its weights]
    order = [*sorted(kept), *(axis for axis in range(weights.ndim) if axis not in kept)]
    shape = [n if axis in kept else 1 for axis, n in enumerate(weights.shape)]
    rows = weights.transpose(order).reshape(int(np.prod(shape)), -1)
    if name in ("mse", "sqnr"):
        return _exact_reach(rows, spec, CLIPPED_COUNTS if name == "sqnr" else 1.0).reshape(shape)
    reaches = [max(-low, high) for low, high in (observer(_of_row(row), spec) for row in rows)]
    return np.asarray(reaches, np.float32).reshape(shape)


def _exact_reach(rows: np.ndarray, spec: QuantSpec, clipped: float) -> np.ndarray:
    """The reach of the least error for each row of weights; of equal ones the widest."""
    rows = rows.astype(np.float64)
    widest = np.abs(rows).max(axis=1)
    best, least = widest, np.full(len(rows), np.inf)
    for share in WEIGHT_SHARES:
        # for all channels at once: they differ in width, and are tried at the same shares of it
        scale = np.maximum(widest * share / spec.high, 1e-30)[:, None]
        error = np.clip(np.rint(rows / scale), spec.low, spec.high) * scale - rows
        counts = np.where(np.abs(rows) > scale * spec.high, clipped, 1.0)
        cost = (counts * error**2).sum(axis=1) + MEAN_COUNTS * error.sum(axis=1) ** 2
        best, least = np.where(cost < least, widest * share, best), np.minimum(cost, least)
    return np.asarray(best, np.float32)


def check_for_weights(name: str) -> None:
    """Refuse observers that do not look at weights.

    Raises:
        ValueError: unknown, or one of logits.
    """
    find(name)
    if name in NEED_SAMPLES:
        able = ", ".join(other for other in OBSERVERS if other not in NEED_SAMPLES)
        raise ValueError(f"observer '{name}' looks at logits; for weights there are {able}.")


def _of_row(row: np.ndarray) -> Statistics:
    counted = histogram(row)
    return Statistics(row.min(keepdims=True), row.max(keepdims=True), counted.counts, counted.reach)


def find(name: str) -> Observer:
    """The observer of that name.

    Raises:
        ValueError: unknown; names the nearest.
    """
    check_known(f"observer '{name}' does not exist", name, OBSERVERS)
    return OBSERVERS[name]

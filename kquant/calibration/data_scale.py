"""Data of another scale than a model was made for: pixels of 0..255 where it knows 0..1, and the other way round.

A warning, and no error: the numbers are well defined all the same, and a test of saturated or dark samples wants them.
All verbs that take data look at the first batch with this one function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kquant.core.messages import warn
from kquant.ops.constant import MINUS_INFINITY

# Of the values that are not 0, how many may lie outside: distributions shift, and percentiles clip, but not a quarter.
MOST_OUTSIDE = 0.25
# Values this far below the range would have 2.5 codes of an 8-bit grid.
NARROW = 1 / 100
# Samples that are all so dark, or quiet, by chance; fewer must miss the range by one of the usual factors.
ENOUGH_SAMPLES = 8
# What data are divided by on the way into a model: images of 8 bits, and sound of 16.
FACTORS = (255.0, 127.5, 32768.0)
CHANNELS = (1, 3, 4)  # of images
LEVELS, BRIGHT = 256, 127.0  # of pixels, of which a few dark images reach no more than half
SOME_VALUES = 1 << 16  # of a batch, that tell how its values are distributed


@dataclass(frozen=True)
class Expected:
    """What is known of the values of one input.

    Attributes:
        name: of the input.
        low, high: its values lie between them.
        source: how that is known, for the message: "which calibration saw".
        two_sided: the range reaches below 0 because values do, and not because its grid is symmetric.
        padding: ends of the values that mark a masked step where all its features lie between them.
    """

    name: str
    low: float
    high: float
    source: str
    two_sided: bool = True
    padding: tuple[tuple[float, float], ...] = ()

    def without_padding(self, values: np.ndarray) -> np.ndarray:
        """The values with 0 at masked steps."""
        for least, most in self.padding if values.ndim > 1 else ():
            masked = np.all((values >= least) & (values <= most), axis=-1, keepdims=True)
            values = np.where(masked, np.zeros_like(values), values)
        return values


def warn_of_scale(where: str, values: np.ndarray, expected: Expected) -> None:
    """Warn of a batch that is scaled in another way.

    Args:
        where: what the message starts with, the name of the input in it.
        values: float[samples, ...], the first batch.
        expected: what the model knows.
    """
    said = doubt(expected.without_padding(values), expected)
    if said is not None:
        warn(f"{where}: {said}")


def doubt(values: np.ndarray, expected: Expected) -> str | None:
    """Why a batch seems to be scaled in another way than the model's data; None where it does not.

    Zeros, data with a single value, two values (masks, one-hot vectors), and one dark sample raise none.

    Args:
        values: float[samples, ...].
        expected: what the model knows.

    Example:
        >>> pixels, known = np.arange(0.0, 256.0).reshape(1, 16, 16), Expected("x", 0.0, 1.0, "which calibration saw")
        >>> doubt(pixels / 255.0, known), doubt(pixels, known)[:59]
        (None, '100 % of the values that are not 0 lie outside 0 to 1, whic')
    """
    least, most = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    reach, given = max(-expected.low, expected.high), max(-least, most)
    if reach <= 0.0 or given == 0.0 or values.min() == values.max():
        return None
    # from all over the batch: neighbours are alike, and the first sample may be dark
    few = values.reshape(-1)[:: max(1, values.size // SOME_VALUES)].astype(np.float64)
    step = (expected.high - expected.low) / 255.0
    outside = (few < expected.low - step / 2) | (few > expected.high + step / 2)
    # zeros lie in every range: padding and background would hide that all the rest lies outside
    share = float(outside.sum()) / max(1, np.count_nonzero(few))
    ends = f"{values.min():.4g} to {values.max():.4g}"
    known = f"{expected.low:.4g} to {expected.high:.4g}, {expected.source}"
    if share > MOST_OUTSIDE and not _hides(few[outside]):
        return (
            f"{100 * share:.0f} % of the values that are not 0 lie outside {known}: they go from {ends}."
            f"{_forgot(given / reach, values)} Give data that are scaled as those that the model was made with."
        )
    distinct = np.unique(few).size
    # 8-bit pixels of a dark image are no more different values than its brightest pixel has levels
    finer = distinct > given / reach * 255.0 + 2.0
    if given < NARROW * reach and finer and (len(values) >= ENOUGH_SAMPLES or _factor(reach / given) is not None):
        factor = _factor(reach / given)
        once = f" Were they divided by {factor:g} once too often?" if factor is not None else ""
        return (
            f"all values lie within {ends}, of {known}: that is {(most - least) / step:.1f} steps of a grid of 256 "
            f"codes.{once} Give data that are scaled as those that the model was made with."
        )
    # enough of them that values of a centred input would hardly all be positive by chance
    both = expected.two_sided and expected.low <= -0.5 * expected.high
    if both and float(values.min()) == 0.0 and distinct > 2 and len(values) > 1 and values.size >= SOME_VALUES >> 8:
        return (
            f"no value lies below 0, they go from {ends}; the model knows {known}. Did you forget to centre them, as "
            "in x / 127.5 - 1, or to subtract the mean?"
        )
    return None


def are_pixels(values: np.ndarray) -> bool:
    """True for images whose values go from 0 to 255 in levels of 8 bits.

    Args:
        values: of one input, with the axis of samples.

    Example:
        >>> image = np.arange(0.0, 256.0).reshape(1, 16, 16, 1)
        >>> are_pixels(image), are_pixels(image / 255), are_pixels(image.reshape(1, 256)), are_pixels(image + 0.5)
        (True, False, False, False)
    """
    if values.ndim != 4 or values.shape[-1] not in CHANNELS or not BRIGHT < values.max(initial=0.0) <= LEVELS - 1:
        return False
    return float(values.min()) >= 0.0 and np.unique(values).size <= LEVELS


def _hides(outside: np.ndarray) -> bool:
    """True for the minus infinity of a mask that is added to logits: one number, and very low."""
    return float(outside.max()) <= MINUS_INFINITY and float(outside.min()) == float(outside.max())


def _factor(ratio: float) -> float | None:
    """The usual factor that comes near to this ratio; the brightest pixel of a few images may be some levels short."""
    return next((f for f in FACTORS if f / 1.2 <= ratio <= f * 1.2), None)


def _forgot(ratio: float, values: np.ndarray) -> str:
    if values.dtype == np.int8:
        return " Are they codes of a grid? Real numbers are wanted; they are quantized here."
    factor = _factor(ratio)
    return "" if factor is None else f" Did you forget / {factor:g}?"

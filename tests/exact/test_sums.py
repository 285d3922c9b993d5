"""Codes that sums become, told without the kernels' arithmetic: it never says otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from kquant.arithmetic import ROUNDING_INT16, Grid, requantize
from kquant.exact.sums import LIMITS, _steps

INT8, INT16 = ("double", "single", "float"), ("double", "reduced", "real", "single")


@pytest.mark.parametrize("largest", [0.4, 120.0, 3e4], ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["8 bits", "16 bits"])
def test_no_kernel_rounds_beyond_the_steps_that_are_told(wide: bool, largest: float) -> None:
    """Above all next to halves, of multipliers from one that vanishes up to some above 1."""
    rng, count = np.random.default_rng(0), 4000
    unit = 2.0 ** rng.uniform(-36, 2, count)
    unit[::5] = np.nextafter(2.0 ** rng.integers(-8, 2, unit[::5].size), 0.0)  # the mantissa that 15 bits hold worst
    middle = rng.uniform(-largest, largest, count)
    middle[::2] = np.floor(middle[::2]) + 0.5
    middle[::3] = np.floor(middle[::3]) + rng.choice([0.25, 0.75], middle[::3].size)  # where rounding twice differs
    sums = np.clip(np.rint(middle / unit) + rng.integers(-3, 4, count), -(2.0**31) + 1, 2.0**31 - 1)
    least, most = _steps(sums, sums, unit)
    out = Grid(tf.constant(1.0), tf.constant(0.0), -(2**15), 2**15 - 1)
    for rounding in INT16 if wide else INT8:
        whole = tf.constant(sums.astype(np.int64))
        made = requantize(whole, tf.constant(unit), out, rounding, None).numpy()
        assert np.all((np.clip(least, out.low, out.high) <= made) & (made <= np.clip(most, out.low, out.high))), (
            rounding
        )
    sure = least == most
    assert sure.mean() > (0.0 if largest > 1e3 else 0.05)  # it says something


@pytest.mark.parametrize("rounding", sorted({r for table in ROUNDING_INT16.values() for r in table.values()}))
def test_a_multiplier_that_vanishes_gives_zero(rounding: str) -> None:
    """Sums of 48 bits meet multipliers that the kernels' shifts cannot hold."""
    rng, count = np.random.default_rng(1), 4000
    unit = 2.0 ** rng.uniform(-44, -28, count)
    sums = np.rint(rng.uniform(-300.0, 300.0, count) / unit)
    unit, sums = (values[np.abs(sums) < LIMITS["int16"]] for values in (unit, sums))
    least, most = _steps(sums, sums, unit)
    out = Grid(tf.constant(1.0), tf.constant(0.0), -(2**15), 2**15 - 1)
    made = requantize(tf.constant(sums.astype(np.int64)), tf.constant(unit), out, rounding, None).numpy()
    assert np.all((least <= made) & (made <= most))

"""Sigmoid and tanh on 16-bit fixed-point numbers, as the LSTM kernels compute them: one table of 65536 codes each.

    LiteRT   gemmlowp's logistic and tanh on int16 (fixedpoint/fixedpoint.h, called from
             tflite/kernels/internal/reference/portable_tensor_utils.cc)
    TFLM     linear interpolation in 256 values of the sigmoid (tensorflow/lite/kernels/internal/reference/integer_ops/
             logistic.h and tanh.h)

A number in Qm has m integer bits and 15 - m fraction bits. Results are Q0: `code / 2**15`. Everything here is numpy and
runs once; a kernel looks its codes up.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from kquant.arithmetic.transcendental import (
    EXP_MINUS_EIGHTH,
    EXP_MINUS_POWERS,
    ONE_THIRD,
    Q2_48_OVER_17,
    Q2_MINUS_32_OVER_17,
)

GATE_BITS = 3  # integer bits of what enters a gate: the kernels prescribe the scale 2^-12
CELL_BITS = (0, 6)  # integer bits that a cell state may have: LiteRT's kernel has no tanh for more

_ALL = np.arange(-32768, 32768, dtype=np.int64)
_MAX = 32767
# TFLM's table of sigmoid(i / 24) in 1/65536 is rounded to nearest but for these, which are one above.
_ONE_ABOVE = (
    "4 8 12 14 15 16 17 19 20 21 22 25 27 28 29 30 31 33 34 35 37 39 40 41 43 44 45 46 49 50 54 62 63 64 66 82 86 93 "
    "100 103 112 116 135 255"
)


@cache
def sigmoid_table(runtime: str) -> np.ndarray:
    """Sigmoid in Q0 of every Q3 code: int16[65536], entry `code + 32768`."""
    return (_logistic(_ALL) if runtime == "litert" else _interpolated_logistic(_ALL)).astype(np.int16)


@cache
def tanh_table(runtime: str, integer_bits: int) -> np.ndarray:
    """Tanh in Q0 of every code in Q<integer_bits>: int16[65536], entry `code + 32768`."""
    made = _tanh(_ALL, integer_bits) if runtime == "litert" else _interpolated_tanh(_ALL, integer_bits)
    return made.astype(np.int16)


@cache
def cell_tanh_tables(runtime: str) -> np.ndarray:
    """`tanh_table` for every number of integer bits that a cell state may have: int16[7, 65536]."""
    return np.stack([tanh_table(runtime, bits) for bits in range(CELL_BITS[0], CELL_BITS[1] + 1)])


def _wrapped(x: np.ndarray) -> np.ndarray:
    """As int16 holds it: plain sums and differences of gemmlowp wrap around."""
    return (x + 32768) % 65536 - 32768


def _constant(raw: int) -> int:
    """A 32-bit constant of gemmlowp in 16 bits."""
    return (raw + (1 << 15)) >> 16


def _product(a: np.ndarray | int, b: np.ndarray | int) -> np.ndarray:
    """SaturatingRoundingDoublingHighMul of int16: `floor(a * b / 2**15 + 1/2)`."""
    # The minimum is for -1 times -1, the one product that 16 bits do not hold.
    return np.minimum((np.asarray(a) * b + (1 << 14)) >> 15, _MAX)


def _divided(x: np.ndarray, exponent: int) -> np.ndarray:
    """`x / 2**exponent`, halves away from zero (RoundingDivideByPOT)."""
    return np.where(x >= 0, (x + (1 << (exponent - 1))) >> exponent, -((-x + (1 << (exponent - 1))) >> exponent))


def _raised(x: np.ndarray, exponent: int) -> np.ndarray:
    """`x * 2**exponent`, saturated (SaturatingRoundingMultiplyByPOT)."""
    return np.clip(x << exponent, -32768, _MAX)


def _exp_of_negative(x: np.ndarray, bits: int) -> np.ndarray:
    """exp(x) in Q0 of `x <= 0` in Q<bits>: a polynomial on (-1/4, 0], one factor for each bit of the rest."""
    fraction_bits = 15 - bits
    quarter = 1 << (fraction_bits - 2)
    rest = (x & (quarter - 1)) - quarter
    result = _exp_on_last_quarter(_raised(rest, bits))
    multiple = _wrapped(rest - x)
    for power, factor in EXP_MINUS_POWERS.items():
        if bits > power:
            there = (multiple & (1 << (fraction_bits + power))) != 0
            result = np.where(there, _product(result, _constant(factor)), result)
    # The factors end with exp(-16), so gemmlowp calls everything below -32 zero: a clamp that fewer bits do not need.
    if bits > 5:
        result = np.where(x < _constant(-(1 << (36 - bits))), 0, result)
    # exp(0) is 1, which Q0 does not hold: its largest number instead.
    return np.where(x == 0, _MAX, result)


def _exp_on_last_quarter(x: np.ndarray) -> np.ndarray:
    # x counts from -1/8, the middle of the quarter: ((x^4 / 4 + x^3) / 3 + x^2) / 2 + x is exp(x) - 1 to fourth order.
    x = _wrapped(x + (1 << 12))
    x2 = _product(x, x)
    x3 = _product(x2, x)
    x4_over_4 = _divided(_product(x2, x2), 2)
    tail = _divided(_wrapped(_product(_wrapped(x4_over_4 + x3), _constant(ONE_THIRD)) + x2), 1)
    e = _constant(EXP_MINUS_EIGHTH)
    return np.clip(e + _product(e, _wrapped(x + tail)), -32768, _MAX)


def _two_over_one_plus(x: np.ndarray) -> np.ndarray:
    """2 / (1 + x) in Q2 of x in [0, 1] in Q0, by three Newton steps."""
    # (1 + x) / 2 lies in [1/2, 1], where 48/17 - 32/17 d is the best straight line for 1 / d.
    half = (x + _MAX + 1) >> 1
    y = _constant(Q2_48_OVER_17) + _product(half, _constant(Q2_MINUS_32_OVER_17))
    for _ in range(3):
        error = _wrapped((1 << 13) - _product(half, y))
        y = _wrapped(y + _raised(_product(y, error), 2))
    return y


def _logistic(x: np.ndarray) -> np.ndarray:
    positive = _raised(_two_over_one_plus(_exp_of_negative(-np.abs(x), GATE_BITS)), 1)
    return np.where(x == 0, 1 << 14, np.where(x > 0, positive, _MAX - positive))


def _tanh(x: np.ndarray, bits: int) -> np.ndarray:
    # Read with one integer bit more, the same code is 2x: tanh(|x|) = (1 - exp(-2|x|)) / (1 + exp(-2|x|)).
    exponential = _exp_of_negative(-np.abs(x), bits + 1)
    magnitude = _raised(_wrapped(_two_over_one_plus(exponential) - (1 << 13)), 2)
    return np.sign(x) * magnitude


@cache
def _sigmoid_of_24ths() -> np.ndarray:
    """TFLM's 256 values of `sigmoid(i / 24)` in 1/65536."""
    values = np.rint(65536.0 / (1.0 + np.exp(-np.arange(256) / 24.0))).astype(np.int64)
    values[[int(i) for i in _ONE_ABOVE.split()]] += 1
    return values


def _between(magnitude: np.ndarray, bits: int, saturated: int) -> np.ndarray:
    """The table at `magnitude / 2**bits`, times `2**bits`, with straight lines between its values."""
    table, place = _sigmoid_of_24ths(), magnitude >> bits
    # The last of the 256 values has none behind it to draw a line to; `saturated` takes its place.
    first = np.minimum(place, 254)
    rest = magnitude & ((1 << bits) - 1)
    return np.where(place >= 255, saturated, (table[first] << bits) + rest * (table[first + 1] - table[first]))


def _interpolated_logistic(x: np.ndarray) -> np.ndarray:
    scaled = 3 * x
    # Q3 codes times 3 are in 1/12288, of which 512 make one step of 1/24.
    result = _between(np.abs(scaled), 9, 0x7FFF << 10)
    # sigmoid(-x) = 1 - sigmoid(x), with 1 being 2**25; the half less one mirrors the rounding, so it holds in codes.
    return np.where(scaled >= 0, result + (1 << 9), (1 << 25) - result + (1 << 9) - 1) >> 10


def _interpolated_tanh(x: np.ndarray, bits: int) -> np.ndarray:
    # TFLM's tanh reads Q3. tanh(x) = 2 sigmoid(2x) - 1, so one step of the table is 256 here, not 512.
    shift = bits - GATE_BITS
    scaled = 3 * x << shift if shift >= 0 else (3 * x + (1 << (-shift - 1))) >> -shift
    result = _between(np.abs(scaled), 8, 0xFFFF << 8)
    return np.where(scaled >= 0, result - (1 << 23) + (1 << 7), -result + (1 << 23) + (1 << 7) - 1) >> 8

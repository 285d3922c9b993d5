"""Spectrograms of sound: a convolution with windowed waves, then powers in bands and a table of their logarithm.

    waveform -> mirrored ends -> CONV_2D, 2 waves for each bin -> `Bands`, by the operators of `arithmetic.bands`

A frame of L samples times L x 2n weights is a discrete Fourier transform of any length; its n bins are those that a
band takes. The waveform and the waves have 16 bits whatever the recipe says (`Rule.wide`), and the waveform's scale is
that of 16-bit sound, so that the application hands over what its microphone gives.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.arithmetic import Grid
from kquant.arithmetic.bands import (
    HIGH,
    LARGEST_FINE,
    LEVELS,
    Weights,
    band_table,
    bins_in_bands,
    function_of,
    mel_matrix,
    root_digits,
    weights_for,
)
from kquant.core.program import Program, Ref
from kquant.core.spec import Encoding, QuantSpec
from kquant.graph.creation import without_random
from kquant.ops.border import refuse_channels_first
from kquant.ops.rule import Call, Make, Rule, example

layers = keras.layers
WIDE = QuantSpec(16, symmetric=True)
NARROW = QuantSpec(8, symmetric=True, narrow=True)
# 16-bit samples have no place in a float of 16 bits, nor have powers of whole numbers: whatever the policy.
FULL = "float32"
MEL = ("sampling_rate", "fft_length", "num_mel_bins", "min_freq", "max_freq")


@keras.saving.register_keras_serializable(package="kquant")
class Mirrored(keras.layers.Layer):
    """A sequence with its ends turned round in front of it and behind it, the end samples themselves left out.

    Example:
        >>> Mirrored(2, 1)(np.float32([1, 2, 3]).reshape(1, 3, 1)).numpy().ravel().tolist()
        [3.0, 2.0, 1.0, 2.0, 3.0, 2.0]
    """

    def __init__(self, before: int, after: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.before, self.after = int(before), int(after)

    def call(self, x: Any) -> Any:
        """Mirror."""
        return keras.ops.pad(x, [(0, 0), (self.before, self.after), (0, 0)], mode="reflect")

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Longer by both ends."""
        return input_shape[0], input_shape[1] + self.before + self.after, input_shape[2]

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "before": self.before, "after": self.after}


@keras.saving.register_keras_serializable(package="kquant")
class Bands(keras.layers.Layer):
    """A function of the powers of a spectrum, or of its magnitudes, summed over bands.

    Args:
        function: "power", "magnitude", "log" or "db": see `kquant.arithmetic.bands.function_of`.
        mel: the arguments of `bins_in_bands`; None takes each bin as a band.
        floor: the least power that the function is told.
        reference: dB of what counts as 0 dB.
        top: how far below the largest value of a sample the others may lie; None: as far as they do.
        exponent: 2.0, or 1.0 to sum magnitudes.

    Example:
        >>> Bands("magnitude")(np.float32([[3.0, 0.0, 4.0, 1.0]])).numpy().tolist()  # 3 + 4i, 0 + 1i
        [[5.0, 1.0]]
    """

    def __init__(
        self,
        function: str,
        mel: dict[str, Any] | None = None,
        floor: float = 1e-10,
        reference: float = 0.0,
        top: float | None = None,
        exponent: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        told = {"floor": float(floor), "reference": float(reference), "top": top, "exponent": float(exponent)}
        self.how = {"function": function, "mel": mel, **told}

    def call(self, x: Any) -> Any:
        """Apply it."""
        if keras.utils.is_keras_tensor(x):  # a plain model is made of this one, and Keras has no such layer
            return type(self).from_config(self.get_config())(x)
        real, imaginary = tf.split(x, 2, axis=-1)
        powers = tf.square(real) + tf.square(imaginary)
        if self.how["exponent"] == 1.0:
            powers = tf.sqrt(tf.maximum(powers, 1e-30))  # a root has no gradient at 0, which is what silence is
        if self.how["mel"] is not None:
            powers = tf.linalg.matmul(powers, bins_in_bands(**self.how["mel"])[1].astype(powers.dtype.as_numpy_dtype))
        y = function_of(powers, self.how)
        if self.how["top"] is None:
            return y
        largest = tf.reduce_max(y, axis=list(range(1, len(y.shape))), keepdims=True)
        return tf.maximum(y, largest - self.how["top"])

    def compute_output_spec(self, x: Any, *_: Any, **__: Any) -> keras.KerasTensor:
        """One value for each band."""
        mel = self.how["mel"]
        return keras.KerasTensor((*x.shape[:-1], x.shape[-1] // 2 if mel is None else mel["num_mel_bins"]), x.dtype)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), **self.how}


def waves_under(window: np.ndarray, fft_length: int, bins: np.ndarray) -> np.ndarray:
    """Kernel float32[taps, 1, 2 bins]: cosines, then negative sines, of these bins under the window."""
    turns = np.outer(np.arange(window.size), bins) * (2.0 * np.pi / fft_length)
    waves = np.concatenate([np.cos(turns), -np.sin(turns)], axis=1)
    return (waves * window[:, None])[:, None].astype(np.float32)


def numbers_of(window: Any, name: str) -> Any:
    """A window of numbers as a list, which a file keeps; a name or None as it is."""
    if window is None or isinstance(window, str):
        return window
    try:
        return np.asarray(window, np.float64).tolist()
    except (TypeError, ValueError):
        # what Keras reads in the place of an array of NumPy, which it saved as a dictionary
        raise ValueError(
            f"{name}: its window is no row of numbers. Received: {type(window).__name__}. Make the layer with a list "
            "(window.tolist()), which Keras keeps in a file, or set `layer.window` to one."
        ) from None


def window_of(op: Any) -> np.ndarray:
    """float64[fft_length], as Keras' `ops.stft` lays it: without a window it takes the whole transform."""
    if op.window is None:
        return np.ones(op.fft_length)
    length = int(op.sequence_length)
    if isinstance(op.window, str):
        # `tf.signal` makes the periodic form of an even length alone; one of an odd length is symmetric (window_ops.py)
        alpha, period = {"hann": 0.5, "hamming": 0.54}[op.window], max(length - length % 2, 1)
        window = alpha - (1.0 - alpha) * np.cos(2.0 * np.pi * np.arange(length) / period)
        window = np.ones(1) if length == 1 else window
    else:
        window = np.asarray(numbers_of(op.window, op.name), np.float64)
    before = (op.fft_length - length) // 2
    return np.pad(window, (before, op.fft_length - length - before))


def transform(kernel: np.ndarray, strides: int, padding: str, name: str, trainable: bool = False) -> Any:
    """A convolution over [samples, steps, 1] with this kernel, float32[taps, 1, filters]."""
    size, _, filters = kernel.shape
    layer: Any = layers.Conv1D(filters, size, strides=strides, padding=padding, use_bias=False, name=name, dtype=FULL)
    with without_random(layer):
        layer.build((None, None, 1))
    layer.kernel.assign(kernel)
    layer.trainable = trainable
    return layer


def refuse_waveform(where: str, x: Any) -> None:
    """Clips of no fixed length."""
    if len(x.shape) != 2 or x.shape[1] is None:
        raise ValueError(
            f"{where}expected a waveform [samples, length] of a fixed length. Received: {tuple(x.shape)}. Give the "
            "model's input its length, keras.Input((16000,)), and reshape [length, 1] before it."
        )


def refuse_exponent(where: str, op: Any) -> None:
    """What is neither magnitudes nor powers."""
    if op.mag_exp not in (1.0, 2.0):
        raise ValueError(
            f"{where}mag_exp={op.mag_exp}; the integers sum magnitudes or powers. Set mag_exp=1 or mag_exp=2."
        )


def _refuse_mel(op: Any, where: str, x: Any) -> None:
    refuse_waveform(where, x)
    refuse_exponent(where, op)
    if x.shape[1] <= op.fft_length // 2:
        raise ValueError(
            f"{where}{x.shape[1]} samples are fewer than the {op.fft_length // 2 + 1} that its mirrored ends take. "
            f"Take longer clips, or fft_length={2 * (x.shape[1] - 1)} at most."
        )
    if op.power_to_db and op.top_db <= 0:
        raise ValueError(f"{where}top_db={op.top_db} leaves one value. Set it above 0 (Keras' default is 80).")


def refuse_rate(op: Any, where: str) -> None:
    """Samples come at some rate, of which every frequency is a part."""
    if op.sampling_rate <= 0:
        raise ValueError(
            f"{where}sampling_rate={op.sampling_rate}. Set the samples per second that the model was trained with "
            "(16000 for most speech), and bands below half of it."
        )


def taken_bins(op: Any, where: str) -> np.ndarray:
    """The bins that the bands of a layer take; bands that cannot be are refused."""
    refuse_rate(op, where)
    if not 0 <= op.min_freq < op.max_freq <= op.sampling_rate / 2:
        raise ValueError(
            f"{where}bands from {op.min_freq} to {op.max_freq} Hz do not lie between 0 and half the sampling rate of "
            f"{op.sampling_rate} Hz. Set min_freq and max_freq, or sampling_rate."
        )
    empty = np.flatnonzero(mel_matrix(**mel_of(op)).max(axis=0) == 0.0)
    if empty.size:
        raise ValueError(
            f"{where}{empty.size} of its {op.num_mel_bins} bands (the first is {empty[0]}) hold no bin of "
            f"{op.fft_length} samples at {op.sampling_rate} Hz, and would be silent. Take fewer num_mel_bins, a longer "
            "fft_length or a higher min_freq."
        )
    first, matrix = bins_in_bands(**mel_of(op))
    return np.arange(first, first + matrix.shape[0])


def mel_of(op: Any) -> dict[str, Any]:
    """The arguments of `bins_in_bands`, of a layer."""
    return {key: float(v) if "freq" in key or "rate" in key else int(v) for key in MEL for v in (getattr(op, key),)}


def decibels(op: Any) -> dict[str, Any]:
    """What a layer tells of a power, as `Bands` takes it."""
    if not op.power_to_db:
        return {"function": "power", "exponent": op.mag_exp}
    floor, zero = float(op.min_power), max(abs(float(op.ref_power)), float(op.min_power))
    top = None if np.isinf(op.top_db) else float(op.top_db)
    return {"function": "db", "floor": floor, "reference": 10.0 * np.log10(zero), "top": top, "exponent": op.mag_exp}


def _mel_spectrogram(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    name, length, where = op.name, x.shape[1], f"{op.name} (MelSpectrogram): "
    _refuse_mel(op, where, x)
    window = window_of(op)
    taken = np.flatnonzero(window)
    kernel_ends = slice(int(taken[0]), int(taken[-1]) + 1)
    waves = waves_under(window, op.fft_length, taken_bins(op, where))[kernel_ends]
    # Keras mirrors half a transform at either end; samples there that the window leaves out are not read.
    half, stride = op.fft_length // 2, op.sequence_stride
    frames = (length + 2 * half - op.fft_length) // stride + 1
    before = half - kernel_ends.start
    after = (frames - 1) * stride + waves.shape[0] - before - length
    y = make("steps", lambda: layers.Reshape((length, 1), name=f"{name}_steps", dtype=FULL))(x)
    if before > 0 or after > 0:
        y = make("ends", lambda: Mirrored(max(before, 0), max(after, 0), name=f"{name}_ends", dtype=FULL))(y)
    if before < 0:
        y = make("begin", lambda: layers.Cropping1D((-before, 0), name=f"{name}_begin", dtype=FULL))(y)
    y = make("waves", lambda: transform(waves, stride, "valid", f"{name}_waves"))(y)
    if y.shape[1] != frames:
        y = make("frames", lambda: layers.Cropping1D((0, y.shape[1] - frames), name=f"{name}_frames", dtype=FULL))(y)
    y = make("bands", lambda: Bands(mel=mel_of(op), **decibels(op), name=name, dtype=FULL))(y)
    return make("turned", lambda: layers.Permute((2, 1), name=f"{name}_turned"))(y)


def _stft(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    refuse_channels_first(op)
    where, epsilon = f"{op.name} (STFTSpectrogram): ", keras.config.epsilon()
    if op.mode == "angle":
        raise ValueError(f"{where}mode='angle': no integer kernel computes an angle. Take 'log' or 'magnitude'.")
    if x.shape[-1] != 1 or x.shape[1] is None:
        raise ValueError(
            f"{where}expected one channel of a fixed length, [samples, length, 1]. Received: {tuple(x.shape)}. Give "
            "each channel a layer of its own, and the input its length."
        )
    sides = [getattr(op, f"{side}_kernel") for side in ("real", "imag") if hasattr(op, f"{side}_kernel")]
    kernel = np.concatenate([np.asarray(side) for side in sides], axis=-1)
    if op.mode == "psd":  # bins between the first and the last count twice, for those above half the rate
        twice = np.full(kernel.shape[-1] // 2, np.sqrt(2.0), np.float32)
        twice[[0, -1]] = 1.0
        kernel = kernel * np.concatenate([twice, twice])
    alone = op.mode in ("real", "imag", "stft")
    waves = op.name if alone and not op.expand_dims else f"{op.name}_waves"
    y = make(
        "waves", lambda: transform(kernel, op.frame_step or op.frame_length // 2, op.padding, waves, op.trainable)
    )(x)
    if not alone:
        # Keras bounds the power by epsilon, then the root again by it, which is less.
        kinds = {"psd": "power", "log": "log", "magnitude": "magnitude"}
        last = f"{op.name}_bins" if op.expand_dims else op.name
        y = make("bands", lambda: Bands(kinds[op.mode], floor=epsilon, name=last, dtype=FULL))(y)
    if op.expand_dims:
        y = make("image", lambda: layers.Reshape((*y.shape[1:], 1), name=op.name))(y)
    return y


def _lower_mirrored(program: Program, call: Call) -> None:
    """The ends are slices with a step of -1."""
    op, x, y = call.op, call.inputs[0], call.output
    parts, length = [x], x.shape[1]
    masks = dict.fromkeys(("ellipsisMask", "newAxisMask", "shrinkAxisMask", "offset"), 0)

    def turned(begin: int, end: int, name: str) -> Ref:
        bounds = ([0, begin, 0], [1, end, 1], [1, -1, 1])
        where = [program.constant(f"{name}_{i}", np.array(v, np.int32)) for i, v in enumerate(bounds)]
        mask = {"beginMask": 5, "endMask": 5 if end >= 0 else 7}
        out = program.value(name, (1, begin - end, x.shape[2]), x.encoding, x.dtype)
        return program.emit("STRIDED_SLICE", [x, *where], out, **masks, **mask)

    if op.before:
        parts.insert(0, turned(op.before, 0, f"{y.name}/before"))
    if op.after:
        parts.append(turned(length - 2, length - 2 - op.after, f"{y.name}/after"))
    program.emit("CONCATENATION", parts, y, axis=1, fusedActivationFunction="NONE")


class _Chain:
    """Operators of int32 without codes, and their way to codes and back."""

    def __init__(self, program: Program, name: str) -> None:
        self.program, self.name, self.count = program, name, 0

    def _new(self, shape: tuple[int, ...], encoding: Encoding | None, dtype: str) -> Ref:
        self.count += 1
        return self.program.value(f"{self.name}/{self.count}", shape, encoding, dtype)

    def whole(self, x: Ref) -> Ref:
        """The codes as int32."""
        types = {"inDataType": x.dtype.upper(), "outDataType": "INT32"}
        return self.program.emit("CAST", [x], self._new(x.shape, None, "int32"), **types)

    def __call__(self, code: str, a: Ref, b: Ref | int) -> Ref:
        """`a code b` in int32."""
        other = self.program.constant(f"{self.name}/number", np.array([b], np.int32)) if isinstance(b, int) else b
        options = {} if code in ("MAXIMUM", "MINIMUM") else {"fusedActivationFunction": "NONE"}
        return self.program.emit(code, [a, other], self._new(a.shape, None, "int32"), **options)

    def part(self, x: Ref, begin: int, size: int) -> Ref:
        """Channels of a tensor."""
        at = [0] * (len(x.shape) - 1)
        where = (np.array([*at, begin], np.int32), np.array([*x.shape[:-1], size], np.int32))
        bounds = [self.program.constant(f"{self.name}/part", v) for v in where]
        return self.program.emit("SLICE", [x, *bounds], self._new((*x.shape[:-1], size), x.encoding, x.dtype))

    def quantized(self, x: Ref, scale: float, zero_point: int, spec: QuantSpec) -> Ref:
        """QUANTIZE of int32 with a scale of 1."""
        x.encoding = _grid(1.0, WIDE)
        out = Encoding(np.array([scale], np.float32), np.array([zero_point]), spec)
        return self.program.emit("QUANTIZE", [x], self._new(x.shape, out, out.dtype))


def _grid(scale: float, spec: QuantSpec) -> Encoding:
    return Encoding(np.array([scale], np.float32), np.array([0]), spec)


def _lower(program: Program, call: Call) -> None:
    x, y, how = call.inputs[0], call.output, call.op.how
    chain, bins = _Chain(program, y.name), x.shape[-1] // 2
    weights = weights_for(how)
    squares = []
    for begin in (0, bins):
        codes = chain(
            "MAXIMUM", chain.whole(chain.part(x, begin, bins)), -32767
        )  # the square of -32768 is one too many
        squares.append(chain("MUL", codes, codes))
    powers = chain("ADD", *squares)
    if how["exponent"] == 1.0:
        squares = _lower_roots(program, chain, _lower_levels(chain, [powers] * 3))
        powers = chain("ADD", *squares)
    row = _lower_levels(
        chain, [powers] * 3 if weights is None else _lower_sums(program, chain, squares, powers, weights)
    )
    out = Grid(
        tf.constant(y.grid.scale[0]), tf.constant(np.float32(y.grid.zero_point[0])), y.grid.spec.low, y.grid.spec.high
    )
    unit = 1.0 if weights is None else weights.unit
    codes = np.asarray(band_table(how, unit, tf.constant(x.grid.scale[0]), out))
    table = program.codes(f"{y.name}/table", codes, y.grid)
    if how["top"] is None:
        program.emit("GATHER", [table, row], y, axis=0, batchDims=0)
        return
    told = program.emit("GATHER", [table, row], program.value(f"{y.name}/all", y.shape, y.grid), axis=0, batchDims=0)
    axes = program.constant(f"{y.name}/axes", np.arange(1, len(y.shape), dtype=np.int32))
    peak = program.value(f"{y.name}/largest", (1,) * len(y.shape), y.grid)
    program.emit("REDUCE_MAX", [told, axes], peak, keepDims=True)
    below = int(np.floor(np.float64(how["top"]) / np.float64(y.grid.scale[0]) + 0.5))
    held = chain("MAXIMUM", chain.whole(told), chain("SUB", chain.whole(peak), below))
    program.emit("CAST", [held], y, inDataType="INT32", outDataType="INT8")


def _lower_levels(chain: _Chain, sums: list[Ref]) -> Ref:
    """The rows of tables."""
    sums = [chain("MINIMUM", sums[0], LARGEST_FINE), *sums[1:]]
    levels = [chain.whole(chain.quantized(sums[which], 2.0**e, -128, QuantSpec())) for e, which in LEVELS]
    at = reduce(lambda a, b: chain("ADD", a, b), levels)
    return chain("ADD", at, 128 * len(LEVELS))  # levels begin at -128, rows at 0


def _lower_roots(program: Program, chain: _Chain, row: Ref) -> list[Ref]:
    """Magnitudes of bins: the lowest digit, and what the others are worth together."""
    parts = []
    for worth, digits in root_digits():
        name, one = f"{chain.name}/root{worth}", _grid(1.0, QuantSpec(symmetric=True))
        table = program.constant(f"{name}_table", digits, one)
        digit = program.emit("GATHER", [table, row], program.value(name, row.shape, one), axis=0, batchDims=0)
        parts.append(chain("MUL", chain.whole(digit), worth))
    return [parts[0], chain("ADD", *parts[1:])]


def _lower_sums(program: Program, chain: _Chain, squares: list[Ref], powers: Ref, weights: Weights) -> list[Ref]:
    """The three F of `arithmetic.bands`; one kernel tensor serves all of them."""
    name = chain.name
    high = chain.quantized(powers, float(HIGH), 0, WIDE)
    # SUB of TFLM takes no int32 with a scale, which QUANTIZE has given the powers: the two squares one by one
    rest = chain("SUB", squares[0], chain("MUL", chain.whole(high), HIGH))
    low = chain.quantized(chain("ADD", rest, squares[1]), 1.0, 0, WIDE)
    kernel = program.constant(
        f"{name}/bands", np.ascontiguousarray(weights.codes.T), _grid(float(weights.scale), NARROW)
    )

    def dense(x: Ref, step: float) -> Ref:
        shape = (*x.shape[:-1], weights.codes.shape[1])
        scale = float(x.grid.scale[0] * weights.scale)
        bias = program.constant(f"{name}/bias", np.zeros(shape[-1], np.int64), _grid(scale, WIDE))
        chain.count += 1
        out = program.value(f"{name}/{chain.count}", shape, _grid(step, WIDE))
        options = {"fusedActivationFunction": "NONE", "keepNumDims": len(shape) > 2}
        return chain.whole(program.emit("FULLY_CONNECTED", [x, kernel, bias], out, **options))

    left = dense(low, weights.unit)
    return [chain("ADD", chain("MUL", dense(high, step * weights.unit), step), left) for step in weights.steps]


def _speech(**changes: Any) -> Any:
    settings = {"fft_length": 64, "sequence_stride": 32, "sampling_rate": 8000, "num_mel_bins": 6, "min_freq": 100.0}
    return example(lambda: layers.MelSpectrogram(**{**settings, **changes}), shape=(256,))


def _frames(**changes: Any) -> Any:
    settings = {"frame_length": 32, "frame_step": 16, "fft_length": 32, "mode": "log"}
    return example(lambda: layers.STFTSpectrogram(**{**settings, **changes}), shape=(160, 1))


RULES = (
    Rule(
        layers=(layers.MelSpectrogram,),
        expand=_mel_spectrogram,
        examples=(
            _speech(),
            _speech(sequence_length=48, window="hamming", top_db=30.0, ref_power=0.5),
            _speech(power_to_db=False, window=None, sequence_stride=48),
            _speech(mag_exp=1.0),
        ),
    ),
    Rule(
        layers=(layers.STFTSpectrogram,),
        expand=_stft,
        examples=(
            _frames(),
            _frames(mode="magnitude", padding="same", window="hamming"),
            _frames(mode="psd", expand_dims=True),
            _frames(mode="stft", trainable=False),
        ),
    ),
    Rule(
        layers=(Mirrored,),
        operators=("STRIDED_SLICE", "CONCATENATION"),
        output="same",
        lower=_lower_mirrored,
        examples=(example(lambda: Mirrored(3, 2), shape=(9, 1)), example(lambda: Mirrored(0, 8), shape=(9, 2))),
    ),
    Rule(
        layers=(Bands,),
        operators=("QUANTIZE", "GATHER"),
        helpers=("SLICE", "CAST", "MUL", "ADD", "SUB", "MAXIMUM", "MINIMUM", "FULLY_CONNECTED", "REDUCE_MAX"),
        widths=(8,),
        wide=True,
        arithmetic=lambda node: ("BANDS", dict(node.op.how)),
        lower=_lower,
        examples=(
            example(lambda: Bands("magnitude", floor=1e-6), shape=(5, 8)),
            example(
                lambda: Bands("db", mel=dict(zip(MEL, (8000.0, 16, 3, 200.0, 4000.0), strict=True))), shape=(4, 14)
            ),
        ),
    ),
)

"""`MicroFrontend`: sound to features by TensorFlow Lite Micro's own signal operators, in the file and in training.

    waveform, int16  ->  WHILE over the frames: SLICE, RESHAPE, SignalWindow, SignalFftAutoScale, SignalRfft,
                         SignalEnergy, SignalFilterBank, SignalFilterBankSquareRoot,
                         SignalFilterBankSpectralSubtraction, SignalPCAN, SignalFilterBankLog, QUANTIZE, a row

A float model computes the same integers (`arithmetic.signal_steps`), so nothing changes when it is quantized, but for
the grid of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.arithmetic.signal_steps import bands_of, features, shifts
from kquant.arithmetic.signal_tables import (
    SMOOTHING_BITS,
    SUBTRACTION_BITS,
    WINDOW_BITS,
    gain_codes,
    hann_codes,
    has_room,
    share_codes,
)
from kquant.core.program import Operator, Program, Ref
from kquant.core.spec import Encoding, QuantSpec
from kquant.ops.loop_body import Body
from kquant.ops.rule import Call, Rule, example
from kquant.ops.spectrum import refuse_rate

WIDE = QuantSpec(16, symmetric=True)
SCALE = 64  # of the logarithms: six bits behind the point
SHORTEST, LONGEST = 64, 2048  # transforms of the library for microphones
INT16 = 7  # the schema's number of the type, which SignalRfft asks for


@keras.saving.register_keras_serializable(package="kquant")
class MicroFrontend(keras.layers.Layer):
    """Features of sound as TensorFlow Lite Micro's audio front end makes them: `ln` of noise-reduced mel bands.

    A frame is windowed (Hann), transformed, its powers are summed over `num_mel_bins` triangles on the mel scale, and
    of each band: root, less an estimate of the noise that frames before have made, times a gain that the estimate
    decides (PCAN, arXiv:1607.05666, equation 2), logarithm. All in the fixed point of the operators, in training too;
    there is nothing in it to train, and no gradient goes through it. The defaults are those of TFLM's `micro_speech`.

    The estimate of the noise begins with 0 at each clip. On a device that is a `Reset` of the interpreter before it.

    Args:
        sampling_rate: of the sound, Hz.
        sequence_length: of a frame, in samples: 33 to 2048.
        sequence_stride: from one frame to the next, in samples.
        fft_length: of the transform, a power of two from 64 to 2048; by default the next from `sequence_length` on.
        num_mel_bins: bands.
        min_freq: where the first begins, Hz.
        max_freq: where the last ends, Hz.
        noise_reduction: subtract the estimate of the noise.
        smoothing: the share of a frame in that estimate, of even and of odd bands.
        min_signal: the share of a band that is left of it in any case.
        pcan: weigh by the estimate.
        pcan_strength: the exponent of the gain.
        pcan_offset: what is added to the estimate.
        full_scale: what a sample of 32768 is worth in the model: 1.0, or 32768.0 where samples are whole numbers.
        padding: "valid", frames of samples alone; "causal", `sequence_length - sequence_stride` samples of silence
            before the first, so that a frame ends with each stride: what `kquant.export(streaming=True)` asks for.
            Frames shorter than a stride overlap none, and get no silence: "causal" is "valid" there.

    Input: float32[clips, samples], of a fixed length. Output: float32[clips, frames, num_mel_bins], where
    `frames = (samples - sequence_length) // sequence_stride + 1`; of "causal" `samples // sequence_stride`, where a
    frame is no shorter than a stride.

    Raises:
        ValueError: what the operators do not take, by the layer's name.

    Example:
        >>> front = kquant.MicroFrontend(name="front")
        >>> sound = 0.1 * np.sin(np.arange(16000) * 0.4)[None]
        >>> front(sound.astype("float32")).shape
        TensorShape([1, 49, 40])
    """

    def __init__(
        self,
        sampling_rate: int = 16000,
        sequence_length: int = 480,
        sequence_stride: int = 320,
        fft_length: int | None = None,
        num_mel_bins: int = 40,
        min_freq: float = 125.0,
        max_freq: float = 7500.0,
        noise_reduction: bool = True,
        smoothing: Sequence[float] = (0.025, 0.06),
        min_signal: float = 0.05,
        pcan: bool = True,
        pcan_strength: float = 0.95,
        pcan_offset: float = 80.0,
        full_scale: float = 1.0,
        padding: str = "valid",
        **kwargs: Any,
    ) -> None:
        # 16-bit samples have no place in a float of 16 bits, whatever the policy
        super().__init__(**{"dtype": "float32", **kwargs})
        _check_whole(self.name, sampling_rate=sampling_rate, num_mel_bins=num_mel_bins)
        _check_whole(self.name, sequence_length=sequence_length, sequence_stride=sequence_stride)
        self.sampling_rate, self.num_mel_bins = int(sampling_rate), int(num_mel_bins)
        self.sequence_length, self.sequence_stride = int(sequence_length), int(sequence_stride)
        self.fft_length = None if fft_length is None else int(fft_length)
        self.min_freq, self.max_freq, self.full_scale = float(min_freq), float(max_freq), float(full_scale)
        self.noise_reduction, self.smoothing = bool(noise_reduction), [float(share) for share in smoothing]
        self.min_signal, self.pcan = float(min_signal), bool(pcan)
        self.pcan_strength, self.pcan_offset = float(pcan_strength), float(pcan_offset)
        self.padding = str(padding)
        _refuse(self)

    def _next(self) -> int:
        return max(SHORTEST, 1 << (self.sequence_length - 1).bit_length())

    @property
    def how(self) -> dict[str, Any]:
        """What `arithmetic.signal_steps` asks for."""
        noise = {"smoothing": list(self.smoothing), "least": self.min_signal, "clamped": False}
        return {
            "rate": self.sampling_rate,
            "length": self.sequence_length,
            "stride": self.sequence_stride,
            "fft": self._next() if self.fft_length is None else self.fft_length,
            "bands": self.num_mel_bins,
            "low": self.min_freq,
            "high": self.max_freq,
            "noise": noise if self.noise_reduction else None,
            "gain": [self.pcan_strength, self.pcan_offset] if self.pcan else None,
            "scale": SCALE,
            "before": self.before,
        }

    @property
    def before(self) -> int:
        """Samples of silence in front of a clip."""
        return max(self.sequence_length - self.sequence_stride, 0) if self.padding == "causal" else 0

    @property
    def unit(self) -> float:
        """What one step of a sample is worth."""
        return self.full_scale / 2**15

    def build(self, input_shape: Any) -> None:
        """Refuse what is no clip."""
        _refuse_clips(self, tuple(input_shape))

    def call(self, x: Any) -> Any:
        """As the class says."""
        if keras.utils.is_keras_tensor(x):  # a plain model is made of this one, and Keras has no such layer
            return type(self).from_config(self.get_config())(x)
        samples = tf.clip_by_value(tf.round(tf.cast(x, tf.float32) / self.unit), -(2.0**15), 2.0**15 - 1)
        made = tf.cast(features(tf.cast(samples, tf.int32), self.how), tf.float32) / SCALE
        return tf.stop_gradient(tf.cast(made, self.compute_dtype))

    def compute_output_spec(self, x: Any, *_: Any, **__: Any) -> keras.KerasTensor:
        """A row for each frame."""
        frames = (x.shape[1] + self.before - self.sequence_length) // self.sequence_stride + 1
        return keras.KerasTensor((x.shape[0], frames, self.num_mel_bins), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), **{key: getattr(self, key) for key in ARGUMENTS}}


ARGUMENTS = (
    *("sampling_rate", "sequence_length", "sequence_stride", "fft_length", "num_mel_bins", "min_freq", "max_freq"),
    *("noise_reduction", "smoothing", "min_signal", "pcan", "pcan_strength", "pcan_offset", "full_scale", "padding"),
)


def _check_whole(name: str, **given: Any) -> None:
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer) or value % 1:
            raise ValueError(f"{name} (MicroFrontend): {key}={value!r}. Give a whole number: 8 kHz are 8000.")


def _refuse(op: MicroFrontend) -> None:
    """What the operators do not take."""
    where, length = f"{op.name} (MicroFrontend): ", op.sequence_length
    shortest = SHORTEST // 2 + 1 if op.fft_length is None else 1
    if not shortest <= length <= LONGEST:
        raise ValueError(
            f"{where}frames of {length} samples; SignalRfft transforms {SHORTEST} to {LONGEST}. Set sequence_length "
            f"from {shortest} to {LONGEST}: 30 ms are 480 samples at 16000 Hz."
        )
    fft = op.how["fft"]
    if not SHORTEST <= fft <= LONGEST or fft & (fft - 1) or fft < length:
        raise ValueError(
            f"{where}fft_length={fft}; SignalRfft takes powers of two from {SHORTEST} to {LONGEST}, and no fewer than "
            f"the {length} samples of a frame. Leave fft_length out."
        )
    if not 1 <= op.sequence_stride:
        raise ValueError(
            f"{where}sequence_stride={op.sequence_stride}. Set it to 1 or more: 20 ms are 320 at 16000 Hz."
        )
    if op.padding not in ("valid", "causal"):
        raise ValueError(
            f"{where}padding='{op.padding}'. Set 'valid', or 'causal' for silence before the first sample."
        )
    if op.full_scale not in (1.0, 2.0**15):
        raise ValueError(
            f"{where}full_scale={op.full_scale}. Set 1.0 where samples lie within -1 .. 1, 32768.0 for whole numbers."
        )
    refuse_rate(op, where)
    if not 0 <= op.min_freq < op.max_freq <= op.sampling_rate / 2:
        raise ValueError(
            f"{where}bands from {op.min_freq} to {op.max_freq} Hz do not lie between 0 and half the sampling rate of "
            f"{op.sampling_rate} Hz. Set min_freq and max_freq, or sampling_rate."
        )
    _refuse_bands(op, where, fft)
    _refuse_gain(op, where)


def _refuse_bands(op: MicroFrontend, where: str, fft: int) -> None:
    if op.num_mel_bins < 1:
        raise ValueError(f"{where}num_mel_bins={op.num_mel_bins}. Set it to 1 or more.")
    bands = bands_of(op.how)
    if bands.end > fft // 2:
        raise ValueError(
            f"{where}the last band wants bin {bands.end - 1} of a transform whose last is {fft // 2}, which "
            f"SignalFilterBank does not take. Set max_freq to {op.sampling_rate * (fft // 2 - 1) / fft:.0f} or less."
        )
    pieces = np.repeat(np.arange(op.num_mel_bins + 1), bands.width)
    falls, rises = (np.bincount(pieces, part, op.num_mel_bins + 1) for part in (bands.weights, bands.unweights))
    empty = np.flatnonzero(falls[1:] + rises[:-1] == 0)
    if empty.size:
        raise ValueError(
            f"{where}{empty.size} of its {op.num_mel_bins} bands (the first is {empty[0]}) hold no bin of {fft} "
            f"samples at {op.sampling_rate} Hz, and would be silent. Take fewer num_mel_bins, a longer fft_length or a "
            "higher min_freq."
        )


def _refuse_gain(op: MicroFrontend, where: str) -> None:
    if len(op.smoothing) != 2 or not all(0.0 <= share <= 1.0 for share in (*op.smoothing, op.min_signal)):
        raise ValueError(
            f"{where}smoothing={op.smoothing}, min_signal={op.min_signal}: expected two shares and one, from 0 to 1. "
            "The defaults are (0.025, 0.06) and 0.05."
        )
    if op.pcan and not op.noise_reduction:
        raise ValueError(
            f"{where}pcan=True weighs by the estimate of the noise, and noise_reduction=False makes none. Set both, or "
            "pcan=False."
        )
    if op.pcan and not has_room(op.pcan_strength, op.pcan_offset):
        raise ValueError(
            f"{where}pcan_strength={op.pcan_strength} and pcan_offset={op.pcan_offset} give a gain beyond the 16 bits "
            "of SignalPCAN's table. Set a higher pcan_offset or pcan_strength; 80.0 goes with 0.95."
        )


def _refuse_clips(op: MicroFrontend, shape: tuple[Any, ...]) -> None:
    if len(shape) != 2 or shape[1] is None:
        raise ValueError(
            f"{op.name} (MicroFrontend): expected a waveform [clips, samples] of a fixed length. Received: {shape}. "
            "Give the model's input its length, keras.Input((16000,)), and reshape [samples, 1] before it."
        )
    if shape[1] + op.before < op.sequence_length:
        raise ValueError(
            f"{op.name} (MicroFrontend): clips of {shape[1]} samples hold no frame of {op.sequence_length}. Take "
            f"longer clips, or sequence_length={shape[1]}."
        )


class _Frame:
    """Operators on one frame, whose tensors are TFLM's own types."""

    def __init__(self, program: Program, name: str) -> None:
        self.program, self.name = program, name

    def __call__(self, code: str, given: list[Ref], shape: tuple[int, ...], dtype: str, **options: Any) -> Ref:
        """Write an operator with one output."""
        return self.program.emit(code, given, self.value(code, shape, dtype), **options)

    def value(self, code: str, shape: tuple[int, ...], dtype: str) -> Ref:
        """A tensor that an operator makes."""
        return self.program.value(f"{self.name}/{code}", shape, None, dtype)

    def constants(self, **arrays: np.ndarray) -> list[Ref]:
        """Stored tensors."""
        return [self.program.constant(f"{self.name}/{key}", array) for key, array in arrays.items()]


def _lower(program: Program, call: Call) -> None:
    op, x, y = call.op, call.inputs[0], call.output
    sound = Encoding(np.array([op.unit], np.float32), np.array([0]), WIDE)
    if not np.array_equal(x.grid.scale, sound.scale):
        x = program.emit("QUANTIZE", [x], program.value(f"{y.name}/sound", x.shape, sound))
    how = op.how
    if op.before:
        zeros = program.constant(f"{y.name}/silence", np.array([[0, 0], [op.before, 0]], np.int32))
        padded = program.value(f"{y.name}/behind_silence", (1, op.before + x.shape[1]), sound)
        x = program.emit("PAD", [x, zeros], padded)
    body = Body(y.name, y.shape[1])
    inside = body.program
    wave = body.enter(x)
    # as it came, [1, samples]: to take the first axis off the clip would cost another copy of it
    stride, size = (
        inside.constant(f"{y.name}/{key}", np.array(v, np.int32))
        for key, v in (("stride", [0, how["stride"]]), ("length", [1, how["length"]]))
    )
    begin = inside.value(f"{y.name}/begin", (2,), None, "int32")
    inside.emit("MUL", [body.number, stride], begin, fusedActivationFunction="NONE")
    row = inside.value(f"{y.name}/row", (1, how["length"]), wave.encoding)
    frame = inside.reshape(inside.emit("SLICE", [wave, begin, size], row), (how["length"],))
    told = Encoding(np.array([1 / SCALE], np.float32), np.array([0]), WIDE)
    logs = inside.value(f"{y.name}/logarithms", (how["bands"],), told)
    _lower_frame(_Frame(inside, y.name), frame, logs, how)
    codes = inside.emit("QUANTIZE", [logs], inside.value(f"{y.name}/codes", logs.shape, y.encoding))
    body.close(program, [], [(inside.reshape(codes, (1, 1, how["bands"])), y.name)])
    program.operators[-1].outputs[-1] = y


def _lower_frame(emit: _Frame, frame: Ref, logs: Ref, how: dict[str, Any]) -> None:
    fft, count, bands, by = how["fft"], how["bands"], bands_of(how), shifts(how["fft"])
    one = (count,)
    x = emit(
        "SignalWindow",
        [frame, *emit.constants(window=hann_codes(how["length"]))],
        frame.shape,
        "int16",
        shift=WINDOW_BITS,
    )
    scaled, bits = (emit.value("SignalFftAutoScale", *kind) for kind in ((frame.shape, "int16"), ((), "int32")))
    emit.program.operators.append(Operator("SignalFftAutoScale", [x], [scaled, bits]))
    x = emit("SignalRfft", [scaled], (fft + 2,), "int16", fft_length=fft, T=INT16)
    span = {"start_index": bands.start, "end_index": bands.end}
    x = emit("SignalEnergy", [x], (fft // 2 + 1,), "uint32", **span)
    pieces = emit.constants(**{key: getattr(bands, key) for key in ("weights", "unweights", "at", "first", "width")})
    x = emit("SignalFilterBank", [x, *pieces], one, "uint64", num_channels=count)
    x = emit("SignalFilterBankSquareRoot", [x, bits], one, "uint32")
    if how["noise"] is not None:
        left, noise = (emit.value("SignalFilterBankSpectralSubtraction", one, "uint32") for _ in range(2))
        options = _noise_options(how["noise"], count)
        emit.program.operators.append(Operator("SignalFilterBankSpectralSubtraction", [x], [left, noise], options))
        x = left
        if how["gain"] is not None:
            table = emit.constants(gains=gain_codes(how["gain"][0], how["gain"][1], by.noise))
            x = emit("SignalPCAN", [left, noise, *table], one, "uint32", snr_shift=by.ratio)
    emit.program.emit("SignalFilterBankLog", [x], logs, input_correction_bits=by.correction, output_scale=SCALE)


def _noise_options(noise: dict[str, Any], count: int) -> dict[str, Any]:
    """Options of SignalFilterBankSpectralSubtraction."""
    (even, rest), (odd, rest_odd) = (share_codes(share) for share in noise["smoothing"])
    return {
        "alternate_one_minus_smoothing": rest_odd,
        "alternate_smoothing": odd,
        "clamping": noise["clamped"],
        "min_signal_remaining": share_codes(noise["least"])[0],
        "num_channels": count,
        "one_minus_smoothing": rest,
        "smoothing": even,
        "smoothing_bits": SMOOTHING_BITS,
        "spectral_subtraction_bits": SUBTRACTION_BITS,
    }


def _sound(**changes: Any) -> Any:
    settings = {
        "sampling_rate": 8000,
        "sequence_length": 64,
        "sequence_stride": 40,
        "num_mel_bins": 6,
        "max_freq": 3500.0,
    }
    return example(lambda: MicroFrontend(**{**settings, **changes}), shape=(256,))


RULES = (
    Rule(
        layers=(MicroFrontend,),
        operators=(
            *("SignalWindow", "SignalFftAutoScale", "SignalRfft", "SignalEnergy", "SignalFilterBank"),
            *("SignalFilterBankSquareRoot", "SignalFilterBankSpectralSubtraction", "SignalPCAN", "SignalFilterBankLog"),
        ),
        instead="take target 'tflm' and a static recipe (int8), or keras.layers.MelSpectrogram in its place, which "
        "computes features by builtin operators, on target 'litert', too",
        helpers=(
            "WHILE",
            "LESS",
            "SLICE",
            "MUL",
            "ADD",
            "PAD",
            "RESHAPE",
            "CONCATENATION",
            "DYNAMIC_UPDATE_SLICE",
            "BROADCAST_TO",
            "QUANTIZE",
        ),
        widths=(8,),
        wide=True,
        arithmetic=lambda node: ("MICRO_FRONTEND", {"unit": node.op.unit, **node.op.how}),
        lower=_lower,
        examples=(
            _sound(),
            _sound(pcan=False, fft_length=128),
            _sound(noise_reduction=False, pcan=False, padding="causal"),
        ),
    ),
)

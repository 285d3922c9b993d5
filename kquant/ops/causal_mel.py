"""`CausalMelSpectrogram`: Keras' MelSpectrogram for sound that goes on, frame by frame.

    waveform, silence before it -> CONV_2D with windowed waves -> `Bands`, as in `spectrum`

Keras mirrors both ends of a clip and counts `top_db` from its loudest value, and both ask for the whole clip.
"""

from __future__ import annotations

from typing import Any

import keras

from kquant.ops.rule import Make, Rule, example
from kquant.ops.spectrum import (
    FULL,
    Bands,
    decibels,
    mel_of,
    numbers_of,
    refuse_exponent,
    refuse_waveform,
    taken_bins,
    transform,
    waves_under,
    window_of,
)

layers = keras.layers


@keras.saving.register_keras_serializable(package="kquant")
class CausalMelSpectrogram(layers.MelSpectrogram):
    """`keras.layers.MelSpectrogram` of the samples that have come: what a stream of sound can compute.

    Three things differ from Keras' layer. In front of a clip stand `sequence_length - sequence_stride` samples of
    silence, so that a frame ends with each stride, and nothing is mirrored; no `top_db` counts from the loudest value
    of the clip (`min_power` is the floor); and time comes first, as convolutions over it ask for. So each frame is that
    of a stream (`kquant.export(streaming=True)`).

    Args:
        fft_length: of the transform, in samples.
        sequence_stride: from one frame to the next, in samples: what a call of a stream takes.
        sequence_length: of a frame; by default `fft_length`.
        window: "hann", "hamming", None (all samples alike), or `sequence_length` numbers.
        sampling_rate: of the sound, Hz.
        num_mel_bins: bands.
        min_freq: where the first begins, Hz.
        max_freq: where the last ends, Hz; by default half the sampling rate.
        power_to_db: decibels, `10 log10(max(power, min_power) / ref_power)`, not powers.
        mag_exp: 2 sums powers over bands, 1 magnitudes.
        min_power: the least power that is told.
        ref_power: the power of 0 dB.

    Input: float32[clips, samples]. Output: float32[clips, frames, num_mel_bins] with
    `frames = samples // sequence_stride`, where a frame is no shorter than a stride.

    Raises:
        ValueError: `top_db` is given, a window is no row of numbers, or clips hold no frame.

    Example:
        >>> mel = kquant.CausalMelSpectrogram(256, 160, sampling_rate=8000, num_mel_bins=40)
        >>> mel(np.zeros((1, 8000), "float32")).shape
        TensorShape([1, 50, 40])
    """

    def __init__(
        self,
        fft_length: int = 2048,
        sequence_stride: int = 512,
        sequence_length: int | None = None,
        window: Any = "hann",
        sampling_rate: int = 16000,
        num_mel_bins: int = 128,
        min_freq: float = 20.0,
        max_freq: float | None = None,
        power_to_db: bool = True,
        *,  # Keras has `top_db` here
        mag_exp: float = 2.0,
        min_power: float = 1e-10,
        ref_power: float = 1.0,
        **kwargs: Any,
    ) -> None:
        where = kwargs.get("name") or "CausalMelSpectrogram"
        if "top_db" in kwargs:
            raise ValueError(
                f"{where}: top_db={kwargs['top_db']} counts from the loudest value of a clip, which a stream does not "
                "know. Leave top_db out; `min_power` is the floor."
            )
        window = numbers_of(window, where)
        shape = (fft_length, sequence_stride, sequence_length, window, sampling_rate, num_mel_bins, min_freq, max_freq)
        told = {"power_to_db": power_to_db, "mag_exp": mag_exp, "min_power": min_power, "ref_power": ref_power}
        super().__init__(*shape, **told, top_db=float("inf"), **kwargs)

    @property
    def before(self) -> int:
        """Samples of silence in front of a clip."""
        return max(int(self.sequence_length) - int(self.sequence_stride), 0)

    def call(self, inputs: Any) -> Any:
        """As the class says."""
        refuse_short(self, inputs.shape)
        backend: Any = self.backend  # of a tf.data pipeline, or Keras' own
        return backend.numpy.swapaxes(super().call(inputs), -1, -2)

    def _spectrogram(self, inputs: Any) -> Any:
        """Powers or magnitudes of frames of samples alone: a transform is longer than its window at both ends."""
        backend: Any = self.backend
        left = (self.fft_length - self.sequence_length) // 2
        room = (self.before + left, self.fft_length - self.sequence_length - left)
        held = backend.numpy.pad(inputs, [(0, 0)] * (len(inputs.shape) - 1) + [room])
        frames = {key: getattr(self, key) for key in ("sequence_length", "sequence_stride", "fft_length", "window")}
        if self.window is None:  # which `stft` takes to be as long as the transform: it would look ahead
            frames["window"] = [1.0] * int(self.sequence_length)
        real, imaginary = backend.math.stft(held, **frames, center=False)
        powers = backend.numpy.square(real) + backend.numpy.square(imaginary)
        return powers if self.mag_exp == 2.0 else backend.numpy.power(powers, self.mag_exp / 2.0)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """A row for each frame."""
        refuse_short(self, input_shape)
        *clips, samples = input_shape
        if samples is not None:
            samples = (samples + self.before - self.sequence_length) // self.sequence_stride + 1
        return (*clips, samples, self.num_mel_bins)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        told = super().get_config()
        return {key: value for key, value in told.items() if key != "top_db"}


def refuse_short(op: CausalMelSpectrogram, shape: Any) -> None:
    """Clips without a frame; where the length is open, nothing is known."""
    samples = shape[-1]
    if samples is None or samples + op.before >= op.sequence_length:
        return
    where = f"{op.name} (CausalMelSpectrogram): "
    if len(shape) > 2 and shape[-2] is not None and shape[-2] > samples:
        remedy = f"One channel: reshape it before this layer, keras.layers.Reshape(({shape[-2]},))."
        if samples > 1:
            remedy = f"Its channels come first: keras.layers.Permute((2, 1)), for [clips, {samples}, {shape[-2]}]."
        raise ValueError(f"{where}expected a waveform [clips, samples]. Received: {tuple(shape)}. {remedy}")
    raise ValueError(
        f"{where}clips of {samples} samples hold no frame of {op.sequence_length} each {op.sequence_stride}. Take "
        f"longer clips, or sequence_length={samples} at most."
    )


def _causal(op: CausalMelSpectrogram, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    where, name = f"{op.name} (CausalMelSpectrogram): ", op.name
    refuse_waveform(where, x)
    refuse_exponent(where, op)
    refuse_short(op, x.shape)
    left = (op.fft_length - op.sequence_length) // 2
    window = window_of(op)[left : left + op.sequence_length]
    waves = waves_under(window, op.fft_length, taken_bins(op, where))
    y = make("steps", lambda: layers.Reshape((x.shape[1], 1), name=f"{name}_steps", dtype=FULL))(x)
    if op.before:
        silence: Any = (op.before, 0)
        y = make("silence", lambda: layers.ZeroPadding1D(silence, name=f"{name}_silence", dtype=FULL))(y)
    y = make("waves", lambda: transform(waves, op.sequence_stride, "valid", f"{name}_waves"))(y)
    return make("bands", lambda: Bands(mel=mel_of(op), **decibels(op), name=name, dtype=FULL))(y)


def _speech(**changes: Any) -> Any:
    settings = {"fft_length": 64, "sequence_stride": 32, "sampling_rate": 8000, "num_mel_bins": 6, "min_freq": 100.0}
    return example(lambda: CausalMelSpectrogram(**{**settings, **changes}), shape=(256,))


RULES = (
    Rule(
        layers=(CausalMelSpectrogram,),
        expand=_causal,
        examples=(_speech(), _speech(sequence_length=48, sequence_stride=64, window="hamming", power_to_db=False)),
    ),
)

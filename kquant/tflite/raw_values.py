"""What becomes of the raw values of a sensor before they enter a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Normalization:
    """What becomes of a raw value: `(raw * scale - mean[channel]) / std[channel]`."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of(self, raw: float) -> tuple[float, ...]:
        """A raw value of every channel, in float32 as a device computes it.

        Args:
            raw: the value.

        Example:
            >>> Normalization(0.5, (1.0, 2.0), (1.0, 4.0)).of(8.0)
            (3.0, 0.5)
        """
        scaled = np.float32(raw) * np.float32(self.scale)
        return tuple(float((scaled - np.float32(m)) / np.float32(s)) for m, s in zip(self.mean, self.std, strict=True))

    def applied(self, raw: np.ndarray) -> np.ndarray:
        """Raw values as the model takes them.

        Args:
            raw: [..., channels].

        Returns:
            float32[..., channels].

        Example:
            >>> Normalization(0.5, (1.0, 2.0), (1.0, 4.0)).applied(np.float32([[8.0, 10.0]]))
            array([[3.  , 0.75]], dtype=float32)
        """
        scaled = raw.astype(np.float32) * np.float32(self.scale)
        return (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


def normalization_of(who: str, takes: Any, scale: Any, mean: Any, std: Any) -> Normalization | None:
    """What was given, for each channel; None where nothing was.

    Args:
        who: the verb that errors name.
        takes: the input, with its name and its shape, whose last axis has the channels.
        scale: factor, or None.
        mean: one number, one for each channel, or None.
        std: likewise.

    Raises:
        ValueError: no numbers, another number of them, none that are finite, or a deviation of 0.

    Example:
        >>> normalization_of("bundle", keras.Input((4, 2), name="image"), 0.5, None, [1.0, 2.0])
        Normalization(scale=0.5, mean=(0.0, 0.0), std=(1.0, 2.0))
    """
    if scale is None and mean is None and std is None:
        return None
    channels = int(takes.shape[-1] or 1) if takes.shape else 1
    factor = _numbers(who, "scale", 1.0 if scale is None else scale)
    if len(factor) != 1:
        raise ValueError(f"{who}: scale is one number, for all channels; std has one for each. Received: {scale!r}.")
    rows = [_numbers(who, "mean", 0.0 if mean is None else mean), _numbers(who, "std", 1.0 if std is None else std)]
    for name, row in zip(("mean", "std"), rows, strict=True):
        if len(row) not in (1, channels) or not np.all(np.isfinite(row)):
            raise ValueError(
                f"{who}: {name} has {len(row)} numbers; the first input, {takes.name}, has {channels} channels: give "
                "one number, or one for each."
            )
    if not np.all(rows[1] > 0.0):
        raise ValueError(f"{who}: std must be above 0. Received: {std}.")
    wide = [tuple(float(v) for v in np.broadcast_to(row, (channels,))) for row in rows]
    return Normalization(float(factor[0]), *wide)


def _numbers(who: str, name: str, given: Any) -> np.ndarray:
    """One number or several."""
    try:
        if isinstance(given, str):
            raise TypeError  # "0.5" is none, as nowhere else in Python
        return np.asarray(given, np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise ValueError(
            f"{who}: {name} must be a number{'' if name == 'scale' else ', or one for each channel'}, like 1 / 255. "
            f"Received: {given!r}."
        ) from None

"""One row on a model: what it takes and how right it is, the figures that are asked for first."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from kquant.analysis.by_chance import CHANCE, chance
from kquant.core.result import Result
from kquant.runtime.running import ARENA, available

SURE = 1.96  # standard errors on both sides of a share hold it in 95 of 100 draws of the samples
SMALL = 0.005  # less is no loss however sure it is: many samples tell a tenth of a point from nothing


def margin(value: float, samples: int) -> float:
    """What other samples of that number would make of a share of right answers: half the width of 95 %.

    Args:
        value: 0 to 1.
        samples: that it was counted on.

    Example:
        >>> round(margin(0.875, 64), 3)
        0.081
    """
    return SURE * math.sqrt(value * (1.0 - value) / max(1, samples))


def arena_in_words(measured: int | None) -> str:
    """Bytes of the arena, or what it takes to measure them.

    Args:
        measured: the smallest on this host; None: TFLM does not run the file, or is not there.
    """
    if measured is not None:
        return f"{measured:,} bytes (TFLM on this host)"
    return "not measured" if ARENA in available() else "not measured: pip install 'kquant[micro]' (Linux only)"


@dataclass(frozen=True, repr=False)
class ModelCard(Result):
    """Of a model and its file.

    Attributes:
        macs: multiply-accumulates of one sample.
        weight_bytes: of the file's weights.
        flash_bytes: of the file, which a microcontroller reads where it lies.
        arena_bytes: RAM of its tensors in TFLM; None where that was not measured.
        float_accuracy: share of right answers of the float model, 0 to 1; None without labels.
        simulated_accuracy: of the quantized model.
        file_accuracy: of the file on `runtime`.
        samples: how many were answered.
        runtime: that ran the file; empty without labels.
        look: what tells where accuracy was lost, as it is typed.
        spoiled: samples that the float model alone answers right; None where only shares are known.
        mended: those that the file alone does.

    Example:
        >>> print(ModelCard(96, 48, 1200, 2000, 0.9, 0.875, 0.875, 40, "tflm"))
        accuracy  float 90.0 %, simulated 87.5 %, file 87.5 % (tflm, 40 samples)
        size      1,200 bytes, weights 48
        arena     2,000 bytes (TFLM on this host)
        MACs      96
    """

    macs: int
    weight_bytes: int
    flash_bytes: int
    arena_bytes: int | None
    float_accuracy: float | None = None
    simulated_accuracy: float | None = None
    file_accuracy: float | None = None
    samples: int = 0
    runtime: str = ""
    look: str = "kquant.analyze(model, data)"
    spoiled: int | None = None
    mended: int | None = None

    @property
    def drop(self) -> float | None:
        """Accuracy of the float model less that of the file, 0.01 is a point; None without labels."""
        if self.float_accuracy is None or self.file_accuracy is None:
            return None
        return self.float_accuracy - self.file_accuracy

    @property
    def loss(self) -> str:
        """What was lost and what tells where, where that is more than other samples could make of it; else empty.

        Both models answer the same samples, and mostly alike: `chance` looks at those that they do not. Where only
        shares are known, they count as of samples of their own, which tells larger losses alone.

        Example:
            >>> print(ModelCard(96, 48, 1200, None, 0.96, 0.93, 0.92, 500, "tflm").loss)
            accuracy: 4.0 points lost, 96.0 % in float and 92.0 % in the file; run:
            kquant.analyze(model, data)
            >>> ModelCard(96, 48, 1200, None, 0.96, 0.93, 0.92, 50, "tflm").loss
            ''
            >>> bool(ModelCard(96, 48, 1200, None, 0.96, 0.94, 0.94, 500, "tflm", spoiled=12, mended=2).loss)
            True
        """
        if self.drop is None or self.float_accuracy is None or self.file_accuracy is None:
            return ""
        shares = (self.float_accuracy, self.file_accuracy)
        if self.spoiled is None or self.mended is None:
            sure = self.drop > math.hypot(*(margin(share, self.samples) for share in shares))
        else:
            sure = self.drop > 0.0 and chance(self.spoiled, self.mended) < CHANCE
        if not sure or self.drop < SMALL:
            return ""
        before, after = (f"{100 * share:.1f} %" for share in shares)
        lost = f"{100 * self.drop:.1f} points lost, {before} in float and {after} in the file"
        return f"accuracy: {lost}; run:\n{self.look}"

    @property
    def accuracies(self) -> dict[str, float]:
        """Of "float", "simulated" and "file", those that were measured."""
        given = {"float": self.float_accuracy, "simulated": self.simulated_accuracy, "file": self.file_accuracy}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def said(self) -> str:
        """The accuracies in words; empty without labels."""
        told = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.accuracies.items())
        return f"{told} ({self.runtime}, {self.samples:,} samples)" if told else ""

    def __str__(self) -> str:
        lines = [f"accuracy  {self.said}"] if self.said else []
        lines.append(f"size      {self.flash_bytes:,} bytes, weights {self.weight_bytes:,}")
        lines.append(f"arena     {arena_in_words(self.arena_bytes)}")
        lines.append(f"MACs      {self.macs:,}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.accuracies.items())
        return f"ModelCard({self.flash_bytes:,} bytes, {self.macs:,} MACs{', ' if said else ''}{said})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

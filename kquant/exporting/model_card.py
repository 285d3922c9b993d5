"""One row on a model: what it takes and how right it is, the figures that are asked for first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kquant.core.result import Result


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

    Example:
        >>> print(ModelCard(96, 48, 1200, None, 0.9, 0.875, 0.875, 40, "tflm"))
        accuracy  float 90.0 %, simulated 87.5 %, file 87.5 % (tflm, 40 samples)
        size      1,200 bytes, weights 48
        arena     not measured
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
        arena = "not measured" if self.arena_bytes is None else f"{self.arena_bytes:,} bytes (TFLM on this host)"
        lines.append(f"arena     {arena}")
        lines.append(f"MACs      {self.macs:,}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.accuracies.items())
        return f"ModelCard({self.flash_bytes:,} bytes, {self.macs:,} MACs{', ' if said else ''}{said})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

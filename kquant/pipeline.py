"""The whole flow in one call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from kquant.calibrate import calibrate
from kquant.core.recipe import Recipe
from kquant.export import IO, ExportReport, export
from kquant.quantize import quantize


@dataclass(frozen=True, eq=False)
class CompressResult:
    """What `kquant.compress` made.

    Attributes:
        model: the quantized Keras model, ready to train further.
        report: of the exported file.
    """

    model: keras.Model
    report: ExportReport


def compress(
    model: keras.Model,
    data: Any,
    recipe: str | Path | dict[str, Any] | Recipe = "int8",
    *,
    output: str | Path,
    target: str = "litert",
    io: IO = "model",
    batches: int | None = None,
    input_shape: Any = None,
    verbose: bool = True,
) -> CompressResult:
    """Quantize, calibrate, export and verify.

    Args:
        model: a built Keras 3 model; it is not changed.
        data: representative samples, see `kquant.calibrate`.
        recipe: see `kquant.quantize`.
        output: path of the `.tflite` file.
        target: "litert", "tflm" or "ethos-u".
        io: type of the file's inputs and outputs.
        batches: calibrate with this many batches only.
        input_shape: static shape(s) for models with open dimensions.
        verbose: show progress bars.

    Returns:
        The quantized model and the export report.

    Raises:
        ValueError: see `quantize`, `calibrate` and `export`.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> result = kquant.compress(model, np.ones((64, 4), "float32"), output="dense.tflite", verbose=False)
        >>> result.report.types["FLOAT32"] if "FLOAT32" in result.report.types else 0
        0
    """
    qmodel = quantize(model, recipe, target=target, input_shape=input_shape)
    calibrate(qmodel, data, batches=batches, verbose=verbose)
    return CompressResult(qmodel, export(qmodel, output, samples=data, io=io))

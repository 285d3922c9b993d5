"""A quantized model that another converter turns into a float file: told while that converter traces it.

Converters trace a model like `predict` does, so only the callers on the stack tell them apart.
"""

from __future__ import annotations

import inspect
import warnings
from types import FrameType

# Modules that trace a model to write a TFLite file; their files hold the simulation as float operators.
LITE = ("tensorflow.lite.", "tensorflow_lite", "ai_edge_litert")
LITE_OF_KERAS = ".export.litert"  # inside Keras, wherever it keeps it
WAY_OUT = 'kquant.export(qmodel, "model.tflite") writes the integer file'


def refuse_conversion() -> None:
    """Refuse a trace by a TFLite converter; warn of one by another of Keras' exporters.

    Raises:
        ValueError: inside `model.export(..., format="litert")` or `tf.lite.TFLiteConverter`.
    """
    modules = [frame.f_globals.get("__name__", "") for frame in _callers(inspect.currentframe())]
    keras_exports = [name for name in modules if name.startswith("keras.") and ".export." in name]
    if any(name.startswith(LITE) for name in modules) or any(LITE_OF_KERAS in name for name in keras_exports):
        message = (
            "this converter would write a quantized model as a float file that simulates it, without one integer "
            f"kernel; {WAY_OUT}."
        )
        # TFLiteConverter.from_keras_model catches the error, tries another way and ends in a TypeError of its own
        warnings.warn(message, stacklevel=2)
        raise ValueError(message)
    if keras_exports:
        warnings.warn(
            "model.export writes a quantized model as the float graph that simulates it: right numbers, no integers. "
            f"{WAY_OUT} for devices.",
            stacklevel=2,
        )


def _callers(frame: FrameType | None) -> list[FrameType]:
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames

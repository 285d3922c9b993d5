"""kquant: compress Keras 3 models for phones and microcontrollers.

    quantize -> calibrate -> (compile, fit) -> export -> verify, predict, inspect

    q = kquant.quantize(model)              # a Keras model again; `model` is untouched
    kquant.calibrate(q, images)             # ranges from representative data
    q.compile(...); q.fit(...)              # optional: quantization-aware training
    report = kquant.export(q, "m.tflite")   # full integer, read back and run before it returns
"""

from kquant.calibrate import calibrate
from kquant.core.recipe import Recipe
from kquant.fold import fold
from kquant.quantize import quantize

__all__ = ["Recipe", "calibrate", "fold", "quantize"]
__version__ = "0.1.0"

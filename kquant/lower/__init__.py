"""A quantized Keras model -> a TFLite program of integer operators -> bytes."""

from kquant.lower.flatbuffer import to_bytes
from kquant.lower.program import Lowered, lower

__all__ = ["Lowered", "lower", "to_bytes"]

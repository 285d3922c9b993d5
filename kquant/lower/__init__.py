"""A quantized Keras model -> a TFLite program of integer operators -> bytes."""

from kquant.lower.flatbuffer import to_bytes
from kquant.lower.program import lower

__all__ = ["lower", "to_bytes"]

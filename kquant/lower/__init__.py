"""A quantized Keras model -> a TFLite program of integer operators -> bytes."""

from kquant.lower.aliases import keep_apart
from kquant.lower.flatbuffer import to_bytes
from kquant.lower.program import Lowered, lower
from kquant.lower.states import States, keep_states
from kquant.lower.streaming import Streamed, to_stream

__all__ = ["Lowered", "States", "Streamed", "keep_apart", "keep_states", "lower", "to_bytes", "to_stream"]

"""A quantized Keras model -> a TFLite program of integer operators -> bytes."""

from kquant.lower.aliases import keep_apart
from kquant.lower.decodes import LookUpTables, store_in_tables, without_tables
from kquant.lower.edges import IO, cast_edges
from kquant.lower.flatbuffer import to_bytes, with_outputs
from kquant.lower.program import Lowered, lower
from kquant.lower.states import States, keep_states
from kquant.lower.streaming import Streamed, to_stream

__all__ = [
    "IO",
    "LookUpTables",
    "Lowered",
    "States",
    "Streamed",
    "cast_edges",
    "keep_apart",
    "keep_states",
    "lower",
    "store_in_tables",
    "to_bytes",
    "to_stream",
    "with_outputs",
    "without_tables",
]

"""What a tensor of weights takes in a file whose kernels read codes that a DECODE writes, as a function of its codes.

    Huffman   16 + 2 E + sum_q n_q l_q / 8       n_q weights with code q of l_q bits; E entries of tables
    masks     16 + N / 8 + (N - n_0)             N weights, one byte for each that is not zero
    plain     N,  or N / 2 packed

(`tflite/huffman_format.py`, `tflite/prune_format.py`.) The lengths of a Huffman code lie within a bit of `-log2 p_q`,
`p_q = n_q / N` (Huffman 1952), and never below 1; the tables have two to four entries for each code that occurs. So a
weight that takes the code q costs

    b_q = max(1, -log2 p_q) + T / n_q            T = 24 bits: of the tables, what one code more adds

which is what the roundings of `short_rounding` and the regularizer of `masking/code_length.py` make small.
"""

from __future__ import annotations

import numpy as np

from kquant.tflite.huffman_format import find_code
from kquant.tflite.storage import HEADER_BYTES
from kquant.tflite.stored_weights import DECODE_BYTES

TABLE_BITS = 24.0  # entries of the tables for one code that occurs
SHORTEST = 1.0  # bit of a Huffman code


def code_bits(counts: np.ndarray) -> np.ndarray:
    """Bits that a weight takes with each code: `max(1, -log2 p) + T / n`; codes that do not occur count as half a one.

    Args:
        counts: how many weights have each code, float64[codes].

    Returns:
        float64[codes].

    Example:
        >>> from kquant.correct.code_bits import code_bits
        >>> code_bits(np.float64([96, 768, 96, 0])).round(2).tolist()
        [3.57, 1.03, 3.57, 58.91]
    """
    there = np.maximum(counts, 0.5)
    return np.maximum(SHORTEST, -np.log2(there / max(float(counts.sum()), 1.0))) + TABLE_BITS / there


def stored_bytes(codes: np.ndarray) -> int:
    """Bytes of int8 codes in the smaller of Huffman codes with their DECODE, and as they are.

    Example:
        >>> from kquant.correct.code_bits import stored_bytes
        >>> stored_bytes(np.zeros(8000, np.int8)), stored_bytes(np.int8([1, 2, 3]))
        (1148, 3)
    """
    code = find_code(np.asarray(codes, np.int8))
    entries = 2 if code.tables is None else code.tables.entries
    return min(codes.size, -(-code.body_bits // 8) + 2 * entries + HEADER_BYTES + DECODE_BYTES)

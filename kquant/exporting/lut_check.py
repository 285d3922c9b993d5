"""The file with look-up tables against the plain one: the same codes, the same outputs, fewer bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kquant.core.program import Program
from kquant.runtime.decoding import DECODES, check_decodes
from kquant.runtime.running import available, probe, quantize_input
from kquant.tflite.flatbuffer import to_bytes
from kquant.tflite.lowering import Lowered
from kquant.tflite.lut_program import LookUpTables, store_in_tables
from kquant.tflite.reader import constants, read_model


def tables_of(compression: Any) -> LookUpTables | None:
    """What the argument `compression` of `export` asks for.

    Raises:
        ValueError: an unknown value.
    """
    if compression is None or isinstance(compression, LookUpTables):
        return compression
    if compression == "lut":
        return LookUpTables()
    raise ValueError(f"export: compression must be None, 'lut' or kquant.LookUpTables(...). Received: {compression!r}.")


def refuse_tables(lowered: Lowered, tables: LookUpTables | None, check: bool) -> None:
    """Look-up tables, where they are asked for, are for targets that decode them, and run here before they are written.

    Raises:
        ValueError: another target, or no runtime to check the file with.
    """
    if tables is None:
        return
    if not lowered.target.look_up_tables:
        raise ValueError(
            "export: look-up tables are decoded by TensorFlow Lite Micro alone; quantize with target='tflm'. Received "
            f"a model for '{lowered.target.name}'."
        )
    if check and DECODES not in available():
        raise ValueError(
            "export: a file with look-up tables is run before it is written, and that needs an extra: "
            "pip install 'kquant[micro]' (Linux only). Or export with check_runtimes=False."
        )
    if check:
        check_decodes(probe)


def in_tables(program: Program, lowered: Lowered, metadata: dict[str, Any], tables: LookUpTables) -> bytes:
    """The file of a program with its weights in look-up tables; the program stays as it is.

    Raises:
        ValueError: no weights get smaller, or see `store_in_tables`.
    """
    copy = dataclasses.replace(program)
    names = store_in_tables(copy, tables)
    plain, content = (to_bytes(p, lowered.target, metadata) for p in (program, copy))
    if not names or len(content) >= len(plain):
        raise ValueError(
            "export: no weights get smaller in look-up tables: too many distinct codes, or too few weights for a "
            "table. Cluster the weights first; kquant.layer_bytes counts codes and bytes of a plain export."
        )
    _refuse_other_codes(plain, content)
    return content


def _refuse_other_codes(plain: bytes, content: bytes) -> None:
    """Every constant of the plain file, decoded from the other one by name."""
    before, after = read_model(plain).tensors, read_model(content).tensors
    written = {after[i].name: array for i, array in constants(content).items()}
    for i, expected in constants(plain).items():
        name = before[i].name
        if not np.array_equal(written.get(name), expected):
            raise ValueError(f"export: '{name}' does not come back from its look-up tables; please report this.")


def refuse_other_outputs(plain: bytes, content: bytes, x: list[np.ndarray]) -> None:
    """Run both files on TFLM.

    Args:
        plain: the file without tables.
        content: the file with tables.
        x: real numbers [samples, ...] for each input.

    Raises:
        ValueError: an output differs in any code.
    """
    codes = [quantize_input(a, t) for a, t in zip(x, read_model(plain).inputs, strict=True)]
    expected, decoded = probe(plain, DECODES, codes), probe(content, DECODES, codes)
    for t, a, b in zip(read_model(plain).outputs, expected, decoded, strict=True):
        if not np.array_equal(a, b):
            raise ValueError(
                f"export: with look-up tables TFLM computes other codes at '{t.name}' than without "
                f"({np.mean(a != b):.2%} of them). Export without compression; please report this."
            )

"""The file with look-up tables against the plain one: the same codes, the same outputs, fewer bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from kquant.runtime.decoding import DECODES, check_decodes
from kquant.runtime.running import available, probe, quantize_input
from kquant.targets import Target
from kquant.tflite.lut_program import LookUpTables
from kquant.tflite.reader import FileModel


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


def refuse_undecoded(target: Target, check: bool) -> None:
    """Look-up tables are for targets that decode them, and run here before they are written.

    Args:
        target: of the file.
        check: the file is to be run.

    Raises:
        ValueError: another target, or no runtime to check the file with.
    """
    if not target.look_up_tables:
        raise ValueError(
            "export: look-up tables are decoded by TensorFlow Lite Micro alone; quantize with target='tflm'. Received "
            f"a model for '{target.name}'."
        )
    if check and DECODES not in available():
        raise ValueError(
            "export: a file with look-up tables is run before it is written, and that needs an extra: "
            "pip install 'kquant[micro]' (Linux only). Or export with check_runtimes=False."
        )
    if check:
        check_decodes(probe)


def refuse_other_outputs(plain: bytes, content: bytes, file: FileModel, x: list[np.ndarray]) -> None:
    """Run both files on TFLM.

    Args:
        plain: the file without tables.
        content: the file with tables.
        file: what either holds at its edges.
        x: real numbers [samples, ...] for each input.

    Raises:
        ValueError: an output differs in any code.
    """
    codes = [quantize_input(a, t) for a, t in zip(x, file.inputs, strict=True)]
    expected, decoded = probe(plain, DECODES, codes), probe(content, DECODES, codes)
    for t, a, b in zip(file.outputs, expected, decoded, strict=True):
        if not np.array_equal(a, b):
            raise ValueError(
                f"export: with look-up tables TFLM computes other codes at '{t.name}' than without "
                f"({np.mean(a != b):.2%} of them). Export without compression; please report this."
            )

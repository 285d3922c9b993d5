"""The file whose weights a DECODE writes against the plain one: the same codes, the same outputs, fewer bytes."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from kquant.runtime.decoding import DECODES, check_decodes
from kquant.runtime.running import available, probe, quantize_input
from kquant.tflite.file_model import decoded_from
from kquant.tflite.reader import FileModel, read_model
from kquant.tflite.storage import titles


def check_runtime(keys: Collection[str]) -> None:
    """What a DECODE writes is run here before it takes its place.

    Args:
        keys: of the storages that a file has.

    Raises:
        ValueError: no runtime to run it on, or one that decodes them otherwise.
    """
    if keys and DECODES not in available():
        raise ValueError(
            f"export: a file with {titles(sorted(keys))} is run before it is written, and that "
            "needs an extra: pip install 'kquant[micro]' (Linux only). Or export with check_runtimes=False."
        )
    for key in sorted(keys):
        check_decodes(probe, key)


def refuse_other_outputs(plain: bytes, content: bytes, file: FileModel, x: list[np.ndarray]) -> None:
    """Run both files on TFLM.

    Args:
        plain: the file without a DECODE.
        content: the file with some.
        file: what either holds at its edges.
        x: real numbers [samples, ...] for each input.

    Raises:
        ValueError: an output differs in any code.
    """
    codes = [quantize_input(a, t) for a, t in zip(x, file.inputs, strict=True)]
    expected, decoded = probe(plain, DECODES, codes), probe(content, DECODES, codes)
    for t, a, b in zip(file.outputs, expected, decoded, strict=True):
        if not np.array_equal(a, b):
            form = decoded_from(read_model(content))
            raise ValueError(
                f"export: with {form} TFLM computes other codes at '{t.name}' than without "
                f"({np.mean(a != b):.2%} of them). Export without compression; please report this."
            )

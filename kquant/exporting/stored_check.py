"""The file whose weights a DECODE writes against the plain one: the same codes, the same outputs, fewer bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kquant.runtime.decoding import DECODES, check_decodes
from kquant.runtime.running import available, probe, quantize_input
from kquant.tflite.file_model import decoded_from
from kquant.tflite.reader import FileModel, read_model
from kquant.tflite.storage import Storage, storages, titles

# The argument of `kquant.export`: a key of `STORAGES`, a storage with its options, or several.
Compression = str | Storage | Sequence[str | Storage] | None


def storages_of(compression: Compression) -> tuple[Storage, ...]:
    """What the argument `compression` of `export` asks for; nothing where it is None.

    Raises:
        ValueError: an unknown value.
    """
    if compression is None:
        return ()
    known = storages()
    several = [compression] if isinstance(compression, str | Storage) else list(compression)
    for one in several:
        if not isinstance(one, Storage) and one not in known:
            names = ", ".join(f"'{name}'" for name in known)
            made = ", ".join(f"kquant.{cls.__name__}(...)" for cls in known.values())
            raise ValueError(f"export: compression must be None, {names} or {made}. Received: {compression!r}.")
    return tuple(one if isinstance(one, Storage) else known[one]() for one in several)


def check_runtime(wanted: Sequence[Storage]) -> None:
    """What a DECODE writes is run here before it takes its place.

    Args:
        wanted: forms of weights.

    Raises:
        ValueError: no runtime to run it on, or one that decodes them otherwise.
    """
    if wanted and DECODES not in available():
        raise ValueError(
            f"export: a file with {titles([storage.key for storage in wanted])} is run before it is written, and that "
            "needs an extra: pip install 'kquant[micro]' (Linux only). Or export with check_runtimes=False."
        )
    for storage in wanted:
        check_decodes(probe, storage.key)


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

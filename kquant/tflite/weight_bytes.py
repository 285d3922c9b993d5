"""What the weights of a file take, and what they would take: deflated, behind a DECODE, as sparse tensors."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kquant.core.operators import facts
from kquant.core.packed import PACKED, pack
from kquant.core.result import Result
from kquant.tflite.anatomy import Part, file_parts
from kquant.tflite.lut_format import distinct
from kquant.tflite.reader import DAMAGE, FileModel, FileTensor, contents, label, read_bytes
from kquant.tflite.storage import storages

DEFLATE_LEVEL = 9
BLOCK = 16  # of the int8 kernel of a sparse FULLY_CONNECTED


@dataclass(frozen=True)
class Sparse:
    """Weights as a TFLite sparse tensor.

    Attributes:
        size_bytes: of values, segments and indices.
        form: "densify": a DENSIFY unpacks single values; "1x16": FULLY_CONNECTED reads blocks as they are.
        on_xnnpack: False where LiteRT's other kernels alone compute with them; its default, XNNPACK, does not.
    """

    size_bytes: int
    form: str
    on_xnnpack: bool


@dataclass(frozen=True)
class LayerBytes:
    """One tensor of weights.

    Attributes:
        name: of the tensor; its layer's name stands before the slash.
        operator: the first one that reads it.
        shape, type: as in the file.
        sparsity: share of codes that stand for zero.
        unique: distinct codes.
        unique_per_channel: the largest number of distinct codes of a channel; `unique` without channels.
        raw_bytes: of the codes, as a plain file stores them.
        stored_bytes: of what this file stores for them: less where a DECODE writes them.
        deflated_bytes: of the raw ones through zlib, level 9.
        decoded_bytes: storage -> of what TFLM decodes (header with it); None where it decodes none, or where the
            weights have no such form: a table of more than 128 entries, say.
        sparse: the smallest TFLite sparse tensor; None where LiteRT executes none.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    type: str
    sparsity: float
    unique: int
    unique_per_channel: int
    raw_bytes: int
    stored_bytes: int
    deflated_bytes: int
    decoded_bytes: Mapping[str, int | None]
    sparse: Sparse | None

    @property
    def lut_bytes(self) -> int | None:
        """In look-up tables."""
        return self.decoded_bytes["lut"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, a number for each storage: `lut_bytes`."""
        plain = asdict(self)
        return {**plain, **{f"{key}_bytes": size for key, size in plain.pop("decoded_bytes").items()}}


@dataclass(frozen=True, repr=False)
class FileBytes(Result):
    """The weights of a file.

    Attributes:
        layers: one for each tensor of weights, in the order of the file.
        file_bytes: of the whole file.
        deflated_file_bytes: of the whole file through zlib, level 9: what a download or an update over the air costs.
        vela_bytes: of all weights as Vela encodes them for an Ethos-U; None where it was not asked.
        vela_refusal: what Vela said where it did not take the file.
        parts: what every byte of the file is, the largest part first; they add up to `file_bytes`. Empty in the report
            of an export.
    """

    layers: tuple[LayerBytes, ...]
    file_bytes: int
    deflated_file_bytes: int
    vela_bytes: int | None = None
    vela_refusal: str = ""
    parts: tuple[Part, ...] = ()

    def __repr__(self) -> str:
        raw = self.totals["raw_bytes"]
        return f"FileBytes({len(self.layers)} tensors of weights, {raw:,} bytes, {100 * self.sparsity:.1f} % zeros)"

    @property
    def overhead_bytes(self) -> int:
        """Of the file, all that is no weights: biases, scales, names, tables, padding; 0 without `parts`."""
        return sum(part.bytes for part in self.parts if not part.is_weights)

    @property
    def totals(self) -> dict[str, int]:
        """Sums over the layers.

        A layer that a storage or a sparse tensor would make larger counts raw, and so does a sparse one that
        XNNPACK does not execute.
        """
        return {
            "raw_bytes": sum(layer.raw_bytes for layer in self.layers),
            "stored_bytes": sum(layer.stored_bytes for layer in self.layers),
            "deflated_bytes": sum(layer.deflated_bytes for layer in self.layers),
            **{f"{key}_bytes": sum(_at_most_raw(layer, key) for layer in self.layers) for key in storages()},
            "sparse_bytes": sum(_executed_everywhere(layer) for layer in self.layers),
        }

    @property
    def sparsity(self) -> float:
        """Share of all codes that stand for zero."""
        sizes = [int(np.prod(layer.shape, dtype=np.int64)) for layer in self.layers]
        zeros = sum(layer.sparsity * size for layer, size in zip(self.layers, sizes, strict=True))
        return zeros / max(1, sum(sizes))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        layers = [layer.to_dict() for layer in self.layers]
        return {**asdict(self), "layers": layers, "totals": self.totals, "sparsity": self.sparsity}


def layer_bytes(path: str | Path | bytes) -> FileBytes:
    """Count the bytes of every tensor of weights in a `.tflite` file.

    Args:
        path: the file, or its bytes; also one with look-up tables.

    Returns:
        Sparsity, distinct codes and bytes in several forms, layer by layer, and what every byte of the file is; print
        it with `kquant.report`.

    Raises:
        ValueError: no such file, or not a TFLite file.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 4), "float32"), verbose=False)
        >>> report = kquant.export(q, "dense.tflite")
        >>> [(layer.name, layer.raw_bytes) for layer in kquant.layer_bytes("dense.tflite").layers]
        [('head/kernel', 8)]
        >>> sum(part.bytes for part in kquant.layer_bytes("dense.tflite").parts) == report.file_bytes
        True
    """
    data, where = read_bytes(path), label(path)
    file, held = contents(data, where)
    try:
        return replace(count_bytes(data, file, held), parts=file_parts(data, file))
    except DAMAGE as error:  # shapes, axes and scales that do not go together
        raise ValueError(f"{where} is damaged: {type(error).__name__}: {error}. Export it again.") from error


def count_bytes(data: bytes, file: FileModel, held: dict[int, np.ndarray]) -> FileBytes:
    """`layer_bytes` of a file that was read already (`inspect.contents`)."""
    stored = {table.output: table.stored_bytes for table in file.tables}
    layers = tuple(
        _layer(t, code, held[t.index], stored.get(t.index, t.size_bytes)) for t, code in _weights(file, held)
    )
    return FileBytes(layers, len(data), _deflated(data))


def _weights(file: FileModel, held: dict[int, np.ndarray]) -> Iterator[tuple[FileTensor, str]]:
    """Tensors of weights, each with the first operator that reads it."""
    # Weights behind tables are a tensor of their own for each reader; they are one where they are decoded from one.
    behind = {table.output: (table.indices, table.tables) for table in file.tables}
    seen: set[int | tuple[int, int]] = set()
    for op in file.operators:
        for position in facts(op.code).weights:
            index = op.inputs[position] if position < len(op.inputs) else -1
            stored = behind.get(index, index)
            if index in held and stored not in seen:
                seen.add(stored)
                yield file.tensors[index], op.code


def _layer(t: FileTensor, code: str, values: np.ndarray, stored: int) -> LayerBytes:
    # Along the axis of the channels, so that it broadcasts against the codes.
    zero: Any = np.asarray(t.zero_point).reshape(-1, *[1] * (values.ndim - 1 - t.axis)) if t.scale is not None else 0
    axis = t.axis if t.scale is not None and len(t.scale) > 1 else None
    # Deflated is what the file holds, and it holds codes of few bits packed.
    content = pack(values, t.dtype)
    readable = facts(code).reads_tables and t.dtype in ("int8", *PACKED)
    return LayerBytes(
        name=t.name,
        operator=code,
        shape=t.shape,
        type=t.type,
        sparsity=float(np.mean(np.equal(values, zero))),
        unique=_distinct(values),
        unique_per_channel=_distinct(values, axis),
        raw_bytes=len(content),
        stored_bytes=stored,
        deflated_bytes=_deflated(content),
        decoded_bytes={key: _decoded(key, values, axis, t) if readable else None for key in storages()},
        # A sparse tensor leaves out codes of 0, so those have to stand for zero.
        sparse=_sparse(values, code) if t.type in ("INT8", "FLOAT32") and not np.any(zero) else None,
    )


def _decoded(key: str, codes: np.ndarray, axis: int | None, t: FileTensor) -> int | None:
    stored = storages()[key]().store(codes, axis, np.array(t.zero_point))
    return None if stored is None else stored.size_bytes


def _at_most_raw(layer: LayerBytes, key: str) -> int:
    return min(layer.raw_bytes, layer.decoded_bytes[key] or layer.raw_bytes)


def _executed_everywhere(layer: LayerBytes) -> int:
    sparse = layer.sparse
    return min(layer.raw_bytes, sparse.size_bytes if sparse is not None and sparse.on_xnnpack else layer.raw_bytes)


def _distinct(values: np.ndarray, axis: int | None = None) -> int:
    if values.dtype == np.int8:
        return distinct(values, axis)
    rows = [values] if axis is None else np.moveaxis(values, axis, 0)
    return max((len(np.unique(row)) for row in rows), default=0)


def _deflated(content: bytes) -> int:
    return len(zlib.compress(content, DEFLATE_LEVEL))


def _sparse(values: np.ndarray, code: str) -> Sparse | None:
    """The smallest sparse tensor that LiteRT executes for these weights.

    A DENSIFY unpacks them before an operator (LiteRT: tflite/kernels/densify.cc and the XNNPACK delegate), in int8 not
    before a FULLY_CONNECTED that XNNPACK runs. The kernels of FULLY_CONNECTED also read int8 blocks of 1 x 16 as they
    are (tflite/kernels/fully_connected.cc); XNNPACK takes those for dense ones and computes nonsense.
    """
    if not facts(code).densified or values.ndim < 2:
        return None
    dense = code == "FULLY_CONNECTED" and values.dtype == np.int8
    forms = [Sparse(sparse_bytes(values, 1), "densify", not dense)]
    if dense and values.shape[-1] % BLOCK == 0:
        forms.append(Sparse(sparse_bytes(values, BLOCK), f"1x{BLOCK}", False))
    return min(forms, key=lambda form: form.size_bytes)


def sparse_bytes(values: np.ndarray, block: int) -> int:
    """Bytes of a tensor whose last axis is sparse in blocks: `nnz block + segments + indices`.

    Rows are all other axes. A segment and an index take one, two or four bytes, as their largest value needs.

    Example:
        >>> from kquant.tflite.weight_bytes import sparse_bytes
        >>> sparse_bytes(np.int8([[0, 0, 5, 0], [0, 7, 0, 0]]), 1)  # 2 values, 3 segments, 2 indices
        7
    """
    blocks = np.any(values.reshape(-1, values.shape[-1] // block, block), axis=2)
    count = int(blocks.sum())
    indices = count * _width(blocks.shape[1] - 1)
    # Where each row begins, and the end of the last.
    segments = (len(blocks) + 1) * _width(count)
    return count * block * values.itemsize + segments + indices


def _width(largest: int) -> int:
    return 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4

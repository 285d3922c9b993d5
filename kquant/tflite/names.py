"""Names for the tensors of a file that was written without any: from a file of the same network that has them."""

from __future__ import annotations

from dataclasses import replace

from kquant.tflite.file_model import FileModel, FileOperator, FileTensor
from kquant.tflite.storage import CODE


def is_nameless(file: FileModel) -> bool:
    """Whether no tensor has a name."""
    return bool(file.tensors) and not any(t.name for t in file.tensors)


def with_names(file: FileModel, named: FileModel) -> FileModel:
    """A file without names, its tensors called as in another one that computes the same.

    Operators are what both have in common, one behind the other; a DECODE may stand between them, and casts at the
    edges. A bias without scales, which a file without names leaves out where no kernel reads them, has those of the
    other.

    Args:
        file: what a file without names holds.
        named: the same of one with names.

    Returns:
        The first with names, all else as it is.

    Raises:
        ValueError: other operators.
    """
    own, others = _computing(file), _computing(named)
    codes = [op.code for op in others]
    spare = len(own) - len(others)
    starts = [k for k in range(spare + 1) if [op.code for op in own[k : k + len(others)]] == codes]
    if not starts:
        raise ValueError(
            f"this file has no names, and its {len(own)} operators are not the {len(others)} of the model. Give the "
            "file that kquant.export wrote of it, or export it with its names."
        )
    pairs = [
        (i, j)
        for a, b in zip(own[starts[0] :], others, strict=False)
        for i, j in zip((*a.inputs, *a.outputs), (*b.inputs, *b.outputs), strict=False)
        if i >= 0 and j >= 0
    ]
    like = {i: named.tensors[j] for i, j in pairs}
    names = {i: t.name for i, t in like.items()}
    # where a cast stands at an edge, the edge has the name and what is behind it that of its type besides
    for outer, t in zip((*file.inputs, *file.outputs), (*named.inputs, *named.outputs), strict=False):
        if outer.index not in names:
            inner = next((i for i, name in names.items() if name == t.name), outer.index)
            names[inner] = f"{t.name}/{file.tensors[inner].dtype}"
            names[outer.index] = t.name
    tensors = tuple(_called(t, names.get(t.index, ""), like.get(t.index)) for t in file.tensors)
    return replace(
        file,
        tensors=tensors,
        inputs=tuple(tensors[t.index] for t in file.inputs),
        outputs=tuple(tensors[t.index] for t in file.outputs),
        tables=tuple(replace(table, name=tensors[table.output].name) for table in file.tables),
    )


def _computing(file: FileModel) -> list[FileOperator]:
    return [op for op in file.operators if op.code != CODE]


def _called(t: FileTensor, name: str, other: FileTensor | None) -> FileTensor:
    if other is not None and t.scale is None and t.type in ("INT32", "INT64") and t.size_bytes:
        return replace(t, name=name, scale=other.scale, zero_point=other.zero_point)
    return replace(t, name=name)

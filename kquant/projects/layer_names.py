"""Names in a file -> the layers that they are of."""

from __future__ import annotations

from kquant.tflite.reader import FileModel
from kquant.tflite.timeline import HELPERS


def layer_of(name: str) -> str:
    """The layer that a tensor of a file is named after."""
    return HELPERS.sub("", name)


def written_by(file: FileModel) -> dict[int, str]:
    """What computes each tensor, by its index: the layer whose weights the operator reads, and the one that it is named
    after in brackets, where a batch norm or an activation became part of the operator.

    Args:
        file: what it holds.
    """
    tensors = {t.index: t for t in file.tensors}
    writers: dict[int, str] = {}
    for op in file.operators:
        read = [tensors[i].name for i in op.inputs if i in tensors and tensors[i].size_bytes]
        owners = [name.rpartition("/")[0] for name in read if "/" in name]
        for i in op.outputs:
            layer = layer_of(tensors[i].name)
            writers[i] = layer if not owners or owners[0] == layer else f"{owners[0]} ({layer})"
    return writers

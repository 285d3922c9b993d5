"""Labels of a network trained with CTC, as the C of a project reads them: numbers, and what it must read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kquant.projects.golden import Golden
from kquant.tflite.reader import FileTensor
from kquant.transcribing.best_path import best_path, resolved
from kquant.transcribing.spec import Ctc

INTEGERS = ("int8", "int16")


@dataclass(frozen=True)
class Labels:
    """How labels are read, in the words of `Ctc`.

    Attributes:
        output: its number.
        steps, classes: of the output.
        blank: the class that is no label.
        calls: the labels of each golden call.
    """

    output: int
    steps: int
    classes: int
    blank: int
    calls: tuple[tuple[int, ...], ...]


def labels_of(ctc: Ctc, outputs: Mapping[str, FileTensor], golden: Golden) -> Labels:
    """For a file, and what its golden outputs say.

    Args:
        ctc: what the output means.
        outputs: of the file, in its order.
        golden: of the file.

    Raises:
        ValueError: see `resolved`; an output of floats.
    """
    names, tensors = list(outputs), list(outputs.values())
    output, chosen = resolved(ctc, names, [t.shape for t in tensors], "bundle")
    tensor = tensors[output]
    if tensor.dtype not in INTEGERS:
        raise ValueError(
            f"bundle: output '{names[output]}' is {tensor.dtype}; labels are read from codes; leave io out."
        )
    _, steps, classes = tensor.shape
    scores = [golden.outputs[output][call].reshape(steps, classes) for call in range(golden.calls)]
    said = tuple(tuple(best_path(one, chosen.blank)[0].tolist()) for one in scores)
    return Labels(output, steps, classes, chosen.blank, said)

"""What the scores of a network trained with CTC mean, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_CLASSES = 65_535  # labels of a project's C are uint16


@dataclass(frozen=True)
class Ctc:
    """How the scores of time steps are read: CTC (Graves et al., 2006), by the best path.

    Attributes:
        output: name of the output, `[steps, classes]`, or its number.
        blank: the class that is no label: 0 for `keras.losses.CTC` and `keras.ops.ctc_loss`, -1, the last one, for
            `tf.nn.ctc_loss` with its default and `keras.backend.ctc_batch_cost`.
        alphabet: what each class is called, the blank too; none where a text is not wanted.

    Example:
        >>> Ctc(alphabet=" abc").blank
        0
    """

    output: str | int = 0
    blank: int = 0
    alphabet: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.output, bool) or not isinstance(self.output, str | int):
            raise TypeError(f"Ctc: output is an output's name or number. Received: {self.output!r}.")
        if isinstance(self.blank, bool) or not isinstance(self.blank, int):
            raise TypeError(f"Ctc: blank is the number of a class. Received: {self.blank!r}.")
        letters = tuple(self.alphabet) if isinstance(self.alphabet, Sequence) else (self.alphabet,)
        if not all(isinstance(letter, str) for letter in letters):
            raise TypeError(f"Ctc: alphabet is a text, or texts, one for each class. Received: {self.alphabet!r}.")
        object.__setattr__(self, "alphabet", letters)


@dataclass(frozen=True, eq=False)
class Transcript:
    """What one sample says.

    Attributes:
        labels: int64 `[n]`, classes without blanks and repeats.
        steps: int64 `[n]`, the step at which each begins.
        text: names of the labels in a row; "" without an alphabet.
    """

    labels: np.ndarray
    steps: np.ndarray
    text: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Transcript({self.text or self.labels.tolist()!r})"

"""Remedies that verbs tell in Python, as the command line has them.

A verb does not know who called it. Whoever types commands reads the option or the command in the place of the call.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import NamedTuple


class Typed(NamedTuple):
    """A remedy in Python (a pattern), in words of the command line, and the option that a command must have for it."""

    python: str
    typed: str
    option: str = ""


REMEDIES = (
    Typed(
        r"with the batch axis: kquant\.quantize\(model, input_shape=\(None, ([\d, ]+)\)\)",
        r"without the batch axis: --input-shape \1",
        "input_shape",
    ),
    Typed(
        r"with the batch axis: kquant\.quantize\(model, input_shape=\(None, \.\.\.\)\)",
        "without the batch axis: --input-shape H,W,C",
        "input_shape",
    ),
    Typed(
        r"pass what kquant\.quantize returned",
        "give the quantized .keras file that kquant compress left in its --folder, like build/model.keras",
    ),
    Typed(
        r"Give samples, (and its columns.*): kquant\.split_preprocessing\(model, data\)",
        r"Give samples (--data), \1",
    ),
    Typed(
        r"`kquant\.equalize\(q, data\)` before calibrating",
        '`steps = ["equalize", "calibrate"]` in the recipe, or `kquant correct --steps equalize,calibrate`',
    ),
)


def typed(message: str, options: Container[str] = ()) -> str:
    """A message with its remedies as they are typed.

    Args:
        message: of a verb.
        options: of the command that called it, by the names of their arguments.

    Example:
        >>> typed("net: not a quantized model; pass what kquant.quantize returned.")[:47]
        'net: not a quantized model; give the quantized '
    """
    for remedy in REMEDIES:
        if not remedy.option or remedy.option in options:
            message = re.sub(remedy.python, remedy.typed, message)
    # sizes as the option takes them, in one word
    return re.sub(r"(?<=--input-shape )[\d, ]*\d", lambda sizes: sizes[0].replace(" ", ""), message)

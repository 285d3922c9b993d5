"""The least strength of a rounding whose file has so many bytes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol

import keras

from kquant import targets
from kquant.core.checks import whole_budget
from kquant.core.messages import first_of
from kquant.tflite.edges import IO, check_io
from kquant.tflite.file_content import Form, to_files
from kquant.tflite.lowering import lower
from kquant.tflite.reader import constants, read_model
from kquant.tflite.storage import Storing, storages

STRONGEST = 1e-2  # beyond it no output is like the float model's
MOST = 12  # roundings of all layers
NEAR = 0.01  # of the budget: no better strength is searched for
INSTEAD = ", or give strength= in its place (deflated, the file gets smaller too)"


class NoCodesHold(ValueError):
    """No codes make a file of so many bytes.

    Args:
        message: what is said.
        smallest: bytes of the smallest file that was reached.
    """

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest


class Rounds(Protocol):
    """What rounds the layers of a quantized model."""

    qmodel: keras.Model

    def round_all(self, strength: float, sweep: Any = None, bar: Any = None) -> None:
        """Round all of them."""


def check_target(qmodel: keras.Model, verb: str = "shorten_codes", instead: str = INSTEAD) -> None:
    """Refuse a target that decodes nothing.

    Args:
        qmodel: what is to have so many bytes.
        verb: who asks.
        instead: what else to do for a target without DECODE.

    Raises:
        ValueError: naming one that does.
    """
    target = target_of(qmodel)
    if not target.decodes:
        raise ValueError(
            f"{verb}: flash_bytes counts a file whose weights are in codes, and '{target.name}' decodes none. "
            f"Quantize with target='tflm'{instead}."
        )


def target_of(qmodel: keras.Model) -> Any:
    """What the model was quantized for."""
    from kquant.views.quantized_model import QUANTIZING, read

    nodes = [node for node in read(qmodel).nodes if isinstance(node.op, QUANTIZING)]
    return nodes[0].op.origin.load_target() if nodes else targets.load(targets.DEFAULT)


def coded_form(who: str, io: IO = "model", decode_budget: int | None = None, strip_names: bool = False) -> Form:
    """The form of the file that `kquant.export` writes with compression="auto" and these options.

    Args:
        who: the verb that errors name.
        io: see `kquant.export`.
        decode_budget: likewise.
        strip_names: likewise.

    Raises:
        ValueError: a type that `io` does not know, or a budget that is none.
    """
    check_io(who, io)
    if decode_budget is not None:
        decode_budget = whole_budget(who, "decode_budget", decode_budget, "bytes of arena", least=0)
    storing = Storing(tuple(cls() for cls in storages().values()), free=True, budget_bytes=decode_budget)
    return Form(io=io, storing=storing, bare=strip_names)


def coded_file(qmodel: keras.Model, form: Form) -> bytes:
    """The file that `kquant.export` writes, without running it.

    Args:
        qmodel: quantized and calibrated.
        form: see `coded_form`.
    """
    return to_files(lower(qmodel), form).content


def smallest_strength(run: Rounds, start: float, flash_bytes: int, form: Form, bar: Any) -> float:
    """Round so that the file just holds the budget.

    Bytes fall about evenly with the logarithm of the strength: the next one is where the line through the nearest two
    meets the budget.

    Args:
        run: rounds the layers; left with the least strength that holds.
        start: strength of the first rounding.
        flash_bytes: of the file.
        form: of the file, see `coded_form`.
        bar: its total grows with each rounding.

    Raises:
        NoCodesHold: not even the strongest rounding holds it; with the smallest file and what is in it.
    """
    tried: dict[float, int] = {}
    each = bar.total

    def size(strength: float) -> int:
        bar.total = each * (len(tried) + 1)
        run.round_all(strength, None, bar)
        tried[strength] = len(coded_file(run.qmodel, form))
        return tried[strength]

    strength = start
    while size(strength) > flash_bytes:
        if strength >= STRONGEST:
            raise NoCodesHold(_too_small(run.qmodel, flash_bytes, min(tried.values()), form), min(tried.values()))
        strength = min(strength * 10.0, STRONGEST)
    best = strength
    weakest = start * 1e-6
    while len(tried) < MOST and tried[best] < flash_bytes * (1.0 - NEAR) and best > weakest:
        above = [s for s, n in tried.items() if n > flash_bytes]
        best = max((s for s, n in tried.items() if n <= flash_bytes), key=lambda s: tried[s])
        following = _between(max(above), best, tried, flash_bytes) if above else best / 10.0
        if following in tried or (above and best / max(above) < 1.02):
            break
        if size(following) <= flash_bytes and tried[following] >= tried[best]:
            best = following
    if best != list(tried)[-1]:
        run.round_all(best, None, bar)
    bar.total = bar.n
    return best


def _between(weak: float, strong: float, tried: dict[float, int], flash_bytes: int) -> float:
    """Where the line through two meets a little less than the budget; well inside, or the search would crawl."""
    share = (tried[weak] - flash_bytes * (1.0 - NEAR / 2.0)) / max(tried[weak] - tried[strong], 1)
    share = min(max(share, 0.1), 0.9)
    return math.exp(math.log(weak) + share * (math.log(strong) - math.log(weak)))


def _too_small(qmodel: keras.Model, flash_bytes: int, smallest: int, form: Form) -> str:
    content = coded_file(qmodel, replace(form, bare=False))  # with names
    held = {i: array.nbytes for i, array in constants(content).items()}
    tensors, arena = read_model(content).tensors, form.storing.budget_bytes
    free = replace(form, storing=replace(form.storing, budget_bytes=None), bare=False)
    kept_out = arena is not None and len(coded_file(qmodel, free)) < len(content)
    narrow = f" decode_budget={arena:,} keeps weights out of codes; give more of it, too." if kept_out else ""
    rest = sorted(held, key=lambda i: -held[i])
    largest = first_of([f"{tensors[i].name or 'a tensor'} ({held[i]:,} bytes)" for i in rest[:3]])
    return (
        f"shorten_codes: no codes of the weights make a file of {flash_bytes:,} bytes. The smallest has {smallest:,}, "
        f"with hardly a weight that is not zero; what stands in it beside is the graph itself and {largest}. Give "
        "more, or take channels away first (kquant.prune_channels)." + narrow
    )

"""The operators that a float model becomes on a target: the layer of each, and whether the accelerator takes it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from kquant.core.operators import facts
from kquant.core.packed import PACKED
from kquant.core.program import Operator, Ref
from kquant.placing.parting import Step, running
from kquant.prepare.placement import Place, PlacedLayer, Placement
from kquant.prepare.quantization import quantize
from kquant.recipe.recipe import Recipe
from kquant.sizing.layer_sizes import layer_of, owners_of
from kquant.sizing.made_up import make_up
from kquant.targets import Target
from kquant.targets.accelerator import Accelerator, Fact, Use
from kquant.tflite.file_content import file_content
from kquant.tflite.lowering import Lowered, lower
from kquant.tflite.reader import read_model
from kquant.tflite.rows import read_as_rows
from kquant.tflite.subgraphs import subgraphs
from kquant.tflite.vela import left_by_vela
from kquant.views.quantized_model import read

CODES = {"int8", "int16", "float32", *PACKED}  # types of what a layer computes; others count and point


@dataclass(frozen=True)
class Laid:
    """The operators of a file in order, and where they can run.

    Attributes:
        layers: of each, the user's layer that it comes from.
        codes, steps: of each.
        takes: of each, whether the accelerator takes it, and why not.
        source: what said so.
        compiled: that was the target's compiler.
        needs: the first release of TensorFlow Lite that has all their versions; empty where unknown.
    """

    layers: tuple[str, ...]
    codes: tuple[str, ...]
    steps: tuple[Step, ...]
    takes: tuple[tuple[Fact, str], ...]
    source: str
    compiled: bool
    needs: str

    def taken(self, unknown: bool) -> list[bool]:
        """Of each whether the accelerator takes it, where what is unknown is taken, or left."""
        return [unknown if fact == "unknown" else fact for fact, _ in self.takes]


def lay(model: keras.Model, recipe: Recipe, target: Target, beside: Accelerator, input_shape: Any) -> Laid:
    """Write a float model's file in memory, with made-up ranges, and ask of each operator where it runs.

    Args:
        model: float, of layers that all have an integer form on the target.
        recipe: see `kquant.quantize`.
        target: what the file is for.
        beside: its accelerator.
        input_shape: see `kquant.quantize`.

    Raises:
        ValueError: see `kquant.quantize`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `quantize` says them when the model is quantized for good
        qmodel = quantize(model, recipe, target=target.name, input_shape=input_shape)
    make_up(qmodel, read(qmodel))
    lowered = lower(qmodel)
    # the operators that are written: the file's are looked up by their number below
    lowered = replace(lowered, program=read_as_rows(lowered.program, lowered.target))
    content = file_content(lowered)
    file, operators = read_model(content), lowered.program.operators
    owners = owners_of(lowered.graph)
    named = [op for op in file.operators if op.subgraph == 0]
    takes, source = [beside.takes(_use(op, target)) for op in operators], "the target's file"
    compiled = left_by_vela(content, beside.compiled_for) if target.compiler == "vela" and beside.compiled_for else None
    if compiled is not None:
        source = f"{compiled.version}, which compiled the file for {beside.compiled_for}"
        outputs = [file.tensors[op.outputs[0]].name for op in named]
        takes = [
            (False, f"{op.code}: {compiled.left[name]}") if name in compiled.left else (True, "")
            for op, name in zip(named, outputs, strict=True)
        ]
    return Laid(
        layers=tuple(layer_of(file, op, owners) for op in named),
        codes=tuple(op.code for op in operators),
        steps=tuple(_step(op) for op in operators),
        takes=tuple(takes),
        source=source,
        compiled=compiled is not None,
        needs=_needs(lowered),
    )


def placement(laid: Laid, beside: Accelerator) -> Placement:
    """What `kquant.check` tells of where a model runs, without changes."""
    # twice, since the device is between the two: what is unknown taken, and left
    able = laid.taken(unknown=True)
    parts, runs = running(laid.steps, able, beside.cuts, beside.most)
    left = laid.taken(unknown=False)
    sure, runs_for_sure = running(laid.steps, left, beside.cuts, beside.most)
    layers: dict[str, list[int]] = {}
    for number, name in enumerate(laid.layers):
        layers.setdefault(name, []).append(number)
    open_questions = sum(fact == "unknown" for fact, _ in laid.takes)
    return Placement(
        accelerator=beside.title,
        source=laid.source,
        layers=tuple(_row(name, numbers, laid, parts, runs) for name, numbers in layers.items()),
        cuts=beside.cuts,
        parts=len(parts),
        parts_if_left=len(sure),
        most=beside.most,
        on_accelerator=len(runs_for_sure),
        unknown=open_questions,
        operators=len(laid.steps),
        limits=() if laid.compiled else tuple(_limits(laid, runs, beside)),
        needs=laid.needs,
    )


def _limits(laid: Laid, runs: set[int], beside: Accelerator) -> Iterator[str]:
    """What the claims say in words of operators that run there."""
    for code in dict.fromkeys(laid.codes[number] for number in sorted(runs)):
        if code in beside.by_code and beside.by_code[code].notes:
            yield f"{code}: {beside.by_code[code].notes}"


def _row(name: str, numbers: list[int], laid: Laid, parts: list[list[int]], runs: set[int]) -> PlacedLayer:
    """One layer: left where one of its operators is, since its numbers cross over there."""
    answers = [laid.takes[number] for number in numbers]
    reasons = "; ".join(dict.fromkeys(reason for _, reason in answers if reason))
    within = tuple(n for n, part in enumerate(parts, 1) if set(part) & set(numbers) & runs)
    codes, count = tuple(laid.codes[number] for number in numbers), len(set(numbers) & runs)
    if count < len(numbers):
        place: Place = "both" if count else "processor"
        return PlacedLayer(name, codes, place, within, reasons or "in no part that the accelerator runs")
    place = "unknown" if any(fact == "unknown" for fact, _ in answers) else "accelerator"
    return PlacedLayer(name, codes, place, within, reasons)


def _use(op: Operator, target: Target) -> Use:
    """An operator as the claims of an accelerator speak of it."""
    given = [ref for ref in (*op.inputs, *op.outputs) if ref is not None and ref.data is None]
    weights = [op.inputs[at] for at in facts(op.code).weights if at < len(op.inputs)]
    return Use(
        code=op.code,
        type=op.type if CODES & {ref.dtype for ref in (*op.inputs, *op.outputs) if ref is not None} else "int32",
        version=target.ops[op.code].version_for(op.type) if op.code in target.ops else 1,
        rank=max((len(ref.shape) for ref in given), default=0),
        inner_rank=max((_inner_rank(ref.shape) for ref in given), default=0),
        per_axis=any(ref is not None and _scales(ref) > 1 for ref in weights),
        fused=op.options.get("fusedActivationFunction", "NONE") != "NONE",
        dilated=any(op.options.get(f"dilation{side}Factor", 1) > 1 for side in "HW"),
    )


def _scales(ref: Ref) -> int:
    return 0 if ref.encoding is None else len(ref.encoding.scale)


def _inner_rank(shape: Sequence[int]) -> int:
    """How many axes are left without those of length 1 in front.

    Example:
        >>> _inner_rank((1, 8, 8, 3)), _inner_rank((1, 1, 10))
        (3, 1)
    """
    large = [axis for axis, length in enumerate(shape) if length > 1]
    return len(shape) - large[0] if large else 0


def _step(op: Operator) -> Step:
    def ids(refs: Iterable[Ref | None]) -> tuple[int, ...]:
        # constants are there before the first operator: none waits for them
        return tuple(id(ref) for ref in refs if ref is not None and ref.data is None)

    return Step(ids(op.inputs), ids(op.outputs))


def _needs(lowered: Lowered) -> str:
    """The newest of the releases that the operators' versions came with."""
    found: list[str] = []
    for program in subgraphs(lowered.program):
        for op in program.operators:
            known, row = facts(op.code).since, lowered.target.ops.get(op.code)
            version = 1 if row is None else row.version_for(op.type)
            # one version without a known release, and any answer might be too old
            if version > len(known):
                return ""
            found.append(known[version - 1])
    return max(found, key=lambda release: tuple(map(int, release.split("."))), default="")

"""How wide every call computes: 8 or 16 bits, or float, and where a tensor must change its width between two calls.

settings say 16, the target has the kernel         16
settings say 16, the target has it in 8 bits only   8, and the tensors around it are requantized
a layer that moves codes (reshape, pool)            as its input
float = true, or a recipe without static ranges     float
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kquant.core.operators import facts
from kquant.core.spec import FLOAT, INDEX
from kquant.graph.graph import Graph, Node
from kquant.ops.rule import MOVES, Rule
from kquant.recipe.recipe import Recipe, Settings
from kquant.targets import Target
from kquant.views.fronts import Fronts

# What the target files call the activations of a width.
TYPES = {8: "int8", 16: "int16x8", FLOAT: "float"}


@dataclass(frozen=True)
class Widths:
    """What was decided.

    Attributes:
        calls: id(node) -> bits that the call computes in; `INDEX` where it hands positions on.
        tensors: id(tensor) -> bits that it is stored in.
        narrowed: the calls that were to have 16 bits, and have no kernel for them.
        told: id(node) of the calls whose last input tells which steps are real, in whatever width it comes.
        wide: id(node) of the calls that read 16 bits, whatever they compute in.
    """

    calls: Mapping[int, int]
    tensors: Mapping[int, int]
    narrowed: tuple[Node, ...]
    told: frozenset[int] = frozenset()
    wide: frozenset[int] = frozenset()

    def conversions(self, node: Node) -> Iterator[tuple[int, Any, int]]:
        """(input number, tensor, bits wanted) of the inputs that come in another width."""
        wanted = self.calls.get(id(node))
        wanted = 16 if id(node) in self.wide and wanted != FLOAT else wanted
        for i, t in enumerate(node.inputs[:-1] if id(node) in self.told else node.inputs):
            if wanted is not None and self.tensors[id(t)] not in (wanted, INDEX):
                yield i, t, wanted


def container(bits: int) -> int:
    """The width of the kernels that hold codes of so many bits."""
    return 8 if bits <= 8 else 16


def index_tensors(graph: Graph, rules: Mapping[int, Rule | None]) -> set[int]:
    """Ids of the tensors that are read as positions, and of those that they are parts of: a slice of an input, say."""
    positions: set[int] = set()
    # from those that read positions back to the inputs: only a reader tells what a tensor is
    for node in reversed(graph.nodes):
        rule = rules[id(node)]
        if rule is None:
            continue
        if rule.indices:
            positions.add(id(node.inputs[0]))
        elif moves_indices(rule) and any(id(t) in positions for t in node.outputs):
            positions.update(id(t) for t in node.inputs)
    return positions


def moves_indices(rule: Rule) -> bool:
    """True where the operators take int32 as they take codes: what goes through them is the same positions."""
    copies = rule.output in MOVES and rule.arithmetic is None
    return copies and all(facts(code).moves_indices for code in rule.operators)


def find_widths(
    graph: Graph,
    rules: Mapping[int, Rule | None],
    settings: Mapping[int, Settings],
    recipe: Recipe,
    target: Target,
    fused: frozenset[int],
    front: Fronts,
) -> Widths:
    """Decide for every call, in order.

    Args:
        graph: of an expanded model.
        rules: id(node) -> rule.
        settings: id(layer) -> what the recipe says.
        recipe: gives the width of the model's inputs and outputs.
        target: says which kernels there are.
        fused: ids of outputs that a following activation takes over; that activation computes as the call before.
        front: what stands before a spectrogram.
    """
    edge = container(recipe.activations.bits) if recipe.mode == "static" else FLOAT
    calls: dict[int, int] = {}
    positions = index_tensors(graph, rules)
    tensors = {id(t): INDEX if id(t) in positions else edge for t in graph.input_tensors}
    tensors.update(dict.fromkeys(front.inputs, 16))
    outputs = {id(t) for t in graph.output_tensors}
    narrowed = []
    for node in graph.nodes:
        rule, wanted = rules[id(node)], settings[id(node.op)]
        source = tensors[id(node.inputs[0])] if node.inputs else edge
        if id(node.outputs[0]) in positions and node.inputs:
            calls[id(node)] = INDEX
            tensors.update({id(t): INDEX for t in node.outputs})
            continue
        if wanted.skip or wanted.stays_float:
            bits = FLOAT
        elif rule is None or rule.output in ("same", "follows", "closed") or fused & {id(t) for t in node.inputs[:1]}:
            # codes that move stay what they are; so do floats, where the layer has a form for them
            able = rule is not None and FLOAT in rule.widths and target.floats
            bits = edge if source == INDEX or (source == FLOAT and not able) else source
        else:
            # new codes, in the width that the recipe asks for, whatever came in: `conversions` adds the QUANTIZE
            bits = container(wanted.activations.bits)
        if bits == 16 and rule is not None and not has_width(target, rule, bits):
            if not rule.wide:  # such a one writes 8 bits on purpose
                narrowed.append(node)
            bits = 8
        calls[id(node)] = bits
        for t in node.outputs:  # what leaves a static model is a code, whoever computed it
            tensors[id(t)] = edge if bits == FLOAT and id(t) in outputs else bits
    telling = {id(node) for node in graph.nodes if (rule := rules[id(node)]) is not None and rule.told}
    told = frozenset(call for call in telling if calls[call] != FLOAT)
    return Widths(calls, tensors, tuple(narrowed), told, front.readers)


def has_width(target: Target, rule: Rule, bits: int) -> bool:
    """True where all operators of a rule have kernels of that width."""
    return bits in rule.widths and all(target.supports(code, TYPES[bits]) for code in rule.operators)

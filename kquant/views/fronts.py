"""What stands in front of a layer that reads 16 bits whatever the recipe says (`Rule.wide`): a spectrogram's waveform.

Eight bits of sound are 48 dB, and the powers of it none at all; the numbers behind a logarithm are content with them.
So all calls between the input and such a layer compute in 16 bits, with weights of 8, and the input is that of 16-bit
sound: one step is 2^-15 where samples lie within -1 .. 1, and 1 where they are whole numbers of 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kquant.graph.graph import Graph, Node
from kquant.ops.rule import Rule
from kquant.recipe.recipe import Activations, Settings
from kquant.recipe.training_section import Training

WIDE = 16
# Ranges of what is measured, and not learned, stay where calibration put them.
STAYS = Training(ranges="fixed")
SOUND = {"bits": WIDE, "kind": "power-of-two"}


@dataclass(frozen=True)
class Fronts:
    """What was found.

    Attributes:
        readers: id(node) of the calls that read 16 bits.
        settings: id(layer) -> settings of the layers in front of them.
        inputs: id(tensor) of the model's inputs that they begin at.
    """

    readers: frozenset[int]
    settings: Mapping[int, Settings]
    inputs: frozenset[int]

    def of_input(self, t: Any, activations: Activations) -> dict[str, Any]:
        """How an input of the model is quantized: activations as the recipe says, or as sound."""
        if id(t) not in self.inputs:
            return {"activations": activations}
        return {"activations": activations.model_copy(update=SOUND), "observer": "sound", "training": STAYS}


def fronts(graph: Graph, rules: Mapping[int, Rule | None], settings: Mapping[int, Settings]) -> Fronts:
    """Find them, from the readers back to the inputs.

    Args:
        graph: of an expanded model.
        rules: id(node) -> rule.
        settings: id(layer) -> what the recipe says.
    """
    wanted: set[int] = set()
    readers: set[int] = set()
    changed: dict[int, Settings] = {}
    for node in reversed(graph.nodes):
        rule, said = rules[id(node)], settings[id(node.op)]
        floats = said.skip or said.stays_float
        if rule is not None and rule.wide and not floats:
            readers.add(id(node))
            wanted.update(id(t) for t in node.inputs)
        elif _is_wanted(node, wanted) and not floats:
            changed[id(node.op)] = _widened(said)
            wanted.update(id(t) for t in node.inputs)
    inputs = frozenset(id(t) for t in graph.input_tensors if id(t) in wanted)
    return Fronts(frozenset(readers), changed, inputs)


def _is_wanted(node: Node, wanted: set[int]) -> bool:
    return any(id(t) in wanted for t in node.outputs)


def _widened(said: Settings) -> Settings:
    activations = said.activations.model_copy(update={"bits": WIDE, "kind": "uniform", "observer": "minmax"})
    eight = {"bits": max(8, said.weights.bits), "unpacked_bits": None, "kind": "uniform", "dtype": "int", "block": 0}
    weights = said.weights.model_copy(update={**eight, "observer": "minmax"})
    return Settings(activations, weights, said.skip, said.stays_float, STAYS, said.prefer)

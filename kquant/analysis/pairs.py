"""How far the channels of layers that follow each other are from equal ranges: `kquant.equalize` makes them equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kquant.core.spec import SMALLEST_CHANNEL
from kquant.correct.chains import find_pairs
from kquant.correct.channels import largest, numbering
from kquant.graph.graph import Graph
from kquant.views.quantized_model import Place


@dataclass(frozen=True)
class Pair:
    """Two layers one behind the other.

    Attributes:
        first, second: names.
        spread: largest over smallest ratio, over the channels between, of the first layer's range to the second's;
            1 where they are equalized.
    """

    first: str
    second: str
    spread: float


def pairs(graph: Graph) -> list[Pair]:
    """The pairs that `kquant.equalize` finds, those with a clipped ReLU between left out.

    Source: Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", arXiv:1906.04721,
    section 4.1: ranges `r1_i` of output channel i and `r2_i` of input channel i are to be equal.
    """
    rated = []
    for pair in find_pairs(graph)[0]:
        if pair.clip is not None:
            continue
        before = _ranges(pair.first, 0)
        after = largest(_ranges(pair.second, 1), pair.channels, before.size)
        live = _live(before) & _live(after)
        # equalization divides r1 and multiplies r2 by the same number, so that r1 / r2 of all channels become equal
        ratios = before[live] / after[live]
        spread = float(ratios.max() / ratios.min()) if ratios.size else 1.0
        rated.append(Pair(pair.first.name, pair.second.name, spread))
    return rated


def _ranges(place: Place, side: int) -> np.ndarray:
    """`max|w|` of each output channel (side 0) or input channel (side 1): float64[channels]."""
    numbers = numbering(place)[side]
    return largest(np.abs(place.layer.weights_as_used().numpy().astype(np.float64)), numbers, int(numbers.max()) + 1)


def _live(reaches: np.ndarray) -> np.ndarray:
    """Channels that are not dead, as `encode_weights` sees them."""
    return reaches > reaches.max(initial=0.0) * SMALLEST_CHANNEL

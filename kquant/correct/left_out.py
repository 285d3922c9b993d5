"""Layers that a correction has nothing to do in, as their weights lie on another grid: said by name."""

from __future__ import annotations

from kquant.core.messages import first_of, warn
from kquant.graph.graph import Graph
from kquant.layers.kernel import Holder
from kquant.views.step_places import every_place


def warn_left_out(step: str, graph: Graph, stay: str, *, blocks: bool = False) -> None:
    """Name the layers whose weights are in blocks or on a grid without codes, or say that no layer has any codes.

    Args:
        step: the correction, as a function.
        graph: of a quantized model, loops whole.
        stay: what becomes of layers in blocks: "stay rounded to nearest".
        blocks: the correction takes those, too.
    """
    every = every_place(graph, blocks=True)
    plain = every if blocks else every_place(graph)
    in_blocks = sorted({p.name for p in every} - {p.name for p in plain})
    if in_blocks:
        warn(
            f"{step}: {first_of(in_blocks)} {stay}: their weights are in blocks, whose codes kquant.gptq (step 'gptq') "
            "chooses. Take that in its place."
        )
    held = {node.name: node.op.spec for node in graph.nodes if isinstance(node.op, Holder)}
    grids = {name: spec for name, spec in held.items() if spec is not None}
    other = {name: spec.kind for name, spec in grids.items() if not (spec.has_codes or spec.in_blocks)}
    if other:
        warn(
            f"{step}: {first_of(sorted(other))} stay as they are: it works on codes, and there are none on grids of "
            f"kind {', '.join(sorted(set(other.values())))}. Take kind = 'uniform'."
        )
    if not every and not grids:
        warn(
            f"{step}: no layer of '{graph.name}' has weights that are codes, so nothing was done: the recipe leaves "
            "them float. Leave the step out, or quantize with a recipe whose weights are integers "
            "(int8, int4-weights)."
        )

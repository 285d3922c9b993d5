"""Grids that live in the model only: `quantize` warns of them, `check` tells them, `export` refuses them.

Kernels clip at the ends of their type and multiply codes.
"""

from __future__ import annotations

from kquant.core.spec import KERNEL_BITS, QuantSpec
from kquant.views.plan import Plan


def weights_refused(spec: QuantSpec) -> str:
    """Why no kernel multiplies weights of this grid, and what to take; "" where there are some, but for blocks.

    Args:
        spec: of the weights; those in blocks are read by `kquant.views.packing.block_type`'s operators alone.
    """
    return "" if spec.has_codes else f"weights {_no_codes(spec)}"


def activations_refused(spec: QuantSpec) -> str:
    """Why no kernel has activations of this grid, and what to take; "" where there are some."""
    if not spec.has_codes:
        return f"activations {_no_codes(spec)}"
    if spec.bits not in KERNEL_BITS:
        return f"activations of {spec.bits} bits; kernels have 8 or 16 (weights may have 2 to 8)"
    if not spec.signed:
        return "unsigned activations; signed = true is the same grid for the asymmetric kernels"
    return ""


def simulated_weights(plan: Plan) -> dict[int, str]:
    """id(layer) -> why no kernel of the target multiplies its weights."""
    grids = {key: spec for key, spec in plan.weights.items() if spec is not None}
    return {
        key: reason
        for key, spec in grids.items()
        if (reason := weights_refused(spec)) and not (spec.in_blocks and plan.packings[key].packed)
    }


def simulated(plan: Plan) -> dict[int, str]:
    """id(layer) -> why `export` will refuse its weights, or the tensor that it makes."""
    made = {}
    for node in plan.graph.nodes:
        site = plan.sites.get(id(node.outputs[0]))
        reason = "" if site is None else activations_refused(plan.groups[site.group].spec)
        if reason:
            made[id(node.op)] = reason
    return made | simulated_weights(plan)


def _no_codes(spec: QuantSpec) -> str:
    if spec.in_blocks:
        return (
            f"in blocks of {spec.block}, which no integer kernel multiplies; a rule for these layers with "
            "weights = { block = 0 } gives them a scale a channel; where activations are float (float = true or "
            "mode = 'dynamic'), target 'litert' reads 2 to 4 bits in rows that are a whole number of blocks: of an "
            "Embedding, or of a Dense of 4 units and more in blocks of a multiple of 32"
        )
    nearest = f"take kind = 'uniform' with bits = {16 if spec.bits > 8 else 8}"
    if spec.floating is not None:
        nearest += ", or for weights alone dtype = 'float16'"
    return f"on a {spec.kind} grid, which no integer kernel multiplies; {nearest}"

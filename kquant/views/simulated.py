"""Grids that live in the model only: `quantize` warns of them, `check` tells them, `export` refuses them.

Kernels clip at the ends of their type and multiply codes.
"""

from __future__ import annotations

from kquant.core.packed import MOST_BITS
from kquant.core.spec import KERNEL_BITS, QuantSpec
from kquant.views.plan import Plan

# what multiplies weights in blocks
READERS = (
    "where activations are float (float = true or mode = 'dynamic'), target 'litert' reads 2 to 4 bits in rows that "
    "are a whole number of blocks: of an Embedding, or of a Dense of 4 units and more in blocks of a multiple of 32"
)


def weights_refused(spec: QuantSpec) -> str:
    """Why no kernel multiplies weights of this grid, and what to take; "" where there are some, but for blocks.

    Args:
        spec: of the weights; those in blocks are read by `kquant.views.packing.block_type`'s operators alone.
    """
    return "" if spec.has_codes else f"weights {_no_codes(spec, 'weights')}"


def activations_refused(spec: QuantSpec) -> str:
    """Why no kernel has activations of this grid, and what to take; "" where there are some."""
    if not spec.has_codes:
        return f"activations {_no_codes(spec, 'activations')}"
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


def _no_codes(spec: QuantSpec, settings: str) -> str:
    """Why, and the settings of the nearest grid that runs, as a recipe says them."""
    if spec.in_blocks:
        return (
            f"in blocks of {spec.block}, which no integer kernel multiplies; a rule for these layers with "
            f"weights = {{ block = 0 }} gives them a scale a channel; {READERS}"
        )
    # weights run with 2 to 8 bits, activations with those of kernels
    bits = spec.bits if spec.narrow else min(bits for bits in KERNEL_BITS if bits >= spec.bits)
    whole = ", block = 0" if spec.block else ""
    nearest = f"take {settings} = {{ kind = 'uniform', bits = {bits}{whole} }}"
    if spec.block and bits <= MOST_BITS:
        blocks = f"weights = {{ kind = 'uniform', bits = {bits}, block = {spec.block} }}"
        nearest += f"; or {blocks}: {READERS}"
    if spec.floating is not None and spec.narrow:
        nearest += "; or recipe 'float16' where everything may be float"
    return f"on a {spec.kind} grid, which no integer kernel multiplies; {nearest}"

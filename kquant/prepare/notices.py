"""What `quantize` warns of, as the plan tells it."""

from __future__ import annotations

import numpy as np

from kquant.core.messages import first_of, warn
from kquant.core.origin import origins
from kquant.core.packed import MOST_BITS, bits_of, types_for
from kquant.core.spec import KERNEL_BITS
from kquant.targets import Target
from kquant.views.packing import Packing, times
from kquant.views.plan import Plan
from kquant.views.simulated import simulated_weights


def warn_of_plan(plan: Plan) -> None:
    """Layers that compute nothing, widths that no kernel has, and those that are other ones than the recipe says."""
    warn_dead(plan)
    warn_narrowed(plan)
    warn_heads(plan)
    warn_unpacked(plan)
    warn_simulated(plan)
    warn_simulated_weights(plan)


def warn_equalized(target: Target) -> None:
    """Say that weights are others than the float model's, and that the float function is not."""
    warn(
        f"quantize: {target.title} takes one scale for all weights of a layer, so the channels of layers that follow "
        "each other were equalized first (kquant.equalize); the float function is the same. A step 'equalize' in the "
        "recipe, which may say replace_relu6 = true or absorb = true, takes its place."
    )


def warn_simulated(plan: Plan) -> None:
    """Say before any training that no kernel has activations of such a width or kind: `export` refuses the model."""
    specs = [group.spec for group in plan.groups.values()]
    widths = {spec.bits for spec in specs if spec.has_codes} - set(KERNEL_BITS)
    kinds = sorted({spec.kind for spec in specs if not spec.has_codes})
    blocks = " in blocks" if any(spec.block for spec in specs) else ""
    said = [f"{' and '.join(map(str, sorted(widths)))} bits", f"kind {' and '.join(kinds)}{blocks}"]
    of = " and of ".join(words for words, there in zip(said, (widths, kinds), strict=True) if there)
    if of:
        warn(
            f"quantize: activations of {of} are simulated only: kquant.export "
            "will refuse this model, because kernels have 8 or 16 (weights may have 2 to 8). Take uniform ones of 8 "
            "or 16 bits where a file is wanted."
        )


def warn_simulated_weights(plan: Plan) -> None:
    """The same of weights, each grid once."""
    said: dict[str, set[str]] = {}
    reasons = simulated_weights(plan)
    for node in (node for node in plan.graph.nodes if id(node.op) in reasons):
        said.setdefault(reasons[id(node.op)], set()).add(node.name)
    if said:
        lines = "; ".join(f"{first_of(sorted(names))}: {reason}" for reason, names in said.items())
        warn(f"quantize: weights that are simulated only; kquant.export will refuse this model. {lines}.")


def warn_narrowed(plan: Plan) -> None:
    """Name layers that were to have 16-bit activations, where the target has an 8-bit kernel only."""
    layers = sorted({f"{n.name} ({type(n.op).__name__})" for n in plan.widths.narrowed})
    if layers:
        warn(
            f"quantize: {plan.target.title}, as kquant writes it, has no 16-bit kernel for {', '.join(layers)}; they "
            "compute in 8 bits between two QUANTIZE. docs/layers.md lists what has one."
        )


def warn_heads(plan: Plan) -> None:
    """Say that an output has 16 bits, though the recipe says 8, and how to have 8."""
    if plan.heads:
        warn(
            "quantize: an output of the model joins heads whose ranges may differ (boxes, landmarks, scores): "
            f"{first_of(plan.heads)}. It has 16 bits, so that each keeps its own grid, unless calibration "
            "finds their ranges alike; one grid of 8 bits for all is "
            '`activations = { heads = "joined" }` in the recipe, and two outputs in place of one keep 8 bits for each.'
        )


def warn_unpacked(plan: Plan) -> None:
    """Name layers whose weights would fit into a narrower packed type than the one that they are stored in."""
    stored: dict[tuple[int, int, bool], set[str]] = {}
    avoided: dict[str, Packing] = {}
    for node in plan.graph.nodes:
        packing, wanted = plan.packings.get(id(node.op)), plan.settings[id(node.op)].weights
        narrowest = next(iter(types_for(wanted.bits)), "")
        if packing is None or wanted.block or not narrowest or packing.packed == narrowest:
            continue
        if packing.avoided:
            avoided[node.name] = packing
        else:
            wide = packing.bits > MOST_BITS
            name = f"{node.name} ({packing.bits} bits)" if wide else node.name
            stored.setdefault((bits_of(narrowest), bits_of(packing.packed or "int8"), wide), set()).add(name)
    for (bits, held, wide), names in sorted(stored.items()):
        said = f"quantize: {plan.target.title} takes no packed {bits}-bit weights for {', '.join(sorted(names))}"
        if wide:
            warn(f"{said}, as `unpacked_bits` says.")
            continue
        key = "unpacked_bits" if held > MOST_BITS else "bits"
        warn(
            f"{said}; their codes have {bits} bits and are stored in {held}. Give them {held} bits: "
            f"`weights = {{ {key} = {held} }}` costs no byte."
        )
    if avoided:
        first = next(iter(avoided.values()))
        warn(
            f"quantize: {', '.join(map(str, sorted({p.bits for p in avoided.values()})))}-bit weights for "
            f'{first_of(avoided)}, as `prefer = "latency"` says: packed {bits_of(first.avoided)}-bit ones would cost '
            f"{times(p.slowdown for p in avoided.values())} the latency on {plan.target.title}. A rule with "
            '`prefer = "bytes"` packs those that it names.'
        )


def warn_dead(plan: Plan) -> None:
    """Name layers whose output channels compute nothing: they cost bytes and time, and hint at a lost checkpoint."""
    for node in {id(node.op): node for node in plan.graph.nodes if id(node.op) in plan.weights}.values():
        op, rule = node.op, plan.rules[id(node)]
        if rule is None or rule.weights is None or not rule.weights.channel_axes:
            continue  # a PReLU begins with slopes of zeros, and does what a ReLU does
        if any(kind == "PReLU" for _, kind in origins(op)):
            continue  # the slopes of one in 16 bits
        if any(id(reader) in plan.widths.wide for reader in plan.graph.consumers.get(id(node.outputs[0]), [])):
            continue  # waves: the sine of 0 Hz is 0
        kernel = getattr(op, rule.weights.kernel).numpy()
        kept = {axis % kernel.ndim for axis in rule.weights.channel_axes}
        summed = tuple(axis for axis in range(kernel.ndim) if axis not in kept)
        dead = ~np.any(kernel, axis=summed)
        if dead.all():
            warn(f"{op.name}: every weight is 0; were the weights loaded?")
        elif dead.any():
            warn(
                f"{op.name}: the weights of {int(dead.sum())} of its {dead.size} output channels are all 0; the file "
                "keeps them. Take them out of the model, or check the checkpoint."
            )

"""What data show that deserves a second look, in warnings that name the tensor and the remedy."""

from __future__ import annotations

import keras
import numpy as np

from kquant.calibration.observations import Observations
from kquant.calibration.observers import OVERSHOOT, QUIET_SOUND, SOUND_BITS, is_sound
from kquant.calibration.strange_data import key_of, warn_of_strange_data
from kquant.core.messages import first_of, warn
from kquant.core.spec import QuantSpec
from kquant.graph.stored import Stored
from kquant.layers.kernel import Holder
from kquant.layers.nodes import FakeQuant, encodings_of
from kquant.layers.provenance import provenance_of
from kquant.ops.constant import Below
from kquant.ops.function import Function
from kquant.ops.micro_frontend import MicroFrontend
from kquant.views.heads import takes_wide
from kquant.views.quantized_model import read

HALVES_DIFFER = 2.0
UNEQUAL = 16.0  # widths of ranges in one encoding: 4 bits of the narrow one are gone
LOST = 0.25  # of what a function spans, that no code of its input gives
LOUD = 4.0  # times full scale, which no augmentation reaches by chance
FEW_STEPS = 8  # of the grid, in which all data lie: noise 18 dB below what varies in them, or worse


def warn_of_data(qmodel: keras.Model, seen: Observations) -> None:
    """Of data that do not vary, that change on the way, that lie far from 0, and of ranges that do not go together.

    Args:
        qmodel: the quantized model, whose caller the user called.
        seen: what the data show of it.
    """
    _warn_constant(qmodel, seen)
    _warn_faint(qmodel, seen)
    _warn_moved(seen)
    _warn_far(qmodel, seen)
    warn_of_strange_data(qmodel, seen)
    _warn_unequal(qmodel, seen)
    _warn_sound(qmodel, seen)
    _warn_full_scale(qmodel, seen)


def _constant(seen: Observations) -> list[str]:
    """Tensors that hold a single value on all data."""
    varying = {key[0] for key, s in seen.tensors.items() if s.lows.min() != s.highs.max()}
    return list(dict.fromkeys(key[0] for key in seen.tensors if key[0] not in varying))


def _warn_constant(qmodel: keras.Model, seen: Observations) -> None:
    """Name tensors that data without variety made constant."""
    constant = _constant(seen)
    if constant:  # reading the model takes time
        computed = _computed(qmodel)
        constant = [name for name in constant if name in computed]
    if constant:
        warn(f"calibrate: these tensors hold a single value on all data: {first_of(constant)}. Use data that vary.")


def _warn_faint(qmodel: keras.Model, seen: Observations) -> None:
    """Name tensors whose values are smaller than the steps that the kernels behind can take."""
    faint: dict[str, str] = {}
    for node in encodings_of(qmodel):
        spans = [_span(s.lows, s.highs) for (name, _), s in seen.tensors.items() if name == node.name]
        steps = max(spans, default=0.0) / (node.spec.high - node.spec.low)
        if 0.0 < steps < node.spec.smallest:
            faint[node.name] = f"{node.name} ({max(spans):.3g} wide, in steps of {node.spec.smallest:.3g})"
    if faint:
        warn(
            f"calibrate: these tensors carry hardly any signal: {first_of(list(faint.values()))}. Kernels that read "
            "them (Softmax, sigmoid, tanh) take no finer steps, so that most of their codes are equal. A model without "
            "trained weights looks like this: its file has the right size and speed, not the right numbers."
        )


def _computed(qmodel: keras.Model) -> set[str]:
    """The encodings of tensors that depend on the model's inputs; constants do not, nor what weights of 0 make."""
    graph = read(qmodel)
    varying, names = {id(t) for t in graph.input_tensors}, set()
    for node in graph.nodes:
        encodes = isinstance(node.op, FakeQuant)
        sources = node.args[:1] if encodes else node.inputs
        if not isinstance(node.op, Stored) and not _is_zero(node.op) and any(id(t) in varying for t in sources):
            varying.update(id(t) for t in node.outputs)
            if encodes:
                names.add(node.op.name)
    return names


def _is_zero(op: object) -> bool:
    """True of a layer that sums by weights of 0, as a new PReLU in 16 bits: whatever comes in, its output is its bias.

    Slopes of 0 that a layer multiplies by alone, as a PReLU in 8 bits, let through what is above 0.
    """
    return (
        isinstance(op, Holder) and getattr(op, "sums", True) and not any(np.any(kernel.used) for kernel in op.kernels())
    )


def _warn_moved(seen: Observations) -> None:
    """Name tensors whose range, 0 included as on the grid, is much wider for both halves than for one of them."""
    first, second = _halves(seen.sizes)
    constant = _constant(seen)
    if not first or second >= len(seen.sizes):
        return  # every batch has samples of both halves
    moved = []
    for key, s in seen.tensors.items():
        if key[0] not in constant:
            spans = [_span(s.lows[part], s.highs[part]) for part in (slice(first), slice(second, None))]
            # against the narrower half, which alone would have given another range
            if _span(s.lows, s.highs) > HALVES_DIFFER * max(min(spans), 1e-12):
                moved.append(key[0])
    if moved:
        warn(
            f"calibrate: the range differs more than {HALVES_DIFFER:g} times between the first and the second half of "
            f"the data at: {first_of(moved)}. Shuffle the data, or use more."
        )


def _warn_far(qmodel: keras.Model, seen: Observations) -> None:
    """Name inputs so far from 0 that the grid, which must hold 0, has hardly any codes for what varies in them."""
    layers = {node.name: node for node in encodings_of(qmodel)}
    few = {
        name: (f"{low:g} to {high:g}", steps, layers[name].spec.bits)
        for (name, _), s in seen.tensors.items()
        for low, high in [(float(s.lows.min()), float(s.highs.max()))]
        for steps in [_steps(low, high, layers[name].spec)]
        if low < high and steps < FEW_STEPS
    }
    if not few:  # reading the model takes time
        return
    for name, given in _of_inputs(qmodel).items():
        if name in few:
            values, steps, bits = few[name]
            warn(
                f"calibrate: the values of input '{given}', {values}, span {steps:.1f} steps of its "
                f"{bits}-bit grid, which must hold 0 too: nearly all that varies in them is lost. Subtract their mean "
                "in the application, before the model, and not in a layer of it."
            )


def _of_inputs(qmodel: keras.Model) -> dict[str, str]:
    """Name of an encoding -> that of the model's input which it encodes."""
    graph = read(qmodel)
    inputs = {id(t): t.name for t in graph.input_tensors}
    encodings = [node for node in graph.nodes if isinstance(node.op, FakeQuant)]
    return {node.op.name: inputs[id(node.args[0])] for node in encodings if id(node.args[0]) in inputs}


def _warn_unequal(qmodel: keras.Model, seen: Observations) -> None:
    """Name encodings that several tensors share, where the widest leaves the narrowest hardly any codes."""
    spans: dict[str, list[float]] = {}
    for (name, _), s in seen.tensors.items():
        spans.setdefault(name, []).append(_span(s.lows, s.highs))
    # where kquant itself stretches the grid of logits under a mask, nothing is joined that a model could part
    graph = read(qmodel)
    stretched = {
        node.op.name
        for node in graph.nodes
        if isinstance(node.op, FakeQuant)
        and (made := graph.producers.get(id(node.inputs[0]))) is not None
        and isinstance(made.op, Below)
    }
    spans = {name: widths for name, widths in spans.items() if name not in stretched}
    unequal = {name: sorted(w for w in widths if w > 0.0) for name, widths in spans.items()}
    # every bit more halves the steps of all
    most = {layer.name: UNEQUAL * 2.0 ** (layer.spec.bits - 8) for layer in encodings_of(qmodel)}
    said = [
        f"{name} ({w[0]:.3g} to {w[-1]:.3g} wide)" for name, w in unequal.items() if w and w[-1] > most[name] * w[0]
    ]
    if said:
        target = provenance_of(encodings_of(qmodel)).load_target()
        wide = (
            "Give the join 16 bits by a rule (`activations = { bits = 16 }`)"
            if takes_wide(target, ("QUANTIZE", "CONCATENATION"))
            else f"{target.title} joins 8 bits only, so let the model give what is joined as outputs of their own"
        )
        warn(
            f"calibrate: tensors of very different ranges share an encoding: {first_of(said)}. The kernels of "
            "Concatenate, Maximum and Minimum want one for all that they join, and what else reads a narrow one has few"
            " codes left too. Put keras.layers.Rescaling(1.0) on it before the join, so that its other readers keep a "
            f"grid of their own. {wide}; or bring their ranges nearer with a BatchNormalization."
        )


def _warn_sound(qmodel: keras.Model, seen: Observations) -> None:
    """Name waveforms that are no 16-bit sound, so that their scale follows the data."""
    layers = {node.name: node for node in encodings_of(qmodel) if node.observer == "sound"}
    for (name, _), s in seen.tensors.items():
        low, high = float(s.lows.min()), float(s.highs.max())
        if name in layers and layers[name].spec.bits >= SOUND_BITS and not is_sound(max(-low, high), layers[name].spec):
            warn(
                f"calibrate: the sound of input '{_of_inputs(qmodel)[name]}' goes from {low:g} to {high:g}: neither "
                "within -1 .. 1 nor whole numbers of 16 bits. So its scale follows these data, and the application has "
                "to rescale what its microphone gives. Clip the clips, np.clip(x, -1, 1), or divide them by "
                f"{max(-low, high):.4g}."
            )


def _warn_full_scale(qmodel: keras.Model, seen: Observations) -> None:
    """Name front ends that cut most of their samples off, or round them all to 0: `full_scale` is not theirs."""
    if not any(isinstance(layer, MicroFrontend) for layer in qmodel.layers):  # reading the model takes time
        return
    graph = read(qmodel)
    for node in graph.nodes:
        if not isinstance(node.op, MicroFrontend):
            continue
        before = graph.producers.get(id(node.inputs[0]))
        while before is not None and key_of(before) not in seen.tensors and len(before.inputs) == 1:
            before = graph.producers.get(id(before.inputs[0]))  # its grid is that of what it moves
        if before is None or key_of(before) not in seen.tensors:
            continue
        s, whole = seen.tensors[key_of(before)], node.op.full_scale
        peak = max(-float(s.lows.min()), float(s.highs.max()))
        if 0.0 < peak and (peak > LOUD * whole or (peak < QUIET_SOUND < whole)):
            does = "cuts them off at that" if peak > whole else f"rounds them to {round(peak)} steps and less"
            warn(
                f"calibrate: {node.name} (MicroFrontend): the loudest of its samples is {peak:g}, and "
                f"full_scale={whole:g} {does}, so that hardly any sound is left. {_scaled(peak)}"
            )


def _scaled(peak: float) -> str:
    """How samples with this peak become those of a front end."""
    if peak <= OVERSHOOT or QUIET_SOUND <= peak <= OVERSHOOT * 2**15:
        return f"Make the layer with full_scale={1.0 if peak <= OVERSHOOT else 2.0**15}."
    return f"Divide the samples by {peak:g}, and make the layer with full_scale=1.0."


def warn_of_poles(qmodel: keras.Model, seen: Observations) -> None:
    """Name reciprocals, logarithms and the like whose input came nearer to where they have no bound than a step."""
    functions = [layer for layer in qmodel.layers if isinstance(layer, Function)]
    if all(layer.domain.closed and not layer.domain.hole for layer in functions):
        return
    graph = read(qmodel)
    producers, consumers = graph.producers, graph.consumers
    for node in graph.nodes:
        if not isinstance(node.op, Function) or (node.op.domain.closed and not node.op.domain.hole):
            continue
        before = producers.get(id(node.inputs[0]))
        readers = [n for n in consumers.get(id(node.outputs[0]), []) if not n.kwargs.get("peek")]
        after = [n for n in readers if isinstance(n.op, FakeQuant) and n.op.has_range]
        # the codes that the function can get are those of the encoding before it: without one nothing can be told
        if before is None or not isinstance(before.op, FakeQuant) or before.op.follows or not after:
            continue
        s = seen.tensors[after[0].op.name, after[0].kwargs.get("site", 0)]
        low, high = float(s.lows.min()), float(s.highs.max())
        values = _table(node.op, before.op)
        if values.size and max(high - values.max(), values.min() - low) > LOST * (high - low):
            warn(
                f"calibrate: '{node.name}' ({node.op.function}) takes values from {low:g} to {high:g}, and the codes "
                f"of its input give {values.min():g} to {values.max():g} only: it has no bound near some of the data. "
                "Keep its input away from there (x + 0.1), or leave it out of the model."
            )


def warn_of_padding(qmodel: keras.Model, seen: Observations) -> None:
    """Name tensors in which a real step at the end of a sample gets the codes of padding.

    Args:
        qmodel: the quantized model, with its ranges.
        seen: what the data show of it.
    """
    for node in encodings_of(qmodel):
        for site, value in node.padding.items():
            scale, zero_point, _ = (np.asarray(x) for x in node.grid())
            code = np.clip(np.rint(np.float32(value) / scale) + zero_point, node.spec.low, node.spec.high)
            inside = node.spec.low * scale <= value + zero_point * scale <= node.spec.high * scale
            # a step is padding where all its features round to this code, which lies `off` from the value given
            off = abs(float((code - zero_point) * scale) - value) if inside else 0.0
            if seen.tensors[node.name, int(site)].nearest <= 0.5 * float(scale) + off:
                warn(
                    f"calibrate: '{node.name}': real steps at an end of some samples are so near to {value:g}, which "
                    f"marks padding, that all their codes are the same: the file leaves them out. Write padding as a "
                    "number far from all data, as Masking(mask_value=-999.0): that has a code of its own."
                )


def _table(function: Function, source: FakeQuant) -> np.ndarray:
    """What a function is at every code of its input where it is finite."""
    scale, zero_point, _ = source.grid()
    codes = np.arange(source.spec.low, source.spec.high + 1, dtype=np.float32)
    values = np.asarray(function((codes - float(zero_point)) * float(scale)), np.float64)
    return values[np.isfinite(values)]


def _steps(low: float, high: float, spec: QuantSpec) -> float:
    """Steps of the grid between two values, where it reaches from one to the other and holds 0."""
    reach = 2 * max(-low, high) if spec.symmetric else max(high, 0.0) - min(low, 0.0)
    return (high - low) / max(reach, 1e-30) * (spec.high - spec.low)


def _span(lows: np.ndarray, highs: np.ndarray) -> float:
    return max(float(highs.max()), 0.0) - min(float(lows.min()), 0.0)


def _halves(sizes: np.ndarray) -> tuple[int, int]:
    """The number of batches that lie in the first half of the samples, and the first batch that lies in the second.

    A batch with samples of both is in neither. The middle one of an odd number of samples may close the first half.

    Example:
        >>> _halves(np.array([32, 32, 32, 32])), _halves(np.array([17, 16])), _halves(np.array([10, 10, 10]))
        ((2, 2), (1, 1), (1, 2))
    """
    ends = np.cumsum(sizes)
    first = np.searchsorted(ends, -(-ends[-1] // 2), side="right")
    return int(first), int(np.searchsorted(ends - sizes, ends[-1] / 2, side="left"))

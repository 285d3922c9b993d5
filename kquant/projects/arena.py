"""The smallest tensor arena in which TFLM prepares and runs a file, by trial, and of what it consists."""

from __future__ import annotations

from dataclasses import dataclass

from kquant.core.checks import present
from kquant.core.operators import facts
from kquant.projects.layer_names import layer_of
from kquant.runtime.arenas import arena_bytes, arena_parts
from kquant.tflite.device_kernels import margin_of
from kquant.tflite.memory_plan import memory_plan
from kquant.tflite.reader import FileModel


@dataclass(frozen=True)
class Arena:
    """RAM for tensors.

    Attributes:
        smallest_bytes: with fewer, TFLM does not prepare or run the file on this 64-bit host.
        margin_bytes: what is put on top for a device.
        activation_bytes: of it, tensors that share memory over time, as TFLM plans them.
        scratch_bytes: of it, what kernels ask for beside: the rest of TFLM's head, which holds both. 0 of a file for
            an NPU, whose compiler lays both as one.
        persistent_bytes: of it, what stays: structures of tensors and operators, multipliers (TFLM's tail).
        peak_layer: the layer at which most bytes of tensors are alive; "" where no tensor is.
        peak_bytes: of those tensors.
        tried: `smallest_bytes` was found by trial; otherwise told from the plan in a file that no desk runs.
    """

    smallest_bytes: int
    margin_bytes: int
    activation_bytes: int
    scratch_bytes: int
    persistent_bytes: int
    peak_layer: str
    peak_bytes: int
    tried: bool = True

    @property
    def bytes(self) -> int:
        """What a program should reserve."""
        return self.smallest_bytes + self.margin_bytes


def smallest_arena(content: bytes, file: FileModel) -> Arena:
    """Find it: each trial is a process of its own, since too small an arena may end one.

    Args:
        content: of a file that TFLM runs.
        file: what it holds.

    Raises:
        ValueError: TFLM does not prepare the file, or the `micro` extra is missing.
    """
    _, head, persistent = arena_parts(content)
    high = present(arena_bytes(content), "the arena needs an extra: pip install 'kquant[micro]' (Linux only).")
    layer, peak = peak_of(file)
    return Arena(high, margin_of(high, file), *_parts_of(file, head), persistent, layer, peak)


def _parts_of(file: FileModel, head: int) -> tuple[int, int]:
    """Of the memory that is shared over time: what tensors take, and what kernels ask for beside them.

    Args:
        file: the file.
        head: bytes of that memory.
    """
    # of loops the plan is an upper bound: which tensors a step hands on the file's reader does not tell
    tensors = min(memory_plan(file).size_bytes, head)
    return tensors, head - tensors


def peak_of(file: FileModel) -> tuple[str, int]:
    """The operator at which the memory of tensors is filled to its end, by the name of what it computes, and how many
    bytes are alive there.

    Args:
        file: what `kquant.inspect` reads; constants lie in flash.
    """
    plan = memory_plan(file)
    if plan.peak < 0:
        return "", 0
    # a DECODE writes weights for the operator behind it, whose layer they are
    named = next((op for op in file.operators[plan.peak :] if not facts(op.code).unlisted), file.operators[plan.peak])
    names = {t.index: t.name for t in file.tensors}
    return layer_of(names[named.outputs[0]]), plan.alive_bytes[plan.peak]


def unit_scales_bytes(file: FileModel) -> int:
    """Of the arena, what scales of single units take: FULLY_CONNECTED keeps a multiplier and a shift, int32, for each.

    CONV_2D does so too, with one scale as with many; FULLY_CONNECTED with one keeps none.

    Args:
        file: what `kquant.inspect` reads.
    """
    tensors = {t.index: t for t in file.tensors}
    kernels = [tensors.get(op.inputs[1]) for op in file.operators if op.code == "FULLY_CONNECTED"]
    return sum(8 * len(t.scale) for t in kernels if t is not None and t.scale is not None and len(t.scale) > 1)

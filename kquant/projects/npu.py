"""A file for a processor with an NPU beside it: as the NPU's compiler makes it, and what that leaves out."""

from __future__ import annotations

from dataclasses import dataclass

from kquant.projects.arena import Arena
from kquant.projects.layer_names import written_by
from kquant.targets import Target
from kquant.tflite import vela
from kquant.tflite.arena_forecast import forecast_arena
from kquant.tflite.device_kernels import margin_of
from kquant.tflite.memory_plan import aligned
from kquant.tflite.reader import FileModel, read_model


@dataclass(frozen=True)
class Stays:
    """An operator that runs on the processor.

    Attributes:
        layer: whose it is.
        code: of it.
        reason: in the compiler's words.
    """

    layer: str
    code: str
    reason: str


@dataclass(frozen=True)
class Compiled:
    """What a compiler made of a file.

    Attributes:
        compiler: its name and version; "" where it is not installed, and the file is as it was.
        accelerator: that it compiled for.
        operators: that there were.
        stays: those that stay on the processor.
        needed: what to install; "" where it is there.
    """

    compiler: str
    accelerator: str
    operators: int
    stays: tuple[Stays, ...] = ()
    needed: str = ""

    def __str__(self) -> str:
        if not self.compiler:
            return f"not compiled, so the processor runs all of it: {self.needed}"
        mapped = self.operators - len(self.stays)
        return f"{self.compiler} for {self.accelerator}: {mapped} of {self.operators} operators on the NPU"


def accelerator_of(target: Target, asked: str | None) -> str | None:
    """What a file for a target is compiled for; None where nothing is compiled.

    Args:
        target: of the file.
        asked: the configuration by the compiler's name for it; None for the target's own.

    Raises:
        ValueError: asked for a target without a compiler.
    """
    if target.compiler is None:
        if asked is not None:
            raise ValueError(
                f"bundle: nothing compiles files for target '{target.name}'; leave accelerator='{asked}' out, or "
                "quantize for target='ethos-u'."
            )
        return None
    own = None if target.accelerator is None else target.accelerator.compiled_for
    return asked or own or vela.PLAIN


def compiled_for(content: bytes, file: FileModel, accelerator: str) -> tuple[bytes, Compiled]:
    """A file as it goes into the project, and what became of it.

    Args:
        content: as it was exported.
        file: what it holds.
        accelerator: see `accelerator_of`.

    Raises:
        ValueError: Vela refuses the file or has no such accelerator, in its words.
    """
    if vela.find_vela() is None:
        return content, Compiled("", accelerator, len(file.operators), needed=f"that {vela.NEEDED}")
    made = vela.compiled(content, accelerator, "bundle")
    _check_ports(file, read_model(made.content), made.version)
    names, layers = {t.index: t.name for t in file.tensors}, written_by(file)
    left = [op for op in file.operators if op.outputs and names[op.outputs[0]] in made.left]
    # an operator that helps another one bears the name of that one's layer in front of a slash
    rows = ((layers[op.outputs[0]].split("/")[0], op.code, made.left[names[op.outputs[0]]]) for op in left)
    stays = tuple(Stays(*row) for row in rows)
    return made.content, Compiled(made.version, accelerator, len(file.operators), stays)


def _check_ports(before: FileModel, after: FileModel, compiler: str) -> None:
    """Inputs and outputs are those of the golden vectors, in their order."""
    for side in ("inputs", "outputs"):
        a, b = ([(t.name, t.shape, t.type, t.scale) for t in getattr(file, side)] for file in (before, after))
        if a != b:
            raise ValueError(f"bundle: {compiler} wrote other {side} than the file's: {b} instead of {a}.")


def runs_on_npu(file: FileModel) -> bool:
    """Whether a file has an operator that no desk runs."""
    return vela.NPU in file.operator_counts


def planned_arena(content: bytes, file: FileModel) -> Arena:
    """The arena of a file that runs on an NPU, told from the plan that its compiler wrote into it, not by trial.

    Args:
        content: of the file.
        file: what it holds.
    """
    shared = vela.planned_bytes(content)
    whole = aligned(forecast_arena(file, shared))
    return Arena(whole, margin_of(whole, file), shared, 0, whole - shared, "", 0, tried=False)

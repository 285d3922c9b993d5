"""File against model: every operator integer, every scale the model's own, outputs compared in LSB.

Where outputs differ, the first layer whose codes differ is named: the reference interpreter keeps all its tensors, and
the model computes the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant.core.arguments import check_count
from kquant.core.graph import run
from kquant.core.leftovers import settle
from kquant.core.program import Ref
from kquant.data import gather
from kquant.inspect import EDGES, FileModel, FileTensor, float_operators, inspect, read_bytes, read_model
from kquant.lower import Lowered, lower, without_tables
from kquant.runtimes import Running, probe, quantize_input, refuse_tables

EDGE = 1e-12
BATCH = 32


@dataclass(frozen=True)
class Agreement:
    """One output of the file against the model's simulation.

    Attributes:
        output: name of the tensor.
        equal: share of codes that are equal, 0 to 1.
        max_err_lsb: largest difference of two codes.
        argmax: share of samples whose largest output is the same one.
        sqnr_db: power of the simulated output over the power of the difference (inf where equal).
    """

    output: str
    equal: float
    max_err_lsb: int
    argmax: float
    sqnr_db: float


@dataclass(frozen=True)
class VerifyReport:
    """What `kquant.verify` found.

    Attributes:
        runtime: the interpreter.
        samples: how many were compared.
        agreements: one for each output.
        float_operators: operators that touch floats, though no rule of the recipe says float = true.
        wrong_encodings: tensors whose scale or zero point is not the model's.
        first_difference: the first layer whose codes differ on LiteRT's reference kernels; None where none does, and
            for XNNPACK, whose roundings differ everywhere.
    """

    runtime: str
    samples: int
    agreements: tuple[Agreement, ...]
    float_operators: tuple[str, ...]
    wrong_encodings: tuple[str, ...]
    first_difference: str | None

    @property
    def ok(self) -> bool:
        """Integer throughout, with the model's own encodings."""
        return not self.float_operators and not self.wrong_encodings

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "ok": self.ok}


def verify(
    qmodel: keras.Model, path: str | Path | bytes, data: Any, runtime: str = "litert", *, samples: int = 64
) -> VerifyReport:
    """Compare a file with the model it was exported from.

    Args:
        qmodel: the quantized model.
        path: the file, or its bytes.
        data: like for `kquant.calibrate`.
        runtime: "litert", "litert-reference" or "tflm".
        samples: compare at most this many.

    Returns:
        The report; `ok` is False where the file is not integer or its encodings are not the model's.

    Raises:
        ValueError: the file is no TFLite file, is another model's, the interpreter refuses it, or data do not fit.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).random((64, 4), np.float32)
        >>> q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
        >>> report = kquant.export(q, "dense.tflite", check_runtimes=False)
        >>> kquant.verify(q, "dense.tflite", x, "litert-reference").ok
        True
    """
    check_count("verify", "samples", samples)
    lowered = lower(qmodel)
    if not isinstance(path, bytes):
        settle(Path(path).parent)  # after a kill a file may be of another run than its model
    content = read_bytes(path)
    file = inspect(path)
    if "streaming" in file.metadata:
        raise ValueError(
            "verify: this is a streaming file, which kquant.export has compared with the file over whole clips; run it "
            "with kquant.stream, or verify an export without streaming."
        )
    _refuse_foreign(lowered, file)
    refuse_tables("verify", file, runtime)
    x = gather(qmodel, data, samples)
    return compare(lowered, content, file, x, (runtime,))[0]


def _refuse_foreign(lowered: Lowered, file: FileModel) -> None:
    """Inputs and outputs go by place, as a model that was built again has other names; shapes must be the same."""
    program = lowered.program
    pairs = ((program.inputs, file.inputs), (program.outputs, file.outputs))
    if any([ref.shape for ref in ours] != [t.shape for t in theirs] for ours, theirs in pairs):
        (takes, given), (gives, made) = [(_ports(ours), _ports(theirs)) for ours, theirs in pairs]
        raise ValueError(
            f"verify: this file takes {given} and gives {made}; the model takes {takes} and gives {gives}. It was "
            "exported from another model: give the file that kquant.export wrote of this one."
        )


def _ports(tensors: Sequence[Ref] | Sequence[FileTensor]) -> str:
    return ", ".join(f"'{t.name}' {list(t.shape)}" for t in tensors)


def compare(
    lowered: Lowered, content: bytes, file: FileModel, x: list[np.ndarray], runtimes: Sequence[str]
) -> tuple[VerifyReport, ...]:
    """`verify` on arrays, with the model lowered already; the interpreters run while the model is simulated."""
    codes = [quantize_input(a, t) for a, t in zip(x, file.inputs, strict=True)]
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(probe, content, runtime, codes) for runtime in runtimes]
        expected = _simulated(lowered, x)
        found = [future.result() for future in running]
    floats = tuple(_unwanted_floats(lowered, file))
    wrong = _wrong_encodings(lowered, file)
    reports = []
    for runtime, outputs in zip(runtimes, found, strict=True):
        agreements = tuple(_agreement(t.name, e, f, t) for t, e, f in zip(file.outputs, expected, outputs, strict=True))
        # XNNPACK rounds in its own way; the other two differ only where something is wrong
        different = runtime != "litert" and any(a.equal < 1.0 for a in agreements)
        first = first_difference(lowered, content, file, [a[:1] for a in x]) if different else None
        reports.append(VerifyReport(runtime, len(x[0]), agreements, floats, wrong, first))
    return tuple(reports)


def _unwanted_floats(lowered: Lowered, file: FileModel) -> Iterator[str]:
    """Operators that touch floats, those left out that the recipe wants so."""
    for op in float_operators(file):
        name = file.tensors[op.outputs[0]].name
        wanted = "*" in lowered.floats or name.split("/")[0] in lowered.floats
        if not wanted and not (lowered.floats and op.code in (*EDGES, "RESHAPE")):
            yield f"{op.code} ({name})"


def _simulated(lowered: Lowered, x: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs of the quantized model, eagerly in small batches: no graph to compile for a few samples."""
    rows = []
    for start in range(0, len(x[0]), BATCH):
        struct = keras.tree.pack_sequence_as(lowered.graph.inputs, [a[start : start + BATCH] for a in x])
        values = run(lowered.graph, struct)
        rows.append([np.asarray(values[id(t)]) for t in keras.tree.flatten(lowered.graph.outputs)])
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def _agreement(name: str, expected: np.ndarray, found: np.ndarray, tensor: Any) -> Agreement:
    if tensor.scale is None:  # a float output is compared in steps of an 8-bit grid
        step = max(float(np.abs(expected).max(initial=0.0)), EDGE) / 255
        wanted, got = np.rint(expected / step), np.rint(found.astype(np.float64) / step)
    else:
        step = tensor.scale[0]
        wanted = np.rint(expected / step) + tensor.zero_point[0]
        got = found.astype(np.float64)
    error = np.abs(wanted - got)
    noise = float(np.mean(error**2)) * step**2
    return Agreement(
        output=name,
        equal=float(np.mean(error == 0)),
        max_err_lsb=int(np.ceil(error.max(initial=0))),
        argmax=float(np.mean(wanted.reshape(len(got), -1).argmax(1) == got.reshape(len(got), -1).argmax(1))),
        sqnr_db=float("inf") if noise < EDGE else 10 * float(np.log10(float(np.mean(expected**2)) / noise)),
    )


def _wrong_encodings(lowered: Lowered, file: FileModel) -> tuple[str, ...]:
    """Tensors of the file whose numbers are not the model's, to the bit."""
    by_name = {t.name: t for t in file.tensors}
    pairs = [(ref, _in_file(ref, by_name)) for ref in _refs(lowered)]
    edges = zip((*lowered.program.inputs, *lowered.program.outputs), (*file.inputs, *file.outputs), strict=True)
    pairs += [(ref, t) for ref, t in edges if ref.name not in by_name and ref.dtype == t.dtype]
    return tuple(ref.name for ref, t in pairs if ref.encoding is not None and t is not None and not _same(ref, t))


def _same(ref: Ref, t: FileTensor) -> bool:
    """Scales and zero points, to the bit."""
    return (
        ref.encoding is not None
        and t.scale is not None
        and np.array_equal(np.float32(t.scale), ref.encoding.scale)
        and np.array_equal(np.int64(t.zero_point), ref.encoding.zero_point)
    )


def _in_file(ref: Ref, by_name: dict[str, FileTensor]) -> FileTensor | None:
    """The model's tensor; where the file's edge has another type, the one behind the cast."""
    found = by_name.get(ref.name)
    return found if found is not None and found.dtype == ref.dtype else by_name.get(f"{ref.name}/{ref.dtype}", found)


def _refs(lowered: Lowered) -> list[Ref]:
    return [ref for op in lowered.program.operators for ref in (*op.inputs, *op.outputs) if ref is not None]


def first_difference(lowered: Lowered, content: bytes, file: FileModel, x: list[np.ndarray]) -> str | None:
    """Name of the first layer whose codes differ between the model and LiteRT's reference kernels, on one sample."""
    if file.tables:  # LiteRT's kernels have the plain file only
        content = without_tables(content)
        file = read_model(content)
    tensors = all_tensors(content, [quantize_input(a, t) for a, t in zip(x, file.inputs, strict=True)])
    by_name = {t.name: t for t in file.tensors}
    values = run(lowered.graph, keras.tree.pack_sequence_as(lowered.graph.inputs, x))
    for node in lowered.graph.nodes:
        ref = lowered.refs.get(id(node.outputs[0]))
        tensor = None if ref is None else _in_file(ref, by_name)
        if ref is None or ref.encoding is None or tensor is None:
            continue
        expected = ref.encoding.quantize(np.asarray(values[id(node.outputs[0])]))
        found = tensors(tensor.index)
        if found.shape == expected.shape and not np.array_equal(found, expected):
            differ = float(np.mean(found != expected))
            return f"{ref.name}: {differ:.2%} of its codes, by at most {int(np.abs(found - expected).max())} LSB"
    return None


def all_tensors(content: bytes, codes: list[np.ndarray]) -> Callable[[int], np.ndarray]:
    """Run the reference kernels once and keep every tensor: index -> int64 codes."""
    with Running(content, "litert-reference") as running:
        found = running.tensors(codes)
    return lambda index: found[index].astype(np.int64) if index in found else np.zeros(0, np.int64)

"""File against model: every operator integer, every scale the model's own, outputs compared in LSB.

A model computes the roundings of one runtime (`follows` in its target's file), where codes have to be equal. Another
one rounds some codes otherwise, by one step in a single operator; behind many operators such steps add up, so that an
output is compared by its noise. Where outputs differ, the first layer whose codes differ is named: the file is run once
more with the tensor of every layer as an output, and the model computes the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from kquant.calibration.data import gather
from kquant.core.checks import check_count
from kquant.core.program import Program, Ref
from kquant.core.renamed import renamed
from kquant.core.result import Result
from kquant.exporting.edge_casts import at_edge, behind_edge
from kquant.files.leftovers import settle
from kquant.graph.given_model import check_keras
from kquant.graph.graph import run
from kquant.runtime.decoding import DECODES
from kquant.runtime.running import FALLBACK, available, probe, quantize_input, refuse_tables
from kquant.targets import Target
from kquant.tflite.box_choice import KEY, without_choice
from kquant.tflite.file_content import file_content
from kquant.tflite.file_model import EDGES, float_operators
from kquant.tflite.file_positions import positions_in
from kquant.tflite.flatbuffer import SHRUNK, with_outputs, with_zero_points
from kquant.tflite.lowering import Lowered, lower
from kquant.tflite.names import is_nameless, with_names
from kquant.tflite.reader import (
    FileModel,
    FileOperator,
    FileTensor,
    inspect,
    label,
    read_bytes,
    read_model,
)
from kquant.tflite.stored_weights import without_decodes

EDGE = 1e-12
BATCH = 32
# On the runtime that the model follows codes are equal; what is left are functions of floats (a softmax's exponential).
EQUAL, NEARLY = 0.999, 0.99
# Noise of 1 % of the outputs' power. XNNPACK's own roundings leave 25 dB and more on the models of MLPerf Tiny
# (docs/benchmarks.md); a wrong scale or a wrong layer leaves less than 10.
AGREEMENT_DB = 20.0
Verdict = Literal["equal", "rounds otherwise", "wrong"]


@dataclass(frozen=True)
class Agreement:
    """One output of the file against the model's simulation.

    Attributes:
        output: name of the tensor.
        equal: share of codes that are equal, 0 to 1.
        max_err_lsb: largest difference of two codes.
        argmax: share of samples whose largest output is the same one.
        sqnr_db: power of the simulated output over the power of the difference (inf where equal). A position is no
            quantity: each has the power 1, right or wrong, so that 20 dB are 1 of 100 that differs.
        positions: how many the output tells apart where it is what an argmax found; 0 where it is a quantity.
    """

    output: str
    equal: float
    max_err_lsb: int
    argmax: float
    sqnr_db: float
    positions: int = 0


@dataclass(frozen=True, repr=False)
class VerifyReport(Result):
    """What `kquant.verify` found.

    Attributes:
        runtime: the interpreter.
        samples: how many were compared.
        agreements: one for each output.
        float_operators: operators that touch floats, though no rule of the recipe says float = true.
        wrong_encodings: tensors whose scale or zero point is not the model's.
        first_difference: the first layer whose codes differ on this runtime, on one sample; None where none does.
        follows: the model computes this runtime's roundings, so that codes have to be equal.
        agreement: SQNR in dB that the outputs of a runtime with other roundings have to reach; see `Agreement.sqnr_db`
            for what that is of positions.
        note: why this runtime was taken and not the target's; empty where it was asked for or is that one.
    """

    runtime: str
    samples: int
    agreements: tuple[Agreement, ...]
    float_operators: tuple[str, ...]
    wrong_encodings: tuple[str, ...]
    first_difference: str | None
    follows: bool = True
    agreement: float = AGREEMENT_DB
    note: str = ""

    def __repr__(self) -> str:
        worst = min((a.sqnr_db for a in self.agreements), default=math.inf)
        return f"VerifyReport({self.runtime}, {self.samples} samples: {self.verdict}, {worst:.4g} dB)"

    @property
    def verdict(self) -> Verdict:
        """What the file is to the model.

        "equal": equal in every code. "rounds otherwise": the model's encodings, integer throughout, and some codes that
        this runtime rounds otherwise. "wrong": floats, other encodings, or other codes where they have to be equal.
        """
        if self.float_operators or self.wrong_encodings:
            return "wrong"
        if all(a.equal == 1.0 for a in self.agreements):
            return "equal"
        return "wrong" if self.follows and not all(_nearly(a) for a in self.agreements) else "rounds otherwise"

    @property
    def agrees(self) -> bool:
        """The outputs reach the agreement."""
        return all(a.sqnr_db >= self.agreement for a in self.agreements)

    @property
    def ok(self) -> bool:
        """Not wrong, and as near to the model as was asked for."""
        return self.verdict == "equal" or (self.verdict == "rounds otherwise" and self.agrees)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "verdict": self.verdict, "ok": self.ok}


def _nearly(a: Agreement) -> bool:
    # the step between two positions has no size: a winner by one code more is any other
    return a.equal >= EQUAL or (a.equal >= NEARLY and (a.positions > 0 or a.max_err_lsb <= 1))


def share_asked(agreement: float) -> float:
    """The share of positions that have to be equal for an SQNR.

    Args:
        agreement: SQNR in dB.

    Example:
        >>> share_asked(20.0)
        0.99
    """
    return max(0.0, 1.0 - 10.0 ** (-agreement / 10.0))


@renamed
def verify(
    qmodel: keras.Model,
    path: str | Path | bytes,
    data: Any,
    runtime: str | None = None,
    *,
    limit: int | None = 64,
    agreement: float = AGREEMENT_DB,
) -> VerifyReport:
    """Compare a file with the model it was exported from.

    Reads: `qmodel` stays as it was.

    Args:
        qmodel: the quantized model.
        path: the file, or its bytes.
        data: like for `kquant.calibrate`.
        runtime: "litert" (XNNPACK), "litert-reference" or "tflm"; by default the first of the model's target that is
            installed ("litert" for litert, "litert-reference" for ethos-u, "tflm" for tflm). Where none is, LiteRT's
            reference kernels, which round some codes otherwise than TFLM; `note` says so.
        limit: compare at most this many samples; None: all.
        agreement: SQNR in dB that every output has to reach on a runtime that rounds otherwise than the model; of
            positions (`ops.argmax`) 20 dB are 99 of 100 that have to be equal.

    Returns:
        The report. `verdict` is "equal", "rounds otherwise" or "wrong"; `ok` is False where it is wrong, or further
        from the model than `agreement`.

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
    check_keras(qmodel, "verify")
    if limit is not None:
        check_count("verify", "limit", limit)
    if not (isinstance(agreement, int | float) and math.isfinite(agreement)):
        raise ValueError(f"verify: agreement must be a number of dB. Received: {agreement!r}.")
    if isinstance(path, str | Path):
        settle(Path(path).parent)  # after a kill a file may be of another run than its model
    content = read_bytes(path)
    file = inspect(path)
    if KEY in file.metadata:  # what its boxes are chosen from is the model's
        try:
            content = without_choice(content, file.metadata[KEY])
        except ValueError as error:
            raise ValueError(f"verify: {label(path)}: {error}") from error
        file = read_model(content)
    lowered = lower(qmodel, shrink=SHRUNK in file.metadata)
    # where TFLM is not installed, LiteRT gets every zero point
    one, note = file.one_zero_point and runtime is not None, ""
    if runtime is None:
        runtime, note = runtime_of(lowered.target)
    if "streaming" in file.metadata:
        raise ValueError(
            "verify: this is a streaming file, which kquant.export has compared with the file over whole clips; run it "
            "with kquant.stream, or verify an export without streaming."
        )
    _refuse_foreign(lowered, file)
    if is_nameless(file):
        file = _named(lowered, file)
    refuse_tables("verify", replace(file, one_zero_point=one), runtime)
    x = gather(qmodel, data, limit)
    (report,) = compare(lowered, content, file, x, (runtime,))
    return replace(report, agreement=float(agreement), note=note)


def _named(lowered: Lowered, file: FileModel) -> FileModel:
    """A file without names, with those that the model's own has."""
    try:
        return with_names(file, read_model(file_content(lowered)))
    except ValueError as error:
        raise ValueError(f"verify: {error}") from error


def runtime_of(target: Target) -> tuple[str, str]:
    """The runtime to verify a target's files on, and what has to be said of it."""
    installed = [name for name in target.runtimes if name in available()]
    if installed:
        return installed[0], ""
    return FALLBACK, (
        f"{', '.join(target.runtimes)} is not installed here (pip install 'kquant[micro]', Linux only); compared on "
        f"{FALLBACK}, which rounds some codes otherwise"
    )


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
    lowered: Lowered,
    content: bytes,
    file: FileModel,
    x: list[np.ndarray],
    runtimes: Sequence[str],
    *,
    locate: bool = True,
) -> tuple[VerifyReport, ...]:
    """`verify` on arrays, with the model lowered already; the interpreters run while the model is simulated.

    Args:
        lowered: the model.
        content: the file.
        file: what it holds.
        x: one array for each input.
        runtimes: one report for each.
        locate: look for the first difference where nothing is wrong, too; costs a process for each runtime.
    """
    floats = tuple(_unwanted_floats(lowered, float_operators(file), file))
    wrong = _wrong_encodings(lowered, file)
    codes = [quantize_input(a, t) for a, t in zip(x, file.inputs, strict=True)]
    taken = [behind_edge(file, t, c, a) for t, c, a in zip(file.inputs, codes, x, strict=True)]
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(probe, _runnable(content, file, runtime), runtime, codes) for runtime in runtimes]
        expected = [at_edge(file, t, y) for t, y in zip(file.outputs, _simulated(lowered, taken), strict=True)]
        computed = [future.result() for future in running]
    reports = []
    for runtime, outputs in zip(runtimes, computed, strict=True):
        agreements = tuple(
            _agreement(t, e, f, positions_in(file, t)) for t, e, f in zip(file.outputs, expected, outputs, strict=True)
        )
        follows = runtime == lowered.target.follows
        report = VerifyReport(runtime, len(x[0]), agreements, floats, wrong, None, follows)
        if any(a.equal < 1.0 for a in agreements) and (locate or not report.ok):
            runnable = _runnable(content, file, runtime)
            first = first_difference(lowered, runnable, file, (codes, taken), runtime, (expected, outputs))
            report = replace(report, first_difference=first)
        reports.append(report)
    return tuple(reports)


def _runnable(content: bytes, file: FileModel, runtime: str) -> bytes:
    """The file with as many zero points as this runtime asks for."""
    return with_zero_points(content) if file.one_zero_point and runtime != DECODES else content


def _unwanted_floats(lowered: Lowered, floats: Sequence[FileOperator], file: FileModel) -> Iterator[str]:
    """Operators that touch floats, those left out that the recipe wants so."""
    for op in floats:
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
        rows.append([np.asarray(values[id(t)]) for t in lowered.graph.output_tensors])
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def _codes(expected: np.ndarray, given: np.ndarray, tensor: Any) -> tuple[np.ndarray, np.ndarray, float]:
    """Codes of the model and of the file, and the step between two."""
    if tensor.scale is None:  # a float output is compared in steps of an 8-bit grid
        step = max(float(np.abs(expected).max(initial=0.0)), EDGE) / 255
        wanted, got = (np.rint(y.astype(np.float64) / step) for y in (expected, given))
        return wanted, got, step
    step = tensor.scale[0]
    return np.rint(expected / step) + tensor.zero_point[0], given.astype(np.float64), step


def _agreement(tensor: FileTensor, expected: np.ndarray, given: np.ndarray, positions: int) -> Agreement:
    wanted, got, step = _codes(expected, given, tensor)
    error = np.abs(wanted - got)
    noise, power = float(np.mean(error**2)) * step**2, float(np.mean(expected**2))
    if positions:
        noise, power = float(np.mean(error != 0)), 1.0
    return Agreement(
        output=tensor.name,
        equal=float(np.mean(error == 0)),
        max_err_lsb=int(np.ceil(error.max(initial=0))),
        argmax=float(np.mean(wanted.reshape(len(got), -1).argmax(1) == got.reshape(len(got), -1).argmax(1))),
        sqnr_db=float("inf") if noise < EDGE else 10 * float(np.log10(power / noise)),
        positions=positions,
    )


def _wrong_encodings(lowered: Lowered, file: FileModel) -> tuple[str, ...]:
    """Tensors of the file whose numbers are not the model's, to the bit."""
    by_name = {t.name: t for t in file.tensors}
    pairs = [(ref, _in_file(ref, by_name)) for ref in _refs(lowered.program)]
    edges = zip((*lowered.program.inputs, *lowered.program.outputs), (*file.inputs, *file.outputs), strict=True)
    pairs += [(ref, t) for ref, t in edges if ref.name not in by_name and ref.dtype == t.dtype]
    return tuple(ref.name for ref, t in pairs if ref.encoding is not None and t is not None and not _same(ref, t))


def _same(ref: Ref, t: FileTensor) -> bool:
    """Scales and zero points, to the bit."""
    return (
        ref.encoding is not None
        and t.scale is not None
        and np.array_equal(np.array(t.scale, np.float32), ref.encoding.scale)
        and np.array_equal(np.array(t.zero_point, np.int64), ref.encoding.zero_point)
    )


def _in_file(ref: Ref, by_name: dict[str, FileTensor]) -> FileTensor | None:
    """The model's tensor; where the file's edge has another type, the one behind the cast."""
    tensor = by_name.get(ref.name)
    return (
        tensor if tensor is not None and tensor.dtype == ref.dtype else by_name.get(f"{ref.name}/{ref.dtype}", tensor)
    )


def _refs(program: Program) -> Iterator[Ref]:
    """What the operators read and write, those inside a loop too."""
    for op in program.operators:
        yield from (ref for ref in (*op.inputs, *op.outputs) if ref is not None)
        for inner in op.graphs.values():
            yield from _refs(inner)


def first_difference(
    lowered: Lowered,
    content: bytes,
    file: FileModel,
    inputs: tuple[list[np.ndarray], list[np.ndarray]],
    runtime: str,
    results: tuple[list[np.ndarray], list[np.ndarray]],
) -> str | None:
    """Name of the first layer whose codes differ between the model and a runtime, on the first sample that differs.

    `inputs` are codes, for the file, and real numbers, for the model. The file is run with the tensors of all layers as
    outputs, in a process of its own. None where no layer differs, and where the runtime computes other outputs then (it
    may choose other kernels): nothing could be said of the file.
    """
    if file.tables:  # what a DECODE writes
        content = without_decodes(content)
        file = read_model(content)
    by_name = {t.name: t for t in file.tensors}
    nodes = []
    for node in lowered.graph.nodes:
        ref = lowered.refs.get(id(node.outputs[0]))
        tensor = None if ref is None else _in_file(ref, by_name)
        if ref is not None and ref.encoding is not None and tensor is not None and tensor not in file.inputs:
            nodes.append((node, ref, tensor.index))
    own = [t.index for t in file.outputs]
    shown = list(dict.fromkeys((*own, *(index for *_, index in nodes))))
    opened = with_outputs(content, shown)
    expected, outputs = results
    places = [np.flatnonzero(_differs(e, f, t)) for e, f, t in zip(expected, outputs, file.outputs, strict=True)]
    at = int(min(p[0] for p in places if p.size))
    codes, sample = ([a[at : at + 1] for a in each] for each in inputs)
    found = dict(zip(shown, probe(opened, runtime, codes), strict=True))
    if any(not np.array_equal(found[index], y[at : at + 1]) for index, y in zip(own, outputs, strict=True)):
        return None
    values = run(lowered.graph, keras.tree.pack_sequence_as(lowered.graph.inputs, sample))
    for node, ref, index in nodes:
        model, there = ref.encoding.quantize(np.asarray(values[id(node.outputs[0])])), found[index].astype(np.int64)
        left = lowered.narrowed.kept.get(id(ref))
        model = model if left is None else model[..., left]
        if there.shape == model.shape and not np.array_equal(there, model):
            differ = float(np.mean(there != model))
            return f"{ref.name}: {differ:.2%} of its codes, by at most {int(np.abs(there - model).max())} LSB"
    return None


def _differs(expected: np.ndarray, given: np.ndarray, tensor: FileTensor) -> np.ndarray:
    """bool[samples]: whether any code of a sample differs."""
    wanted, got, _ = _codes(expected, given, tensor)
    return np.any((wanted != got).reshape(len(got), -1), axis=1)

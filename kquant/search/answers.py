"""Why is the file not smaller, why is it not faster: where bytes and time go, and what was tried against it.

    float model, recipe  ->  candidates  ->  quantize, steps  ->  bytes, arena, MACs, accuracy  ->  those that help

Why it is not more accurate is what `kquant.analyze` tells. As there, nothing is told that was not tried: the float
model (`kquant.strip(qmodel)`) is made anew with each candidate and measured on the same samples, before any training.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import keras
import numpy as np

from kquant import targets
from kquant.analysis.metrics import check_metric, judged
from kquant.analysis.remedies import merged
from kquant.analysis.sqnr import mean_db, noises_of
from kquant.analysis.units import macs, units
from kquant.calibration.data import gather
from kquant.core.callers import is_callers
from kquant.core.checks import check_count
from kquant.core.progress import tqdm
from kquant.core.result import Result
from kquant.correct.steps import apply_steps
from kquant.exporting.asked_storing import AUTO, storing_of
from kquant.graph.given_model import check_keras
from kquant.layers.nodes import encodings_of
from kquant.layers.provenance import provenance_of
from kquant.masking.stripping import strip
from kquant.ops.position import found_or_whole
from kquant.prepare.quantization import quantize
from kquant.recipe.recipe import Recipe
from kquant.runtime.arenas import arena_of
from kquant.shrink.channel_pruning import prune_channels
from kquant.shrink.factorization import factorize
from kquant.tflite.file_content import Form, to_files
from kquant.tflite.lowering import lower
from kquant.tflite.reader import contents
from kquant.tflite.weight_bytes import FileBytes, count_bytes
from kquant.views.quantized_model import read

Question = Literal["smaller", "faster"]
KEPT = 0.75  # of MACs or bytes, where channels leave or kernels are split
NAMED = 3  # layers that take most


@dataclass(frozen=True)
class Trial:
    """A model, measured.

    Attributes:
        lines: what makes it: of a recipe (TOML), or of Python; empty for the model as it is.
        file_bytes: size of its file.
        arena_bytes: RAM of its tensors in TFLM; None without the `micro` extra, or for files that it does not run.
        macs: multiply-accumulates of one sample.
        value: of the metric; None without one.
        sqnr_db: of the outputs against those of the float model.
    """

    lines: str
    file_bytes: int
    arena_bytes: int | None
    macs: int
    value: float | None
    sqnr_db: float


@dataclass(frozen=True)
class Answer:
    """To one question.

    Attributes:
        question: "smaller" or "faster".
        because: where bytes or time go.
        trials: what helps; what costs least accuracy first.
        in_vain: lines that were tried and do not help.
    """

    question: Question
    because: str
    trials: tuple[Trial, ...]
    in_vain: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Answers(Result):
    """What `kquant.why` found.

    Attributes:
        model, recipe, target: names.
        samples: how many were measured on.
        metric: what values are of; empty without one.
        float_value: of the float model; None without a metric.
        start: the model as it is.
        answers: one for each question.
    """

    model: str
    recipe: str
    target: str
    samples: int
    metric: str
    float_value: float | None
    start: Trial
    answers: tuple[Answer, ...]

    def __repr__(self) -> str:
        helping = sum(len(answer.trials) for answer in self.answers)
        tried = helping + sum(len(answer.in_vain) for answer in self.answers)
        where = f"{self.model!r}, {self.recipe} on {self.target}, {self.samples} samples"
        return f"Answers({where}: {helping} of {tried} changes make it smaller or faster)"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def why(
    qmodel: keras.Model,
    data: Any,
    metric: Callable[[Any], float] | None = None,
    *,
    calibration: Any = None,
    limit: int | None = 256,
    verbose: bool = True,
) -> Answers:
    """Tell why a model's file is not smaller and not faster, and which lines make it so at which cost.

    Reads: `qmodel` stays as it was.

    Tried are, where they change anything: 4-bit weights for the layer with most bytes and for all, 8-bit activations,
    weights as codes that the target decodes, a quarter less bytes or MACs by removing channels
    (`kquant.prune_channels`) and by splitting kernels (`kquant.factorize`). What training would win back is not in it.

    Args:
        qmodel: a calibrated model, whose recipe is known.
        data: to measure on, see `kquant.calibrate`; the first samples are used.
        metric: see `kquant.analyze`.
        calibration: samples for the recipe's steps, which those that are measured on should not be; by default `data`.
        limit: use at most this many samples of each; None: all.
        verbose: show a progress bar.

    Returns:
        For each question where bytes or time go, and the changes that help, measured.

    Raises:
        ValueError: not a quantized model, not calibrated, no data, or nobody knows its recipe any more.

    Example:
        >>> model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(64), keras.layers.Dense(8)])
        >>> x = np.random.default_rng(0).normal(size=(64, 32)).astype("float32")
        >>> q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
        >>> smaller, faster = kquant.why(q, x, verbose=False).answers
        >>> smaller.trials[0].file_bytes < kquant.export(q, "m.tflite", check_runtimes=False).file_bytes
        True
    """
    check_keras(qmodel, "why")
    if limit is not None:
        check_count("why", "limit", limit)
    check_metric("why", metric)
    graph = read(qmodel)
    origin = provenance_of(encodings_of(qmodel))
    recipe = origin.load_recipe()
    if recipe is None:
        raise ValueError(
            f"why: nobody knows the recipe of {qmodel.name} any more, so nothing can be tried. Quantize its float "
            "model again with kquant.quantize."
        )
    x = gather(qmodel, data, limit)
    seen = x if calibration is None else gather(qmodel, calibration, limit)
    given, calibrating = (keras.tree.pack_sequence_as(graph.inputs, arrays) for arrays in (x, seen))
    plain = strip(qmodel)
    bench = _Bench(plain, recipe, origin.target, given, calibrating, metric, _outputs(plain, given))
    start, content = bench.measured("", qmodel)
    counted = _counted(content)
    candidates: dict[Question, Candidates] = {"smaller": _smaller(qmodel, counted, bench), "faster": _faster()}
    every = {lines: make for found in candidates.values() for lines, make in found.items()}
    tried: dict[str, Trial | None] = {}
    for lines in tqdm(every, desc="why", unit="model", disable=not verbose, total=len(every)):
        tried[lines] = bench.trial(lines, qmodel, every[lines])
    because: dict[Question, str] = {"smaller": _of_bytes(counted), "faster": _of_time(qmodel)}
    return Answers(
        model=qmodel.name,
        recipe=origin.recipe,
        target=origin.target,
        samples=len(x[0]),
        metric="" if metric is None else getattr(metric, "__name__", type(metric).__name__),
        float_value=None if metric is None else judged(metric, _as_given(bench.outputs)),
        start=start,
        answers=tuple(_answer(q, said, start, [(n, tried[n]) for n in candidates[q]]) for q, said in because.items()),
    )


def _answer(question: Question, said: str, start: Trial, tried: Sequence[tuple[str, Trial | None]]) -> Answer:
    key = "file_bytes" if question == "smaller" else "macs"
    helping = [trial for _, trial in tried if trial is not None and getattr(trial, key) < getattr(start, key)]
    helped = {trial.lines for trial in helping}
    in_vain = tuple(lines for lines, _ in tried if lines not in helped)
    return Answer(question, said, tuple(sorted(helping, key=_worth, reverse=True)), in_vain)


def _worth(trial: Trial) -> tuple[float, float]:
    return (trial.sqnr_db if trial.value is None else trial.value), trial.sqnr_db


@dataclass(frozen=True, eq=False)
class _Bench:
    """Where models are made and measured.

    Attributes:
        model: the float one.
        recipe, target: of the quantized one.
        data: samples to measure on, in the structure of the inputs.
        calibration: those for the recipe's steps, likewise.
        metric: of the outputs, or None.
        outputs: of the float model.
    """

    model: keras.Model
    recipe: Recipe
    target: str
    data: Any
    calibration: Any
    metric: Callable[[Any], float] | None
    outputs: list[np.ndarray]

    def trial(self, lines: str, qmodel: keras.Model, make: Make) -> Trial | None:
        """Of a candidate; None where no model comes of it."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a model that nobody keeps
                return self.measured(lines, *make(self, qmodel))[0]
        except ValueError as error:
            if is_callers(error):
                raise  # a fault of the caller's metric is none of the recipe
            return None  # the target lacks the kernel, a budget is out of reach, or weights get no smaller

    def made(self, model: keras.Model, recipe: Recipe) -> keras.Model:
        """A quantized model, the recipe's steps done."""
        qmodel = quantize(model, recipe, target=self.target)
        apply_steps(qmodel, recipe.steps, self.calibration, verbose=False)
        return qmodel

    def measured(self, lines: str, qmodel: keras.Model, compression: Any = None) -> tuple[Trial, bytes]:
        """A quantized model's figures, and its file."""
        lowered = lower(qmodel)
        content = to_files(lowered, Form(storing=storing_of(compression))).content
        arena = arena_of(content, contents(content)[0], lowered.target)
        outputs = _outputs(qmodel, self.data)
        sqnr_db = mean_db(noises_of(found_or_whole(qmodel), self.outputs, outputs))
        value = None if self.metric is None else judged(self.metric, _as_given(outputs))
        return Trial(lines, len(content), arena, _macs(qmodel), value, sqnr_db), content


# What makes a quantized model, and the form in which its file keeps weights.
Make = Callable[[_Bench, keras.Model], tuple[keras.Model, Any]]
Candidates = dict[str, Make]


def _outputs(model: keras.Model, data: Any) -> list[np.ndarray]:
    # a parameter of Keras has the type of its default
    outputs = model.predict(data, verbose=0)  # pyright: ignore[reportArgumentType]
    return [np.asarray(y) for y in keras.tree.flatten(outputs)]


def _as_given(outputs: list[np.ndarray]) -> Any:
    """As `kquant.analyze` hands them to a metric."""
    return outputs[0] if len(outputs) == 1 else outputs


def _macs(qmodel: keras.Model) -> int:
    return sum(macs(unit) for unit in units(read(qmodel)))


def _counted(content: bytes) -> FileBytes:
    return count_bytes(content, *contents(content))


def _in_recipe(*changes: str) -> Candidates:
    """Lines of a recipe."""

    def made(bench: _Bench, lines: str) -> tuple[keras.Model, Any]:
        return bench.made(bench.model, merged(bench.recipe, lines)), None

    return {lines: lambda bench, _, lines=lines: made(bench, lines) for lines in changes}


def _in_python(verb: Callable[..., keras.Model], budget: str) -> Candidates:
    """A call that gives a smaller float model."""

    def made(bench: _Bench, _: keras.Model) -> tuple[keras.Model, Any]:
        smaller = verb(bench.model, **{budget: KEPT}, data=bench.calibration, verbose=False)
        return bench.made(smaller, bench.recipe), None

    return {f"model = kquant.{verb.__name__}(model, {budget}={KEPT}, data=data)": made}


def _in_file(*storages: str) -> Candidates:
    """Another form of the weights; outputs stay."""
    return {
        f'kquant.export(qmodel, path, compression="{key}")': lambda _, qmodel, key=key: (qmodel, key)
        for key in storages
    }


def _smaller(qmodel: keras.Model, counted: FileBytes, bench: _Bench) -> Candidates:
    largest = _largest(counted)
    changes = ["[activations]\nbits = 8"] if any(e.spec.bits > 8 for e in encodings_of(qmodel)) else []
    if largest:
        changes += [f'[[rules]]\nlayer = "{largest[0][0]}"\nweights = {{ bits = 4 }}', "[weights]\nbits = 4"]
    decoded = (AUTO,) if targets.load(bench.target).decodes else ()
    return {**_in_recipe(*changes), **_in_file(*decoded), **_in_python(prune_channels, "weight_bytes")}


def _faster() -> Candidates:
    return {**_in_python(prune_channels, "macs"), **_in_python(factorize, "macs")}


def _largest(counted: FileBytes) -> list[tuple[str, int]]:
    """Layers by their bytes of weights, the largest first; a layer's name stands before the slash."""
    sizes: dict[str, int] = {}
    for row in counted.layers:
        name = row.name.partition("/")[0]
        sizes[name] = sizes.get(name, 0) + row.stored_bytes
    return sorted(sizes.items(), key=lambda item: -item[1])


def _of_bytes(counted: FileBytes) -> str:
    weights, whole = counted.totals["stored_bytes"], counted.file_bytes
    named = ", ".join(f"{name} {size:,} ({100 * size / whole:.0f} %)" for name, size in _largest(counted)[:NAMED])
    rest = f"biases, scales, names and structure take {whole - weights:,}"
    return f"Of {whole:,} bytes {weights:,} ({100 * weights / whole:.0f} %) are weights, most in {named}; {rest}."


def _of_time(qmodel: keras.Model) -> str:
    costs = sorted(((macs(unit), unit.name) for unit in units(read(qmodel))), reverse=True)
    whole = sum(n for n, _ in costs) or 1
    named = ", ".join(f"{name} ({100 * n / whole:.0f} %)" for n, name in costs[:NAMED] if n)
    return f"{whole:,} multiply-accumulates for a sample, most in {named}."

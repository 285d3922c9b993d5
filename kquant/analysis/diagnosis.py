"""Where accuracy went: ranges, noise and sensitivity of every layer, causes and remedies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant.analysis.by_chance import CHANCE, by_chance
from kquant.analysis.columns import unlike_columns
from kquant.analysis.findings import Evidence, Loss, findings
from kquant.analysis.liveness import peak_bytes
from kquant.analysis.metrics import check_metric, name_of
from kquant.analysis.pairs import pairs
from kquant.analysis.passes import Names, Passes, all_names, chunks, settings_of
from kquant.analysis.remedies import Trials, told
from kquant.analysis.results import Analysis, Gain, LayerReport, Sensitivity, TensorReport
from kquant.analysis.separately import AnalysisElsewhere, Work, kept_in
from kquant.analysis.sqnr import mean_db
from kquant.analysis.tensors import tensor_report
from kquant.analysis.units import Unit, live_bytes, macs, units, weight_bytes, widths
from kquant.analysis.weights import weight_report
from kquant.calibration.data import gather
from kquant.core.checks import check_count
from kquant.core.renamed import renamed
from kquant.files.destination import check_folder
from kquant.graph.given_model import check_keras
from kquant.graph.graph import Graph
from kquant.layers.nodes import FakeQuant
from kquant.layers.provenance import Provenance, provenance_of
from kquant.masking.stripping import strip
from kquant.views.quantized_model import read, refuse_uncalibrated


@renamed
def analyze(
    qmodel: keras.Model,
    data: Any,
    metric: Callable[[Any], float] | None = None,
    *,
    limit: int | None = 256,
    sensitivity: bool = True,
    remedies: bool = True,
    folder: str | Path | None = None,
    verbose: bool = True,
) -> Analysis:
    """Tell where a quantized model loses accuracy, and what to try.

    Reads: `qmodel` stays as it was.

    `SQNR = 10 log10(sum y^2 / sum (y_q - y)^2)` in dB, y the float tensor. Figures of layers "end to end" come from the
    integer arithmetic of the device; sensitivities from floats on the grids, with some layers quantized only.

    Every remedy has been tried: the float model (`kquant.strip(qmodel)`) is quantized again by the model's own recipe
    with the remedy in it, its steps run on the samples, and the gain is measured on them. What gains nothing, or takes
    SQNR away, is not told; of two that gain the same, the cheaper is (corrections and observers, a scale for each
    channel, 8-bit weights, 16-bit activations, in this order). Differences of the metric count where they are more than
    chance makes of so few samples (`Analysis.by_chance`); where the loss is not, SQNR judges.

    Args:
        qmodel: a calibrated model.
        data: see `kquant.calibrate`; the first samples are used, so they should be shuffled.
        metric: `metric(outputs) -> float`, higher is better. `outputs` is the model's output for the samples in order,
            float32[samples, ...], or a list of them for several outputs. None: SQNR of the outputs against the float
            model in dB (of the mean ratio of noise to signal, where there are several). A metric keeps the outputs of
            every setting in memory, some four for each layer.
        limit: analyze at most this many samples; None: all.
        sensitivity: measure the model with each layer alone quantized, and with all but it; takes most of the time.
        remedies: try remedies for what is found; takes a quantization and a pass over the samples for each.
        folder: keep settings and remedies that were measured there, in analysis.json; the same call, with data in the
            same order and a metric that says the same again, goes on where it was stopped.
        verbose: show progress bars.

    Returns:
        The analysis: `print(kquant.report.render(analysis))`, `kquant.report.html(analysis, "report.html")`.

    Raises:
        ValueError: not a quantized model, not calibrated, no data, data that do not fit, or a folder of another
            analysis.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
        >>> accuracy = lambda y: float(np.mean(y.argmax(1) == model(x).numpy().argmax(1)))
        >>> kquant.analyze(q, x, accuracy, verbose=False).float_value
        1.0

    Source: sensitivity by quantizing one layer, and all but one: Nagel et al., "A White Paper on Neural Network
    Quantization", arXiv:2106.08295, section 3.7.
    """
    check_keras(qmodel, "analyze")
    return analyzed(qmodel, data, metric, Asked(limit, sensitivity, remedies, folder, verbose))


@dataclass(frozen=True)
class Asked:
    """Arguments of `analyze`."""

    limit: int | None
    sensitivity: bool
    remedies: bool
    folder: str | Path | None
    verbose: bool

    def check(self) -> None:
        """Refuse what can be refused before anything runs."""
        if self.limit is not None:
            check_count("analyze", "limit", self.limit)
        check_folder(self.folder, "analyze", "analysis")


def analyzed(
    qmodel: keras.Model, data: Any, metric: Any, asked: Asked, elsewhere: AnalysisElsewhere | None = None
) -> Analysis:
    """See `analyze`.

    Args:
        qmodel: see there.
        data: see there.
        metric: see there.
        asked: see there.
        elsewhere: makes what does not depend on the rest; None: this process.
    """
    asked.check()
    check_metric("analyze", metric)
    graph = read(qmodel)
    refuse_uncalibrated("analyze", qmodel)
    parts = units(graph)
    x = gather(qmodel, data, asked.limit)
    origin = provenance_of(layer for u in parts for layer in (*u.holders, *u.encodings))
    work = Work(kept_in(asked.folder, qmodel, x, origin, metric), elsewhere)
    passes = _passes(qmodel, graph, parts, x, metric, asked, work)
    layers, tensors = _layers(graph, parts, passes, asked.sensitivity), _tensors(graph, parts, passes)
    everything, weights = all_names(parts), _weights(parts)
    plain, simulated = passes.value(passes.NONE), passes.value(everything)
    reached = passes.value(passes.ALL), mean_db(passes.outputs[passes.ALL].noises)
    lost_by_chance = _by_chance(passes, plain, reached[0], len(x[0]))
    given = qmodel.name, len(x[0]), tuple(parts), layers, tensors, tuple(pairs(graph))
    loss = Loss(plain, simulated, metric is None, reached[0], reached[1], lost_by_chance < CHANCE)
    causes = findings(Evidence(*given, loss, unlike_columns(graph, x)))
    trying = asked.remedies and any(f.candidates for f in causes)
    rights = passes.right(passes.ALL), Gain(plain - reached[0], math.inf, passes.right(passes.NONE))
    trials = _trials(qmodel, origin, x, metric, (*reached, *rights)) if trying else None
    return Analysis(
        model=qmodel.name,
        recipe=origin.recipe,
        target=origin.target,
        samples=len(x[0]),
        metric=name_of(metric),
        float_value=plain,
        value=reached[0],
        simulated=simulated,
        weights_only=passes.value(weights),
        activations_only=passes.value(everything - weights),
        sqnr_db=reached[1],
        macs=sum(row.macs for row in layers),
        weight_bytes=sum(row.weight_bytes for row in layers),
        peak_bytes=peak_bytes(graph),
        layers=layers,
        tensors=tensors,
        findings=told(causes, trials, work.gains, asked.verbose),
        by_chance=lost_by_chance,
    )


def _by_chance(passes: Passes, plain: float, reached: float, samples: int) -> float:
    """How far chance makes what the metric lost; see `Analysis`."""
    if passes.metric is None:
        return 0.0
    if not plain > reached:
        return 1.0
    return by_chance(plain - reached, samples, passes.right(passes.NONE), passes.right(passes.ALL))


def _trials(
    qmodel: keras.Model,
    origin: Provenance,
    x: list[np.ndarray],
    metric: Any,
    reached: tuple[float, float, str, Gain],
) -> Trials | None:
    """The float model and the recipe that remedies are tried with; None where nobody knows the recipe any more."""
    recipe = origin.load_recipe()
    return None if recipe is None else Trials(strip(qmodel), recipe, origin.target, x, metric, *reached)


def _passes(
    qmodel: keras.Model,
    graph: Graph,
    parts: list[Unit],
    x: list[np.ndarray],
    metric: Any,
    asked: Asked,
    work: Work,
) -> Passes:
    """The data walked over: in one go, or setting by setting where rows are kept or made elsewhere."""
    settings, alone = _settings(parts, asked.sensitivity), asked.folder is None and work.elsewhere is None
    walked = settings if alone else _settings(parts, False)
    passes = Passes(graph, parts, metric, walked)
    passes.walk(chunks(graph, x), asked.verbose)
    if asked.folder is not None:
        work.recognize(passes.value(passes.NONE), passes.value(passes.ALL))
    if not alone:
        work.settle(passes, qmodel, x, [names for names in settings if names not in walked], asked.verbose)
    return passes


def _weights(parts: list[Unit]) -> Names:
    """Everything that has weights."""
    return frozenset().union(*(u.weight_names for u in parts))


def _settings(parts: list[Unit], sensitivity: bool) -> list[Names]:
    """Each set of layers to be quantized once; that of none is the float model."""
    # equal sets run once: a model of one layer has the same set for "weights" and for "this layer alone"
    everything, weights = all_names(parts), _weights(parts)
    wanted = [everything, weights, everything - weights, *(settings_of(parts) if sensitivity else ())]
    return [names for names in dict.fromkeys(wanted) if names]


def _layers(graph: Graph, parts: list[Unit], passes: Passes, sensitivity: bool) -> tuple[LayerReport, ...]:
    bits = widths(graph)
    return tuple(
        LayerReport(
            name=unit.name,
            kind=unit.kind,
            sqnr_db=passes.noises[id(unit)].db,
            local_sqnr_db=passes.local[id(unit)].db if id(unit) in passes.local and sensitivity else None,
            macs=macs(unit),
            weight_bytes=weight_bytes(unit),
            live_bytes=live_bytes(unit, bits),
            weights=None if unit.weighted is None else weight_report(unit.weighted),
            sensitivity=_sensitivity(unit, passes, all_names(parts)) if sensitivity else None,
        )
        for unit in parts
    )


def _sensitivity(unit: Unit, passes: Passes, everything: Names) -> Sensitivity:
    # of one that has weights or an encoding only, `only` says it already
    both = bool(unit.weight_names and unit.quant_names)
    return Sensitivity(
        only=passes.value(unit.names),
        only_weights=passes.value(unit.weight_names) if both else None,
        only_activations=passes.value(unit.quant_names) if both else None,
        all_but=passes.value(everything - unit.names),
    )


def _tensors(graph: Graph, parts: list[Unit], passes: Passes) -> tuple[TensorReport, ...]:
    names = {q.name: unit.name for unit in parts for q in unit.quants}
    layers = {node.op.name: node.op for node in graph.nodes if isinstance(node.op, FakeQuant)}
    makers = graph.producers
    made_by = {}
    for name, nodes in passes.calls.items():
        # a model input has no maker; an encoding of several tensors goes by the last of them
        maker = makers.get(id(nodes[-1].args[0]))
        made_by[name] = names[name] if maker is None else maker.name
    return tuple(
        tensor_report(layers[name], passes.sources[name], names[name], made_by[name], seen)
        for name, seen in passes.seen.items()
    )

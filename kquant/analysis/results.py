"""What `kquant.analyze` returns: frozen data, from the model down to one tensor."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from kquant.analysis.by_chance import CHANCE
from kquant.core.messages import first_of
from kquant.core.result import Result

# A remedy that is no line of a recipe: the application scales the columns, and the model begins behind that.
SPLIT = (
    "kquant.split_preprocessing(model, data)  # on the command line: kquant split MODEL.keras --data X --folder split"
)


@dataclass(frozen=True)
class WeightReport:
    """The weights of one layer.

    Attributes:
        bits: width of a code; 16 where float16 stores them.
        per_axis: one scale for each output channel.
        low, high: smallest and largest weight.
        spread: largest over smallest `max|w|` of the channels, dead ones left out.
        sqnr_db: of the weights on their grid against the float ones.
        clipped: share of weights beyond the ends of the grid.
        channels: `max|w|` of each output channel.
        counts, edges: histogram of the weights, each over the end of its own grid: what lies beyond -1 and 1 clips;
            over the largest weight where there is no grid.
    """

    bits: int
    per_axis: bool
    low: float
    high: float
    spread: float
    sqnr_db: float
    clipped: float
    channels: tuple[float, ...]
    counts: tuple[int, ...] = ()
    edges: tuple[float, ...] = ()


@dataclass(frozen=True)
class TensorReport:
    """One encoding, and the float values that meet it.

    Attributes:
        name: of the `FakeQuant`.
        unit: the layer that it belongs to.
        layer: the layer whose output it holds, which a rule has to name: the ReLU behind a convolution, say.
        bits: width of a code.
        low, high: ends of the grid, from calibration or prescribed.
        seen_low, seen_high: smallest and largest float value in the analyzed data.
        clipped: share of values beyond the ends of the grid.
        used: share of the grid between the 0.1 % and the 99.9 % quantile of the values (and 0).
        rounding, clipping: mean squared error of the values inside and outside the grid.
        sqnr_db: power of the values over both errors.
        moved: distance of these quantiles (and 0) in all data over the one in the first half of them.
        best_low, best_high: the range with the least mean squared error on these values.
        gain_db: how much that range would raise `sqnr_db`.
        sites: (smallest, largest) calibrated value of each tensor that shares the encoding.
        counts, edges: histogram of the values, 64 bins and their ends.
        is_fixed: the kernel prescribes the encoding.
    """

    name: str
    unit: str
    layer: str
    bits: int
    low: float
    high: float
    seen_low: float
    seen_high: float
    clipped: float
    used: float
    rounding: float
    clipping: float
    sqnr_db: float
    moved: float
    best_low: float
    best_high: float
    gain_db: float
    sites: tuple[tuple[float, float], ...]
    counts: tuple[int, ...]
    edges: tuple[float, ...]
    is_fixed: bool


@dataclass(frozen=True)
class Sensitivity:
    """The metric with some of the model quantized, in floats on the grids.

    Attributes:
        only: this layer alone, weights and output.
        only_weights, only_activations: one of both alone; None where it has only one of them.
        all_but: everything but this layer.
    """

    only: float
    only_weights: float | None
    only_activations: float | None
    all_but: float


@dataclass(frozen=True)
class LayerReport:
    """One layer, or an operation whose output has an encoding of its own.

    Attributes:
        name, kind: of the layer.
        sqnr_db: of its output in the quantized model against the float one, end to end: its own noise and all before.
        local_sqnr_db: the same, with this layer alone quantized and its input in float; None without sensitivity.
        macs: multiplications of one sample.
        weight_bytes: kernel and bias as stored.
        live_bytes: of its inputs and its output together; other tensors that wait for a later layer are not in it.
        weights: None where it has none.
        sensitivity: None where it was not asked for.
    """

    name: str
    kind: str
    sqnr_db: float
    local_sqnr_db: float | None
    macs: int
    weight_bytes: int
    live_bytes: int
    weights: WeightReport | None
    sensitivity: Sensitivity | None


@dataclass(frozen=True)
class Gain:
    """What a remedy gained when it was tried on the samples.

    Attributes:
        value: of the metric.
        sqnr_db: of the outputs.
        right: samples that the model with it answers right, see `by_chance.right_of`.
    """

    value: float
    sqnr_db: float
    right: str = field(default="", repr=False)


@dataclass(frozen=True)
class Finding:
    """A cause of lost accuracy.

    Attributes:
        layer: where; the model's name where it is no single layer.
        cause: in a few words.
        evidence: the figures that say so.
        remedy: lines of a recipe (TOML) that were tried and gain, `SPLIT` likewise, or a call that data are wanted for;
            empty where nothing that was tried gains anything.
        gain: of the remedy, measured on the samples; None where there is none.
        candidates: lines of recipes that are worth trying, or `SPLIT`.
        tried: they were.
    """

    layer: str
    cause: str
    evidence: str
    remedy: str = ""
    gain: Gain | None = None
    candidates: tuple[str, ...] = ()
    tried: bool = False


@dataclass(frozen=True, repr=False)
class Analysis(Result):
    """What `kquant.analyze` found; layers and tensors in the order of the model.

    Attributes:
        model, recipe, target: names.
        samples: how many were analyzed.
        metric: what `value` and the sensitivities are measured in; higher is better.
        float_value: of the float model (inf where the metric is SQNR).
        value: of the quantized model, in integer arithmetic.
        simulated: the same in floats on the grids, which sensitivities are to be compared with.
        weights_only, activations_only: with only these quantized.
        sqnr_db: of the outputs, in integer arithmetic, whatever the metric.
        macs, weight_bytes: sums over the layers.
        peak_bytes: the most bytes of activations that are alive together, skip connections included.
        layers, tensors, findings: the details.
        by_chance: how often models that are as good differ in the metric as much or more as the quantized and the float
            one, on so many samples (McNemar's test; the least that it can be, where the metric does not tell samples
            apart); 0 where the metric does not count, 1 where nothing is lost.
    """

    model: str
    recipe: str
    target: str
    samples: int
    metric: str
    float_value: float
    value: float
    simulated: float
    weights_only: float
    activations_only: float
    sqnr_db: float
    macs: int
    weight_bytes: int
    peak_bytes: int
    layers: tuple[LayerReport, ...]
    tensors: tuple[TensorReport, ...]
    findings: tuple[Finding, ...]
    by_chance: float = 0.0

    @property
    def is_sure(self) -> bool:
        """False where the metric lost nothing, or no more than chance makes: SQNR judges then."""
        return self.by_chance < CHANCE

    def __repr__(self) -> str:
        said = f"{self.metric} {self.float_value:.4g} in float, {self.value:.4g} quantized"
        said = f"SQNR of the outputs {self.value:.4g} dB" if math.isinf(self.float_value) else said
        causes = first_of((f"{f.layer}: {f.cause}" for f in self.findings), 2) or "nothing stands out"
        return f"Analysis({self.model!r}, {self.recipe} on {self.target}, {self.samples} samples: {said}; {causes})"

    def layer(self, name: str) -> LayerReport:
        """The layer of that name.

        Raises:
            ValueError: there is none.
        """
        return _named(self.layers, name)

    def tensor(self, name: str) -> TensorReport:
        """The encoding of that name.

        Raises:
            ValueError: there is none.
        """
        return _named(self.tensors, name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def _named(rows: tuple[Any, ...], name: str) -> Any:
    named = [row for row in rows if row.name == name]
    if not named:
        raise ValueError(f"analysis: no '{name}'. There are: {', '.join(row.name for row in rows)}.")
    return named[0]

"""Causes of lost accuracy, each with its evidence and the remedies worth trying (`remedies` tries them)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kquant.analysis.by_chance import is_sure
from kquant.analysis.columns import Columns
from kquant.analysis.pairs import Pair
from kquant.analysis.results import SPLIT, Finding, LayerReport, TensorReport
from kquant.analysis.units import Unit
from kquant.layers.nodes import Compressed
from kquant.layers.provenance import NOWHERE
from kquant.ops import find

# A channel with an eighth of the range has three of eight bits less.
CHANNEL_OUTLIER = 8.0
# Across a pair, ranges that differ by five bits leave a channel with three on one side or the other.
PAIR_SPREAD = 32.0
# The layers of a healthy 8-bit model have 30 to 50 dB of their own; below that something costs more than rounding must.
# A bit less costs 6 dB.
HEALTHY_DB, BIT_DB = 30.0, 6.0
# Half of the noise: what another range has to gain on these data, and where the tensor is not healthy as it is.
GAIN_DB = 3.0
# A percentile observer leaves out one value in 10,000; ten times that is more than it was asked for, and rarer spikes
# hardly reach the outputs.
CLIPPED = 1e-3
# Under a quarter of the grid, two bits are spent on values that do not come.
USED = 0.25
# A tensor that joins others at an eighth of their range has three of eight bits less.
UNBALANCED = 8.0
# `kquant.calibrate` warns below this number.
FEW_SAMPLES = 32
# Ranges (without tails) of half the data and of all of them differ by a few per cent where the data are enough.
MOVED = 1.5
# Weights on 4 bits have 17 to 24 dB, by their distribution; a bit more has 6 dB more.
LOW_WEIGHTS_DB = 25.0
LOW_BITS = 4
# A layer that alone accounts for a fifth of the loss is worth more bits, where the loss is worth a word: noise of 1 %
# of the outputs' power, or half a point of the metric.
SENSITIVE_SHARE = 0.2
LOSS_DB, LOSS = 20.0, 0.005
MOST_SENSITIVE = 3
# Noise of a tenth: taking it away gains less than half a decibel.
APART_DB = 10.0

# Equalization moves the ranges of activations, so they are found anew.
EQUALIZE = 'steps = ["equalize", "calibrate"]'
# Few steps, so that a trial takes seconds; what is told is what was tried.
ADAROUND = 'steps = ["calibrate", { name = "adaround", iterations = 300 }]'
SEQUENTIAL_MSE = 'steps = ["calibrate", "sequential-mse"]'
BIAS = 'steps = ["calibrate", "bias"]'
# 65,536 codes need no clipping.
WIDE = '[activations]\nbits = 16\nobserver = "minmax"'


@dataclass(frozen=True)
class Loss:
    """What quantization costs at the outputs.

    Attributes:
        float_value, simulated: the metric of the float model, and with everything quantized, on the grids.
        is_sqnr: the metric is SQNR in dB.
        value, sqnr_db: the metric and the SQNR of the outputs, in integer arithmetic.
        is_sure: the metric lost more than chance makes.
    """

    float_value: float
    simulated: float
    is_sqnr: bool
    value: float
    sqnr_db: float
    is_sure: bool

    @property
    def is_told_by_metric(self) -> bool:
        """A metric of the caller's lost enough, and surely."""
        return not self.is_sqnr and self.is_sure and self.float_value - self.value > LOSS

    @property
    def is_worth_a_word(self) -> bool:
        """By the metric; by SQNR where the metric lost what chance makes."""
        if self.is_sqnr:
            return self.simulated < LOSS_DB
        less = self.value < self.float_value and not self.is_sure
        return self.is_told_by_metric or (less and self.sqnr_db < LOSS_DB)


@dataclass(frozen=True)
class Evidence:
    """What findings are read from.

    Attributes:
        model: its name.
        samples: how many were analyzed.
        units, layers: one row for each part of the model.
        tensors: one row for each encoding.
        pairs: layers that could be equalized.
        loss: at the outputs.
        columns: inputs with columns of unlike scale.
    """

    model: str
    samples: int
    units: tuple[Unit, ...]
    layers: tuple[LayerReport, ...]
    tensors: tuple[TensorReport, ...]
    pairs: tuple[Pair, ...]
    loss: Loss
    columns: tuple[Columns, ...] = ()


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """All causes that the evidence shows; data first, then the structure, then what more bits would buy."""
    # data that show too little make every later finding doubtful, so that comes first
    searches = (few_samples, unlike, ranges, concats, outliers, unequalized, low_bits, sensitive, together)
    return tuple(finding for search in searches for finding in search(evidence))


def few_samples(e: Evidence) -> Iterator[Finding]:
    """The data do not show the ranges."""
    remedy = "kquant.calibrate(qmodel, data) and kquant.analyze(qmodel, data) with 100 samples or more, shuffled"
    if e.samples < FEW_SAMPLES:
        yield Finding(e.model, "too few samples", f"{e.samples} samples were analyzed", remedy)
    moving = [t for t in e.tensors if t.moved > MOVED and not t.is_fixed]
    if moving:
        shown = ", ".join(f"{t.unit} {t.moved:.1f} times" for t in moving[:3])
        more = f" and {len(moving) - 3} more" if len(moving) > 3 else ""
        yield Finding(e.model, "too few samples", f"the second half of the data widens ranges: {shown}{more}", remedy)


def unlike(e: Evidence) -> Iterator[Finding]:
    """Columns of an input on one grid that is made for the widest."""
    for c in e.columns if e.loss.is_worth_a_word else ():
        narrow, wide = (f"{low:.3g} to {high:.3g}" for low, high in (c.narrow_ends, c.wide_ends))
        evidence = (
            f"column {c.narrow} goes from {narrow}, column {c.wide} from {wide}; on one grid of {c.bits} bits the "
            f"narrow one gets {c.codes:.2g} of {1 << c.bits} codes. Let the application scale the columns"
        )
        yield Finding(c.name, "unlike input columns", evidence, candidates=(SPLIT,))


def ranges(e: Evidence) -> Iterator[Finding]:
    """Ranges that clip too much, or leave most of the grid unused."""
    for t in e.tensors:
        # it cannot be chosen, or no other is much better, or it leaves all the signal that so many bits can hold
        if t.is_fixed or t.gain_db < GAIN_DB or t.sqnr_db > HEALTHY_DB - BIT_DB * (8 - min(t.bits, 8)):
            continue
        better = f"[{t.best_low:.4g}, {t.best_high:.4g}] would have {t.gain_db:.1f} dB less noise"
        if t.clipped > CLIPPED and t.clipping > t.rounding:
            evidence = f"{t.clipped:.3%} of the values beyond [{t.low:.4g}, {t.high:.4g}]; {better}"
            yield Finding(t.unit, "saturated activations", evidence, candidates=_observer(e, t))
        elif t.used < USED:
            evidence = f"all but 0.2 % of the values use {t.used:.0%} of [{t.low:.4g}, {t.high:.4g}]; {better}"
            yield Finding(t.unit, "too wide range", evidence, candidates=_observer(e, t))


def _observer(e: Evidence, t: TensorReport) -> tuple[str, ...]:
    """The range with the least error, from data like these; or as before, where calibration saw other data."""
    unit = next(u for u in e.units if u.name == t.unit)
    # a rule speaks for layers: inputs and encodings of several tensors belong to none
    everywhere = unit.kind in ("Input", "encoding", "shared encoding") or len(t.sites) > 1
    mse = _rule(t.layer, "activations", 'observer = "mse"')
    return ('[activations]\nobserver = "mse"' if everywhere else mse, 'steps = ["calibrate"]')


def concats(e: Evidence) -> Iterator[Finding]:
    """Tensors of very different ranges in one encoding."""
    for t in e.tensors:
        widths = np.array([max(high, 0.0) - min(low, 0.0) for low, high in t.sites])
        # beyond here one of the tensors has less than an eighth of the codes of 8 bits; of 16 bits that is little
        if len(widths) < 2 or widths.min() * UNBALANCED * 2.0 ** (t.bits - 8) > widths.max():
            continue
        evidence = f"one encoding for ranges of width {', '.join(f'{w:.4g}' for w in widths)}"
        wide = _rule(t.unit, "activations", "bits = 16")
        yield Finding(t.unit, "unbalanced concat", evidence, candidates=(EQUALIZE, wide))


def outliers(e: Evidence) -> Iterator[Finding]:
    """One scale for channels of very different ranges."""
    for unit, row in zip(e.units, e.layers, strict=True):
        # with a scale for each channel an outlier costs its own channel only; gates of an LSTM are no channels
        if row.weights is None or row.weights.per_axis or unit.weighted.channel_axes is None:
            continue
        # the median of those that do anything: dead channels would make every other one an outlier
        live = np.array([c for c in row.weights.channels if c > 0.0])
        if live.size < 2 or live.max() < CHANNEL_OUTLIER * np.median(live):
            continue
        worst = int(np.argmax(row.weights.channels))
        evidence = f"channel {worst} reaches {live.max():.4g}, the median channel {np.median(live):.4g}; one scale"
        per_axis = _rule(row.name, "weights", "per_axis = true")
        able = (per_axis,) if _takes_per_axis(unit.weighted) else ()
        yield Finding(row.name, "outlier channels", evidence, candidates=(*able, EQUALIZE))


def _takes_per_axis(layer: Compressed) -> bool:
    rule = find(layer.layer)
    if rule is None or rule.weights is None or not rule.weights.per_axis or layer.origin == NOWHERE:
        return False
    target = layer.origin.load_target()
    return all(code in target.ops and target.per_axis_for(code) for code in rule.operators)


def unequalized(e: Evidence) -> Iterator[Finding]:
    """Channels that are wide before and narrow behind, where a layer and the outputs suffer."""
    # ranges that differ are no fault by themselves: somebody must suffer, a layer and the outputs
    rows = {row.name: row for row in e.layers} if e.loss.is_worth_a_word else {}
    for pair in e.pairs:
        suffering = [rows[name] for name in (pair.first, pair.second) if name in rows and _suffers(rows[name])]
        if pair.spread < PAIR_SPREAD or not suffering:
            continue
        costs = ", ".join(f"{row.name} alone leaves {_own_db(row):.1f} dB" for row in suffering)
        evidence = f"channel ranges of {pair.first} against {pair.second} differ {pair.spread:.0f} times; {costs}"
        yield Finding(pair.first, "unequalized pair", evidence, candidates=(EQUALIZE,))


def _suffers(row: LayerReport) -> bool:
    bits = 8 if row.weights is None else min(row.weights.bits, 8)
    return _own_db(row) < HEALTHY_DB - BIT_DB * (8 - bits)


def _own_db(row: LayerReport) -> float:
    """Of the layer alone, or of its weights where sensitivity was not asked for."""
    weights = np.inf if row.weights is None else row.weights.sqnr_db
    return weights if row.local_sqnr_db is None else row.local_sqnr_db


def low_bits(e: Evidence) -> Iterator[Finding]:
    """Few bits, weights far from the float ones, and outputs too."""
    few = [row for row in e.layers if row.weights is not None and row.weights.bits <= LOW_BITS]
    poor = [row for row in few if row.weights is not None and row.weights.sqnr_db < LOW_WEIGHTS_DB]
    if not poor or not e.loss.is_worth_a_word:
        return
    worst = min(few, key=_weights_alone)
    # in the order of their price; the trials decide
    candidates = (SEQUENTIAL_MSE, ADAROUND, _rule(worst.name, "weights", "bits = 8"))
    bits = "/".join(map(str, sorted({row.weights.bits for row in few if row.weights is not None})))
    evidence = f"weights of {len(poor)} of {len(few)} layers below {LOW_WEIGHTS_DB:g} dB; {worst.name} costs most"
    yield Finding(worst.name if len(few) == 1 else e.model, f"{bits}-bit weights", evidence, candidates=candidates)


def _weights_alone(row: LayerReport) -> float:
    """The metric with the weights of this layer alone quantized; their SQNR where it was not measured."""
    if row.sensitivity is None:
        return row.weights.sqnr_db if row.weights else np.inf
    alone = row.sensitivity.only_weights
    return row.sensitivity.only if alone is None else alone


def sensitive(e: Evidence) -> Iterator[Finding]:
    """The layers that account for most of the loss."""
    loss = e.loss
    # noise has shares where the metric lost what chance makes, but sensitivities are those of the metric
    if not (loss.is_worth_a_word if loss.is_sqnr else loss.is_told_by_metric):
        return
    shares = [(share_of_loss(loss.float_value, loss.simulated, row, loss.is_sqnr), row) for row in e.layers]
    largest = sorted(shares, key=lambda pair: -pair[0])[:MOST_SENSITIVE]
    cause, unit = "most sensitive layer", " dB" if loss.is_sqnr else ""
    for share, row in largest:
        if share < SENSITIVE_SHARE or row.sensitivity is None:
            continue
        left = row.sensitivity.all_but
        if not loss.is_sqnr and not is_sure(left - loss.simulated, e.samples):
            continue
        evidence = (
            f"{share:.0%} of the loss is gone with it in float: {loss.simulated:.4g}{unit}, {left:.4g}{unit} with all "
            "but this layer quantized"
        )
        yield Finding(row.name, cause, evidence, candidates=_more_bits(row, loss.is_sqnr))
        cause = "sensitive layer"  # one is the most


def together(e: Evidence) -> Iterator[Finding]:
    """What no single layer explains: corrections and 16-bit activations for all of them, as `kquant.autotune` tries."""
    if not e.loss.is_worth_a_word or all(t.bits >= 16 for t in e.tensors):
        return
    if e.loss.is_sqnr or not e.loss.is_told_by_metric:
        evidence = f"{e.loss.simulated if e.loss.is_sqnr else e.loss.sqnr_db:.4g} dB with everything quantized"
    else:
        evidence = f"{e.loss.simulated:.4g} with everything quantized, {e.loss.float_value:.4g} in float"
    changes = (BIAS, EQUALIZE, WIDE, f"{BIAS}\n{WIDE}", f"{EQUALIZE}\n{WIDE}")
    yield Finding(e.model, "loss of all layers together", evidence, candidates=changes)


def share_of_loss(float_value: float, simulated: float, row: LayerReport, is_sqnr: bool) -> float:
    """How much of what quantization costs is gone when a layer is in float, as noise power or in the metric.

    0 where the metric loses less than half a point, of which there are no shares to measure.

    Args:
        float_value: the metric of the float model.
        simulated: with everything quantized.
        row: the layer.
        is_sqnr: the metric is SQNR in dB.
    """
    if row.sensitivity is None:
        return 0.0
    if is_sqnr:
        # decibels do not subtract, powers of noise do: what is left with this layer in float, of the whole
        left, whole = (10.0 ** (-db / 10.0) for db in (row.sensitivity.all_but, simulated))
        return 1.0 - left / whole if whole else 0.0
    drop = float_value - simulated
    return (row.sensitivity.all_but - simulated) / drop if drop > LOSS else 0.0


def _more_bits(row: LayerReport, is_sqnr: bool) -> tuple[str, ...]:
    """For the weights and for the output; the trials tell which of both loses the accuracy."""
    # a rule speaks for layers, and an input is none
    wide = WIDE if row.kind == "Input" else _rule(row.name, "activations", "bits = 16")
    if row.weights is None:
        return (wide,)
    eight = (_rule(row.name, "weights", "bits = 8"),) if row.weights.bits < 8 else ()
    s = row.sensitivity
    weights, activations = (None, None) if s is None else (s.only_weights, s.only_activations)
    if weights is None or activations is None:
        return (ADAROUND, *eight, wide)
    # What is far from losing most is not worth a trial; where both lose alike, each is tried.
    far = APART_DB if is_sqnr else LOSS
    by_weights = () if weights > activations + far else (*eight, ADAROUND)
    return (*by_weights, *(() if activations > weights + far else (wide,)))


def _rule(layer: str, section: str, setting: str) -> str:
    """Lines of a recipe."""
    return f'[[rules]]\nlayer = "{layer}"\n{section} = {{ {setting} }}'

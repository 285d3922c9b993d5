"""Bias correction: what rounding the weights (and the inputs) moved a channel's mean by, taken back from its bias.

    E[y~] - E[y] = sum_k eps_k E[x_k],  eps = codes * scale - weights      b' = b - that

Analytic: E[x] from the batch norm of the layer before, through its activation. Empirical: the two means measured on
data. The correction is `shift`, which acts where the model is quantized; the float function stays.

Source: Nagel et al., arXiv:1906.04721, section 4.2 (analytic, with |gamma|) and appendix D (empirical).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from kquant.core.messages import first_of, warn
from kquant.core.progress import tqdm
from kquant.core.renamed import renamed
from kquant.correct.channels import numbering, total
from kquant.correct.left_out import warn_left_out
from kquant.correct.moments import Moments, closed_moments
from kquant.correct.sweep import Sweep
from kquant.graph.given_model import check_keras
from kquant.layers.nodes import Compressed
from kquant.views.quantized_model import Place, forget_graphs, read
from kquant.views.recipe_steps import step_done
from kquant.views.step_places import every_place

Method = Literal["auto", "analytic", "empirical"]
NO_OVERFLOW = 1e30  # an input scale at which no bias is large


@dataclass(frozen=True, eq=False)
class BiasErrors:
    """What correction takes from the biases.

    Attributes:
        method: "analytic" or "empirical".
        errors: layer -> float64[channels], mean of the quantized output minus that of the float one.
        skipped: layer -> why it stays as it is.
    """

    method: str
    errors: dict[str, np.ndarray]
    skipped: dict[str, str]

    def __str__(self) -> str:
        """A table for people."""
        lines = [f"bias ({self.method}): {len(self.errors)} layers; largest and mean error of a channel's mean"]
        lines += [f"  {name}: {np.abs(e).max():.3g}, {np.abs(e).mean():.3g}" for name, e in self.errors.items()]
        return "\n".join(lines + [f"  {name} stays: {reason}" for name, reason in self.skipped.items()])


@renamed
def correct_bias(
    qmodel: keras.Model,
    data: Any = None,
    *,
    method: Method = "auto",
    limit: int | None = None,
    batch_size: int = 32,
    verbose: bool = True,
) -> keras.Model:
    """Correct the biases of a quantized model for what quantization moves the mean of each channel by.

    In place: changes `qmodel` and returns it.

    Args:
        qmodel: what `kquant.quantize` returned. Calibrate it before, so that "empirical" sees the
            errors of activations too.
        data: see `kquant.calibrate`; 500 samples are plenty. Not needed for "analytic".
        method: "empirical" measures on data, layer after layer, earlier ones corrected. "analytic" needs batch norms
            that were folded into the layers, and no data. "auto" is "empirical" where there are data.
        limit: use this many samples only, the first ones.
        batch_size: for arrays.
        verbose: show a progress bar and a line for each layer.

    Returns:
        `qmodel`.

    Raises:
        ValueError: not a quantized model, "empirical" without data, or an unknown method.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> q = kquant.calibrate(kquant.quantize(model, "int4-weights"), x, verbose=False)
        >>> q = kquant.correct_bias(q, x, verbose=False)
        >>> bool(np.all(np.abs(q.predict(x, verbose=0).mean(0) - model.predict(x, verbose=0).mean(0)) < 0.02))
        True

    Source: Nagel et al., arXiv:1906.04721, section 4.2.
    """
    check_keras(qmodel, "correct_bias")
    if method not in ("auto", "analytic", "empirical"):
        raise ValueError(f"correct_bias: method must be 'auto', 'analytic' or 'empirical'. Received: {method!r}.")
    if method == "empirical" and data is None:
        raise ValueError("correct_bias: method 'empirical' measures on data. Pass samples, or method='analytic'.")
    warn_left_out("correct_bias", read(qmodel), "keep their biases")
    if method == "analytic" or data is None:
        taken = analytic_errors(qmodel)
        known = [place for place in every_place(read(qmodel)) if place.layer.takes("shift")]
        _warn_rounded(known)
        _warn_skipped(taken)
        for place in known:
            if place.name in taken.errors:  # what an earlier correction took is in the error of the weights still
                _take(place, taken.errors[place.name], from_zero=True)
    else:
        taken = _correct_empirically(Sweep("correct_bias", qmodel, data, limit, batch_size), verbose)
    if verbose:
        print(taken)
    forget_graphs(qmodel)
    return step_done(qmodel, "bias")


def analytic_errors(qmodel: keras.Model) -> BiasErrors:
    """The errors of means that follow from batch-norm statistics; what `correct_bias(method="analytic")` takes back.

    Args:
        qmodel: what `kquant.quantize` returned; it is not changed.

    Returns:
        The error of each layer whose input's means are known; the others by name, with the reason.

    Raises:
        ValueError: not a quantized model.
    """
    graph = read(qmodel)
    known = every_place(graph)
    moments = closed_moments(graph, {id(p.layer): p for p in known}, {})
    errors, skipped = {}, {}
    for place in known:
        if not place.layer.takes("shift"):
            continue
        given = [moments.get(id(node.inputs[0])) for node in place.calls]
        expected = [_expected_error(place, m) for m in given if m is not None]
        expected = [e for e in expected if e is not None]
        # A shared layer has one bias: without the means of one of its inputs, that of all is not known.
        if len(expected) == len(given):
            errors[place.name] = np.mean(expected, axis=0)
        else:
            skipped[place.name] = "no batch-norm statistics reach its input"
    return BiasErrors("analytic", errors, skipped)


def weight_errors(layer: Compressed) -> np.ndarray:
    """`codes * scale - weights`: what quantization adds to a kernel, float64 like it."""
    # At this scale no bias widens the scale of its channel, so that the error is that of the weights alone.
    codes, scale, _ = layer.codes(tf.constant(NO_OVERFLOW))
    weights = layer.weights_as_used().numpy().astype(np.float64)
    return codes.numpy().astype(np.float64) * scale.numpy().astype(np.float64) - weights


def _expected_error(place: Place, x: Moments) -> np.ndarray | None:
    weights = place.rule.weights
    if weights is None or weights.input_axis is None:
        return None
    makes, reads = numbering(place)
    # E[sum eps x] = sum eps E[x]: the errors are constants, whatever the inputs have in common.
    return total(weight_errors(place.layer) * x.mean[reads], makes, int(makes.size))


def _correct_empirically(sweep: Sweep, verbose: bool) -> BiasErrors:
    """Layer after layer; on an interruption the biases are what they were."""
    known = [place for place in every_place(sweep.graph) if place.layer.takes("shift")]
    _warn_rounded(known)
    before = [(place, place.layer.correction("shift").numpy()) for place in known]
    errors: dict[str, np.ndarray] = {}
    try:
        for place in tqdm(known, desc="bias", unit="layer", disable=not verbose):
            errors[place.name] = _measured(sweep, place)
            _take(place, errors[place.name])
    # Ctrl-C as well, which is no `Exception`.
    except BaseException:
        for place, shift in before:
            place.layer.correction("shift").assign(shift)
        raise
    return BiasErrors("empirical", errors, {})


def _measured(sweep: Sweep, place: Place) -> np.ndarray:
    """Mean of the quantized output minus that of the float one, over all samples, positions and calls."""
    calls = place.calls
    ours, theirs = ([_Mean() for _ in calls] for _ in range(2))
    units: list[np.ndarray] = []
    # The second output is what one unit of the sums is worth: the bias is a whole number of them.
    wanted = [node.outputs[0] for node in calls]
    for made, expected in sweep.pairs(calls[0], [*wanted, *(node.outputs[1] for node in calls)], wanted):
        units = [unit.numpy() for unit in made[len(calls) :]]
        for means, values in ((ours, made), (theirs, expected)):
            for mean, y in zip(means, values, strict=False):
                mean.add(y.numpy())
    # A shared layer has one bias for all its calls.
    errors = zip(ours, theirs, units, strict=True)
    return np.mean([a.value - b.value - _rounding(place.layer, unit) for a, b, unit in errors], axis=0)


class _Mean:
    """Of each channel, over all rows that were added, in float64."""

    def __init__(self) -> None:
        self.sum: Any = 0.0
        self.count = 0

    def add(self, y: np.ndarray) -> None:
        rows = y.reshape(-1, y.shape[-1])
        self.sum, self.count = self.sum + rows.sum(axis=0, dtype=np.float64), self.count + len(rows)

    @property
    def value(self) -> np.ndarray:
        return np.asarray(self.sum / self.count)


def _rounding(layer: Compressed, unit: np.ndarray) -> np.ndarray | float:
    """What rounding to steps of the sums does to the bias: it will round anew, to half a step at most."""
    bias = layer.bias_as_used()
    if bias is None or not np.all(unit > 0):
        return 0.0
    values = bias.numpy().astype(np.float64)
    return np.rint(values / unit) * unit - values


def _take(place: Place, error: np.ndarray, *, from_zero: bool = False) -> None:
    shift = place.layer.correction("shift")
    # Measured errors are those that an earlier shift has left; closed forms know of none.
    start = np.zeros(error.shape) if from_zero else shift.numpy().astype(np.float64)
    shift.assign((start - error).astype(np.float32))


def _warn_rounded(known: list[Place]) -> None:
    rounded = [p.name for p in known if p.layer.rounding is not None and np.any(p.layer.rounding.numpy())]
    if rounded:
        warn(
            f"correct_bias: {first_of(rounded)} carry roundings of their own "
            "(AdaRound), which have met the error of the mean already; correcting biases on top is advised against."
        )


def _warn_skipped(taken: BiasErrors) -> None:
    if taken.skipped:
        warn(
            f"correct_bias: no statistics of a folded batch norm reach {', '.join(taken.skipped)}; their biases stay. "
            "Pass data to correct them too."
        )

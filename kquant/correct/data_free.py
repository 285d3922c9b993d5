"""Ranges of activations without data: from the statistics that batch norms left in the model.

A layer with a folded batch norm gives N(beta, gamma^2) for each channel, so its range is `beta - n |gamma|` to
`beta + n |gamma|`, cut by its activation. Where no closed form reaches (sums, products, layers without batch norm), a
synthetic batch tells: noise in the input's range runs through the float model, and wherever a layer knows its moments
the batch is brought to them, `y' = (y - mean) / std * |gamma| + beta`. The range is then n deviations around the mean
of each channel, and not below zero where no number can be (behind a ReLU, and a pool or a sum of such).

Source: Nagel et al., arXiv:1906.04721, section 5 (n = 6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.calibration.alike_heads import join_alike, part_heads
from kquant.calibration.held_scales import hold_scales
from kquant.calibration.ranges import set_weight_ranges
from kquant.core.progress import tqdm
from kquant.correct.channels import readers_of
from kquant.correct.moments import bounds_of, known_moments
from kquant.correct.options import check_option
from kquant.graph.given_model import check_keras
from kquant.graph.graph import Graph, Node, drop_read
from kquant.graph.unfold import substitute
from kquant.layers.nodes import Compressed, FakeQuant, encodings_of, observing
from kquant.ops.affine import Affine
from kquant.views.quantized_model import forget_graphs, read
from kquant.views.recipe_steps import step_done

Ends = tuple[np.ndarray, np.ndarray]  # of each channel: float64[channels] both
Range = tuple[float, float]
BYTES = (0.0, 255.0)


def data_free_ranges(
    qmodel: keras.Model,
    data: Any = None,
    *,
    input_range: Range | Mapping[str, Range] | None = None,
    sigmas: float = 6.0,
    samples: int = 64,
    seed: int = 0,
    verbose: bool = True,
) -> keras.Model:
    """Set the ranges of a quantized model from its batch norms, in place of `kquant.calibrate`.

    In place: changes `qmodel` and returns it.

    Args:
        qmodel: what `kquant.quantize` returned.
        data: not read; steps of recipes are all called with data.
        input_range: (lowest, highest) value of the model's input, or a dict by input name. Images as uint8, and inputs
            that a Rescaling brings from 0..255 to 0..1 or -1..1 (where it is not folded away), are known without.
        sigmas: deviations on either side of the mean.
        samples: size of the synthetic batch.
        seed: of its noise.
        verbose: show a progress bar.

    Returns:
        `qmodel`.

    Raises:
        ValueError: not a quantized model, an input whose range is not given or is none, sigmas not above 0, or no
            samples.

    Example:
        >>> layers = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
        >>> q = kquant.quantize(keras.Sequential([keras.Input((8, 8, 1), name="image"), *layers]))
        >>> q = data_free_ranges(q, input_range=(0.0, 1.0), verbose=False)
        >>> round(float(q.layers[-1].high.numpy()[0]), 3)  # a new batch norm: mean 0, deviation 1
        6.0
    """
    check_keras(qmodel, "data_free_ranges")
    _check(sigmas, samples)
    graph = read(qmodel)
    ranges = _input_ranges(graph, input_range)
    run = _Synthetic(graph, sigmas, ranges)
    of_tensors = run(samples, seed, verbose)
    heads, layers = part_heads(qmodel), {layer.name: layer for layer in encodings_of(qmodel)}
    for (name, site), (low, high) in of_tensors.items():
        layers[name].set_range(site, low, high)
    join_alike(qmodel, heads, lambda head, site: of_tensors[head.name, site])
    set_weight_ranges(qmodel)
    hold_scales(qmodel, "data_free_ranges")
    forget_graphs(qmodel)
    return step_done(qmodel, "data-free")


def _input_ranges(graph: Graph, given: Any) -> dict[int, Range]:
    """id(tensor) -> range of each input of the model."""
    ranges = {}
    inputs = graph.input_tensors
    if isinstance(given, Mapping) and (unknown := [n for n in given if n not in {t.name for t in inputs}]):
        names = ", ".join(t.name for t in inputs)
        raise ValueError(f"input_range: no input is called '{unknown[0]}'; the inputs are {names}.")
    for t in inputs:
        own = given.get(t.name) if isinstance(given, Mapping) else given
        own = _told_by_model(graph, t) if own is None else own
        if own is None:
            raise ValueError(
                f"data_free_ranges: nothing in the model says which values the input '{t.name}' takes. Pass "
                f"input_range=(lowest, highest), or input_range={{'{t.name}': (lowest, highest), ...}}; in a recipe, "
                '{ name = "data-free", input_range = [0, 1] }.'
            )
        ranges[id(t)] = _span(t.name, own)
    return ranges


def _span(name: str, own: Any) -> Range:
    """Two finite numbers in order."""
    try:
        low, high = (float(v) for v in (() if isinstance(own, str | Mapping) else own))
    except (TypeError, ValueError):
        raise ValueError(
            f"data_free_ranges: input_range of '{name}' must be two numbers, (lowest, highest). Received: {own!r}."
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"data_free_ranges: input_range of '{name}' must be finite, and lowest < highest. Received: {own!r}."
        )
    return low, high


def _check(sigmas: Any, samples: Any) -> None:
    """Refuse what gives no range, before anything runs."""
    if isinstance(samples, bool) or not isinstance(samples, int | np.integer) or samples < 1:
        raise ValueError(f"data_free_ranges: samples must be an int of 1 or more. Received: {samples!r}.")
    check_option("data_free_ranges: ", "sigmas", sigmas)


def _told_by_model(graph: Graph, t: Any) -> Range | None:
    """0..255 for bytes, and for what is rescaled from there."""
    if keras.backend.standardize_dtype(t.dtype) == "uint8":
        return BYTES
    readers = readers_of(graph)
    following = readers.get(id(t), [])
    # Past what quantizes the input.
    if len(following) == 1 and isinstance(following[0].op, FakeQuant):
        following = readers.get(id(following[0].outputs[0]), [])
    if len(following) != 1 or not isinstance(following[0].op, Compressed):
        return None
    layer = following[0].op.layer
    if not isinstance(layer, Affine):
        return None
    scale, offset = layer.scale.numpy(), layer.offset.numpy()
    # Ends of what 0..255 becomes; x / 128 - 1 ends at 0.99.
    made = {(round(float(b), 2), round(float(b + 255.0 * a), 2)) for a, b in zip(scale, offset, strict=True)}
    return BYTES if len(made) == 1 and made <= {(0.0, 1.0), (-1.0, 1.0), (-1.0, 0.99)} else None


class _Synthetic:
    """A batch of noise on its way through the float model."""

    def __init__(self, graph: Graph, sigmas: float, ranges: dict[int, Range]) -> None:
        self.graph, self.sigmas, self.ranges = graph, sigmas, ranges
        self.ends: dict[int, Ends] = {}  # of tensors whose distribution a closed form tells
        self.positive = {key for key, (low, _) in ranges.items() if low >= 0}  # tensors that are never below 0
        self.reached: dict[tuple[str, int], Range] = {}

    def __call__(self, samples: int, seed: int, verbose: bool) -> dict[tuple[str, int], Range]:
        """(name, site) -> range."""
        rng = np.random.default_rng(seed)
        inputs = self.graph.input_tensors
        values: dict[int, Any] = {id(t): _noise(t, self.ranges[id(t)], samples, rng) for t in inputs}
        last = self.graph.last_reads
        for i, node in enumerate(tqdm(self.graph.nodes, desc="data-free", unit="node", disable=not verbose)):
            for t, value in zip(node.outputs, self.step(node, values), strict=True):
                values[id(t)] = value
            drop_read(values, last, i)
        return self.reached

    def step(self, node: Node, values: dict[int, Any]) -> list[Any]:
        """One call in float; what it quantizes gets its range."""
        args, kwargs = substitute((node.args, node.kwargs), values)
        with observing(self.collect):
            outputs = keras.tree.flatten(node.op(*args, **kwargs))
        moments = known_moments(node.op) if isinstance(node.op, Compressed) else None
        bounds = bounds_of(node)
        out = id(node.outputs[0])
        if moments is not None:
            deviation = np.sqrt(moments.variance)
            # What comes behind sees a batch with the moments of the training data: noise is not like them, and errs
            # more with each layer.
            outputs[0] = _normalised(outputs[0], moments.mean, deviation)
            self.ends[out] = moments.mean - self.sigmas * deviation, moments.mean + self.sigmas * deviation
        elif bounds is not None:
            # A ReLU cuts the ends themselves. Deviations around the mean of what it has cut would end too low.
            low, high = self.ends.get(id(node.inputs[0])) or self.seen(values[id(node.inputs[0])])
            self.ends[out] = np.clip(low, *bounds), np.clip(high, *bounds)
        elif isinstance(node.op, FakeQuant):
            self.set_ends(node)
        if self.stays_positive(node, outputs[0]):
            self.positive.add(out)
        return outputs

    def stays_positive(self, node: Node, y: Any) -> bool:
        """ReLUs, and what makes positive numbers of positive ones without weights."""
        if isinstance(node.op, FakeQuant):
            return id(node.inputs[0]) in self.positive
        if isinstance(node.op, Compressed) or not node.inputs:
            return False
        # The batch shows that the operation keeps signs: a pool, a sum or a product does, a difference does not.
        kept = all(id(t) in self.positive for t in node.inputs) and float(tf.reduce_min(y)) >= 0.0
        return kept or bounds_of(node) is not None

    def set_ends(self, node: Node) -> None:
        """Where a closed form, or the user, knows better than the batch."""
        source, key = id(node.inputs[0]), (node.op.name, node.kwargs.get("site", 0))
        if key not in self.reached:
            return
        if source in self.ranges:
            self.reached[key] = self.ranges[source]
        elif source in self.ends:
            low, high = self.ends[source]
            # Channels have ends of their own; one encoding covers them all.
            self.reached[key] = float(low.min()), float(high.max())
            self.ends[id(node.outputs[0])] = low, high
        elif source in self.positive:
            self.reached[key] = max(self.reached[key][0], 0.0), self.reached[key][1]

    def collect(self, layer: FakeQuant, site: int, y: tf.Tensor) -> None:
        """Of the batch."""
        if layer.has_range:
            low, high = self.seen(y)
            before = self.reached.get((layer.name, site), (math.inf, -math.inf))  # inside a layer: one for each step
            self.reached[layer.name, site] = min(before[0], float(low.min())), max(before[1], float(high.max()))

    def seen(self, y: Any) -> Ends:
        """Deviations around the mean of each channel."""
        rows = np.asarray(y, np.float64).reshape(-1, y.shape[-1])
        mean, reach = rows.mean(axis=0), self.sigmas * rows.std(axis=0)
        return mean - reach, mean + reach


def _noise(t: Any, span: Range, samples: int, rng: np.random.Generator) -> tf.Tensor:
    """Evenly spread in the input's range; whole numbers where the input holds such."""
    shape, kind = (samples, *t.shape[1:]), keras.backend.standardize_dtype(t.dtype)
    if "int" in kind:
        return tf.constant(rng.integers(math.ceil(span[0]), math.floor(span[1]) + 1, shape).astype(kind))
    return tf.constant(rng.uniform(*span, shape).astype(kind))


def _normalised(y: Any, mean: np.ndarray, deviation: np.ndarray) -> tf.Tensor:
    """The batch with these moments in every channel; one that does not vary takes the mean alone."""
    values = np.asarray(y, np.float64)
    axes = tuple(range(values.ndim - 1))
    spread = values.std(axis=axes)
    unit = (values - values.mean(axis=axes)) / np.where(spread > 0, spread, 1.0)
    return tf.constant((unit * deviation + mean).astype(np.float32), dtype=y.dtype)

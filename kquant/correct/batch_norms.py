"""Re-estimation of batch norms: the moving statistics replaced by those of all the data, as the weights now are.

    mean = sum_b n_b mean_b / n      variance = sum_b n_b (variance_b + mean_b^2) / n - mean^2

The moving averages of training lag behind the weights, most of all in quantization-aware training at low bits. Batch
norms normalise by each batch's own statistics while they are counted; everything else runs as at inference.

Source: Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", arXiv:2203.11086, section 4; with the
spread between batches, which an average of variances leaves out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from kquant.calibration.data import Ports, batch_count, batches_of, refuse_endless
from kquant.core.progress import tqdm
from kquant.core.renamed import renamed
from kquant.graph.given_model import check_keras
from kquant.graph.inputs import inputs_of
from kquant.graph.keras_private import every_layer, masked_moments
from kquant.layers.live_norm import LiveNorm
from kquant.views.recipe_steps import step_done


class _Pooled:
    """Sums over what one batch norm has seen; float64."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0.0, np.zeros(()), np.zeros(())

    def add(self, count: Any, mean: Any, variance: Any) -> None:
        mean, variance = np.asarray(mean, np.float64), np.asarray(variance, np.float64)
        count = float(count)
        self.count += count
        self.first = self.first + count * mean
        # E[x^2] of the batch, since second moments add up over batches and variances do not.
        self.second = self.second + count * (variance + mean**2)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        mean = self.first / self.count
        # A difference of two near numbers may come out just below 0.
        return mean, np.maximum(self.second / self.count - mean**2, 0.0)


@renamed
def reestimate(
    model: keras.Model, data: Any, *, limit: int | None = None, batch_size: int = 32, verbose: bool = True
) -> keras.Model:
    """Replace the moving statistics of batch norms by the mean and variance over all the data.

    In place: changes `model` and returns it.

    Args:
        model: a Keras model with live `BatchNormalization` layers, or a quantized one whose recipe says
            `batch_norm = "live"`; changed once all data have been seen.
        data: see `kquant.calibrate`. Large batches come nearest to the statistics of the whole.
        limit: use this many samples only, the first ones.
        batch_size: for arrays.
        verbose: show a progress bar.

    Returns:
        `model`.

    Raises:
        ValueError: no batch norm in it (kquant.quantize folds them away), no data, or NaN.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
        >>> x = np.random.default_rng(0).normal(5.0, 2.0, (100, 3)).astype("float32")
        >>> model = reestimate(model, x, verbose=False)
        >>> bool(np.allclose(model.layers[0].moving_mean.numpy(), x.mean(0), atol=1e-5))
        True
    """
    check_keras(model, "reestimate")
    kinds = (keras.layers.BatchNormalization, LiveNorm)
    norms = [layer for layer in every_layer(model) if isinstance(layer, kinds)]
    if not norms:
        raise ValueError(
            f"{model.name}: there is no BatchNormalization layer in it. kquant.quantize folds batch norms into the "
            'layers before, unless the recipe says [training] batch_norm = "live"; re-estimate the float model '
            "before you quantize it."
        )
    if limit is None:
        refuse_endless(data)
    pooled = {id(layer): _Pooled() for layer in norms}
    given = batches_of(_with_inputs(model), data, batch_size, limit)
    total = batch_count(_with_inputs(model), data, batch_size, limit)
    with _counting(norms, pooled):
        for x in tqdm(given, desc="batch norms", unit="batch", disable=not verbose, total=total):
            model(x, training=False)
    if not any(p.count for p in pooled.values()):
        raise ValueError("reestimate: the data are empty; give at least one sample.")
    # All are computed and looked at before the first is stored: an error leaves the model as it was.
    estimates = [(layer, *pooled[id(layer)].moments()) for layer in norms if pooled[id(layer)].count]
    for layer, mean, variance in estimates:
        if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(variance))):
            raise ValueError(f"reestimate: NaN or Inf reaches '{layer.name}'; check the weights before it.")
    for layer, mean, variance in estimates:
        layer.moving_mean.assign(mean.astype(np.float32))
        layer.moving_variance.assign(variance.astype(np.float32))
    model.predict_function = model.test_function = model.train_function = None
    return step_done(model, "reestimate")


def _with_inputs(model: keras.Model) -> Ports:
    """What tells the inputs of a model of any kind, subclassed ones too."""
    struct = inputs_of(model)
    return Ports(keras.tree.flatten(struct), struct)


@contextlib.contextmanager
def _counting(norms: list[Any], pooled: dict[int, _Pooled]) -> Iterator[None]:
    """Inside, these layers normalise by the batch and add its statistics to theirs, whatever `training` says."""
    own = [layer for layer in norms if not isinstance(layer, LiveNorm)]
    inside = [layer for layer in norms if isinstance(layer, LiveNorm)]
    for layer in own:
        # On the layer, where it hides the method of the class until it is deleted. Not `training=True`, which would
        # wake dropout too and move the statistics.
        layer.call = _batch_call(layer, pooled[id(layer)])
    for layer in inside:
        layer.counter = pooled[id(layer)].add
    try:
        yield
    finally:
        for layer in own:
            del layer.call
        for layer in inside:
            layer.counter = None


def _batch_call(layer: Any, pooled: _Pooled) -> Any:
    def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        ops: Any = keras.ops
        # As Keras does for its statistics in training: sums over a batch outgrow float16.
        x = ops.cast(inputs, "float32")
        axis = layer.axis % len(x.shape)
        if mask is None:
            mean, variance = ops.moments(x, axes=[a for a in range(len(x.shape)) if a != axis])
            count = float(np.prod(x.shape)) / float(x.shape[axis])
        else:
            mean, variance = masked_moments(layer, x, mask)
            count = float(ops.sum(ops.cast(mask, "float32")))
        pooled.add(count, mean, variance)
        gamma, beta = (layer.gamma if layer.scale else None), (layer.beta if layer.center else None)
        y = ops.batch_normalization(
            x, mean=mean, variance=variance, axis=axis, offset=beta, scale=gamma, epsilon=layer.epsilon
        )
        return ops.cast(y, layer.compute_dtype)

    return call

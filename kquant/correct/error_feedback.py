"""GPTQ: weights are rounded one input after the other, and those still to come make up for each error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from kquant.core.checks import present
from kquant.core.messages import warn
from kquant.core.progress import tqdm
from kquant.correct.compensation import compensated, factor
from kquant.correct.left_out import warn_left_out
from kquant.correct.options import check_option
from kquant.correct.progress import finished_of
from kquant.correct.range_search import WIDEST_GRAM, output_error
from kquant.correct.reconstruction import Matrix, matrix_of, row_shape
from kquant.correct.sweep import Sweep
from kquant.files.destination import path_of
from kquant.graph.given_model import check_keras
from kquant.layers.kernel import has_codes
from kquant.ops.rows import from_matrix
from kquant.views.quantized_model import Place, forget_graphs, refuse_uncalibrated
from kquant.views.recipe_steps import step_done
from kquant.views.step_places import every_place

Order = Literal["largest", "given"]
LEAST_POWER = 1e-20  # of inputs that are 0 throughout


def gptq(
    qmodel: keras.Model,
    data: Any,
    *,
    damping: float = 0.01,
    order: Order = "largest",
    batch_size: int = 32,
    limit: int | None = None,
    folder: str | Path | None = None,
    verbose: bool = True,
) -> keras.Model:
    """Round each weight to nearest, after those before it have left their errors to it.

    In place: changes `qmodel` and returns it.

    For each layer, codes q of a small `sum_c (s_c q_c - w_c)' G (s_c q_c - w_c)`, `G = sum x x'` over the positions of
    the layer's inputs x in the quantized model, whose earlier layers are rounded already:

        q_k = clip(round(w_k / s_k), low, high)      w_j -= (w_k - s_k q_k) u_kj / u_kk   for all j behind k

    with u upper triangular and `u' u = (G + damping mean(diag G) I)^-1`. Scales are those that the layer has, of a
    channel, of the kernel, or of a block (`weights.block`); the step `sequential-mse` before this one chooses good
    ones. Biases stay. No descent: a layer takes one inverse, seconds where AdaRound takes minutes.

    A depthwise kernel is as many small problems as it has channels. Layers that are no matrix product (transposed
    convolutions, LSTM, embeddings, PReLU), whose outputs have more than 4,096 inputs, or whose weights share values
    stay rounded to nearest; a warning names them. Pruned weights stay 0, and the others make up for nothing of theirs.

    Args:
        qmodel: what `kquant.quantize` returned, calibrated.
        data: representative samples, see `kquant.calibrate`; 100 do, more do better.
        damping: above 0, share of the inputs' mean power that is added to each, so that what few samples say of many
            inputs is not taken for the truth.
        order: "largest", inputs of most power first, so that their errors have most weights behind them; "given", as
            they lie in the kernel.
        batch_size: for arrays.
        limit: use this many samples only, the first ones.
        folder: for the codes of finished layers; a run that was stopped goes on from there,
            with the same samples in order.
        verbose: show a progress bar.

    Returns:
        `qmodel`. Interrupted, the finished layers are rounded and the others are as they were.

    Raises:
        ValueError: not a quantized model, not calibrated, data that do not fit, an option out of range, or a folder
            with the codes of another model, calibration, other samples or options.

    Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    arXiv:2210.17323, algorithm 1; the order by power is that of the authors' code (`act_order`).

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> q = kquant.quantize(model, {"name": "w4", "weights": {"bits": 4}})
        >>> q = kquant.gptq(kquant.calibrate(q, x, verbose=False), x, verbose=False)
    """
    check_keras(qmodel, "gptq")
    check_option("gptq: ", "damping", damping)
    if order not in ("largest", "given"):
        raise ValueError(f"gptq: order must be 'largest' or 'given'. Received: {order!r}.")
    refuse_uncalibrated("gptq", qmodel)
    sweep = Sweep("gptq", qmodel, data, limit, batch_size)
    layers = _able(sweep)
    kept = None if folder is None else path_of(folder, "gptq", "codes")
    finished = finished_of(sweep, kept, "codes", {"damping": damping, "order": order})
    with tqdm(layers, desc="gptq", unit="layer", disable=not verbose) as bar:
        for place in bar:
            bar.set_postfix_str(place.name)
            weights = place.layer.weights_as_used()
            known = weights, place.layer.scale_of(weights)
            codes = finished.load(place, known)
            if codes is None:
                codes = _codes(sweep, place, damping, order)
                finished.store(place, known, codes)
            # At once: the inputs of the next layer are those that these codes make.
            place.layer.round_by(codes)
            forget_graphs(qmodel)
    return step_done(qmodel, "gptq")


def _codes(sweep: Sweep, place: Place, damping: float, order: Order) -> np.ndarray:
    """Of a layer's kernel, in Keras' layout: int8."""
    gram = present(output_error(sweep, place).gram, f"gptq: {place.name}: no products of its inputs.")
    matrix = matrix_of(place, len(gram))
    free = (matrix.weights != 0.0) if place.layer.transforms else np.ones(matrix.weights.shape, bool)
    try:
        codes = round_by_feedback(matrix, gram, damping, order, free)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"gptq: {place.name}: the products of its inputs have no inverse with damping {damping}; take 0.01, or "
            "data whose values are of usual size."
        ) from error
    return from_matrix(codes, tuple(place.layer.weights_as_used().shape)).astype(np.int8)


def round_by_feedback(matrix: Matrix, gram: np.ndarray, damping: float, order: Order, free: np.ndarray) -> np.ndarray:
    """The codes of one kernel, as `gptq` says: float64[g, k, m].

    Args:
        matrix: the kernel, with the scale of each weight.
        gram: float64[g, k, k], sums of `x x'`.
        damping: see `gptq`.
        order: see `gptq`.
        free: bool[g, k, m], weights that a mask has not taken out.
    """
    power = np.diagonal(gram, axis1=1, axis2=2)
    # of each group its own order; the sort is stable, so that equal inputs keep theirs
    turn = (
        np.argsort(-power, axis=1, kind="stable")
        if order == "largest"
        else np.broadcast_to(np.arange(power.shape[1]), power.shape)
    )
    back = np.argsort(turn, axis=1)[..., None]
    weights, scale, free = (
        np.take_along_axis(values, turn[..., None], axis=1) for values in (matrix.weights, matrix.scale, free)
    )
    damped = np.take_along_axis(np.take_along_axis(gram, turn[..., None], axis=1), turn[:, None, :], axis=2)
    index = np.arange(power.shape[1])
    with np.errstate(over="ignore"):  # looked at below
        damped[:, index, index] += damping * power.mean(axis=1, keepdims=True) + LEAST_POWER
    codes = np.empty(weights.shape)

    def rounded(k: int, left: np.ndarray) -> np.ndarray:
        near = np.clip(np.rint(left / scale[:, k]), matrix.low, matrix.high)
        codes[:, k] = np.where(free[:, k], near, 0.0)
        return codes[:, k] * scale[:, k]

    if not np.all(np.isfinite(damped)):
        raise np.linalg.LinAlgError("sums of products out of float64's range")
    compensated(weights.astype(np.float64), factor(np.linalg.inv(damped)), rounded)
    return np.take_along_axis(codes, back, axis=1)


def _able(sweep: Sweep) -> list[Place]:
    """The layers whose codes may be chosen one by one; a warning names the others."""
    warn_left_out("gptq", sweep.graph, "stay rounded to nearest", blocks=True)
    every = every_place(sweep.graph, blocks=True)
    able = [p for p in every if p.rows is not None and not p.layer.shares and row_shape(p)[1] <= WIDEST_GRAM]
    names = {p.name for p in every} - {p.name for p in able}
    names |= {node.name for node in sweep.graph.nodes if has_codes(node.op) and not node.op.takes("rounding")}
    if names:
        warn(
            f"gptq: {', '.join(sorted(names))} stay rounded to nearest: they are no matrix products, have more than "
            f"{WIDEST_GRAM} inputs of an output, or share values."
        )
    return able

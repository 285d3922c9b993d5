"""Weights whose codes are short in the file: rounding that weighs bytes against what they do to the model's output."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant.calibration.data import batches_of
from kquant.core.checks import whole_budget
from kquant.core.messages import warn
from kquant.core.progress import tqdm
from kquant.correct.byte_search import check_target, coded_form, smallest_strength
from kquant.correct.code_bits import stored_bytes
from kquant.correct.left_out import warn_left_out
from kquant.correct.options import check_option
from kquant.correct.output_worth import output_worth
from kquant.correct.progress import finished_of
from kquant.correct.row_moments import kernel_of, row_sums
from kquant.correct.short_rounding import Chosen, Moments, Task, round_short, solver, step_of
from kquant.correct.sweep import Sweep
from kquant.files.destination import path_of
from kquant.graph.given_model import check_keras
from kquant.layers.kernel import has_codes
from kquant.ops.rows import from_matrix
from kquant.tflite.edges import IO
from kquant.tflite.storage import HEADER_BYTES
from kquant.tflite.stored_weights import DECODE_BYTES
from kquant.views.quantized_model import Place, forget_graphs, refuse_uncalibrated
from kquant.views.recipe_steps import step_done
from kquant.views.step_places import every_place

SEEN = 64  # samples that tell what errors are worth
DAMPINGS = (0.01, 0.1, 0.5, 3.0)  # tried on the samples that are held out
SHARES = (1.0, 0.75, 1.3)  # of the step that suits fine grids
FINEST = 1e-15  # strength at which bits count nothing


def shorten_codes(
    qmodel: keras.Model,
    data: Any,
    *,
    strength: float = 1e-7,
    flash_bytes: int | str | None = None,
    strip_names: bool = False,
    io: IO = "model",
    decode_budget: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    folder: str | Path | None = None,
    verbose: bool = True,
) -> keras.Model:
    """Round weights to few, frequent codes where the model's output hardly minds, so that Huffman codes are short.

    In place: changes `qmodel` and returns it.

    For each layer, scales s and codes q of the least

        sum_c a_c mean (q_c s_c x' + b_c - y_c)^2  +  strength * (sum of bits of all q in Huffman codes)

    x' are inputs in the quantized model, whose earlier layers are rounded already; y the float model's sums; a_c what
    errors of the channel are worth to the model's output, halfway between its own and the layer's mean. So layers and
    channels that matter keep fine grids, others get a few levels inside int8, and no kernel for 4 bits is needed. Each
    input's error is made up for by the weights of those that follow, the bias by the mean. A tensor that plain int8
    holds in fewer bytes has int8's grid. The formulas are in `kquant/correct/short_rounding.py` and `code_bits.py`.

    Export with `compression="auto"` (target "tflm"): that is what the bits are for. Layers that are no matrix product
    (transposed convolutions, LSTM, embeddings, PReLU), weights that share values, and grids with few levels for other
    reasons (power-of-two scales, codebooks) stay as they are, with a warning. Pruned weights stay 0.

    Args:
        qmodel: what `kquant.quantize` returned, calibrated; 8 bits of weights leave the choice of levels to this.
        data: representative samples, see `kquant.calibrate`; 100 do, more do better.
        strength: error of the output, as a share of its variance, that one bit of the file is worth.
        flash_bytes: of the file with `compression="auto"`: the least strength that holds it is searched for, by
            rounding all layers some five times, and `strength` is where the search begins.
        strip_names: the file that `flash_bytes` is of has no names, see `kquant.export`.
        io: type of the inputs and outputs of that file, likewise.
        decode_budget: bytes by which decoding may make the arena of that file larger, likewise.
        limit: use this many samples only, the first ones.
        batch_size: for arrays.
        seed: draws rows of large layers, and signs.
        folder: for the codes of finished layers; a run that was stopped goes on from there,
            with the same samples in order.
        verbose: show a progress bar.

    Returns:
        `qmodel`. Interrupted, the finished layers are rounded and the others are as they were.

    Raises:
        ValueError: not a quantized model, not calibrated, data that do not fit, an option out of range, a target that
            decodes nothing, a `flash_bytes` that no codes hold (with what else the file has), or a folder of another
            run.

    Source: entropy-constrained quantization, Chou, Lookabaugh, Gray 1989; the layers' errors as in Frantar et al.,
    arXiv:2210.17323.

    Example:
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> x = np.random.default_rng(0).normal(size=(256, 64)).astype("float32")
        >>> q = kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False)
        >>> q = kquant.shorten_codes(q, x, strength=1e-5, verbose=False)
        >>> kquant.export(q, "short.tflite", compression="auto").file_bytes < 4000
        True
    """
    check_keras(qmodel, "shorten_codes")
    check_option("shorten_codes: ", "strength", strength)
    form = coded_form("shorten_codes", io, decode_budget, strip_names)
    if flash_bytes is not None:
        flash_bytes = whole_budget("shorten_codes", "flash_bytes", flash_bytes)
        check_target(qmodel)
    refuse_uncalibrated("shorten_codes", qmodel)
    sweep = Sweep("shorten_codes", qmodel, data, limit, batch_size)
    places = _able(sweep)
    kept = None if folder is None else path_of(folder, "shorten_codes", "codes")
    run = _Run(qmodel, data, limit, batch_size, seed, kept, places)
    with tqdm(desc="shorten codes", unit="layer", disable=not verbose, total=len(places)) as bar:
        if flash_bytes is None:
            run.round_all(strength, sweep, bar)
        else:
            smallest_strength(run, strength, flash_bytes, form, bar)
    forget_graphs(qmodel)
    return step_done(qmodel, "shorten-codes")


@dataclass(eq=False)
class _Run:
    """One call: what all roundings of it share."""

    qmodel: keras.Model
    data: Any
    limit: int | None
    batch_size: int
    seed: int
    folder: Path | None
    places: Sequence[Place]
    worth: dict[str, np.ndarray] | None = None
    begun: list[tuple[Any, bool, dict[str, np.ndarray]]] | None = None

    def round_all(self, strength: float, sweep: Sweep | None = None, bar: Any = None) -> None:
        """Every layer, the first ones first, of the model as it was given, whatever strength came before."""
        sweep = sweep or Sweep("shorten_codes", self.qmodel, self.data, self.limit, self.batch_size)
        places = _able(sweep, quiet=True)
        self._begin([place.layer for place in places])
        folder = None if self.folder is None else self.folder / f"{strength:.4g}"
        settings = {"strength": strength, "seed": self.seed}
        finished = finished_of(sweep, folder, "codes", settings, sets_biases=True)
        for place in places:
            if bar is not None:
                bar.set_postfix_str(place.name)
            known = (place.layer.weights_as_used(),)
            made = finished.load(place, known)
            if made is None:
                made = self._rounded(sweep, place, strength)
                finished.store(place, known, made)
            # At once: the inputs of the next layer are those that these codes make.
            _keep(place, made)
            forget_graphs(self.qmodel)
            if bar is not None:
                bar.update()

    def _begin(self, layers: Sequence[Any]) -> None:
        """What a shared layer or one in a loop is given depends on its own codes: not on those of another strength."""
        if self.begun is None:
            self.begun = [
                (layer, layer.reach_by_data, {name: layer.correction(name).numpy() for name in layer.corrected})
                for layer in layers
            ]
            return
        for layer, by_data, values in self.begun:
            for name in layer.corrected:
                variable = layer.correction(name)
                variable.assign(values.get(name, np.zeros(variable.shape, np.float32)))
            layer.reach_by_data = by_data
        forget_graphs(self.qmodel)

    def _rounded(self, sweep: Sweep, place: Place, strength: float) -> np.ndarray:
        # By name, so that a run that goes on from a folder draws as one from the start.
        rng = np.random.default_rng(self.seed + zlib.crc32(place.name.encode()) % 2**16)
        weights = kernel_of(place)
        centred = place.layer.takes("shift")
        seen, held = row_sums(sweep, place, rng)
        every = (seen + held).moments(weights, centred)
        task = Task(
            weights,
            self._worth_of(place, every, weights),
            int(place.layer.spec.low),
            int(place.layer.spec.high),
            place.layer.spec.per_axis,
            (weights != 0.0) if place.layer.transforms else np.ones(weights.shape, bool),
        )
        judged = (held if held.count else seen).moments(weights, centred)
        chosen = fit(task, seen.moments(weights, centred), judged, every, strength)
        shift = every.target - np.einsum("gk,gkm->gm", every.mean, chosen.weights) if centred else np.zeros(0)
        return np.concatenate([part.reshape(-1) for part in (chosen.codes, chosen.scale, shift)]).astype(np.float32)

    def _worth_of(self, place: Place, moments: Moments, weights: np.ndarray) -> np.ndarray:
        """float64[g, m]: halfway to the layer's mean; inside loops what makes all layers' signals worth the same."""
        if self.worth is None:
            batches = batches_of(self.qmodel, self.data, self.batch_size, min(self.limit or SEEN, SEEN))
            sweep = Sweep("shorten_codes", self.qmodel, self.data, SEEN, self.batch_size)
            self.worth = output_worth(sweep.graph, every_place(sweep.graph), batches, np.random.default_rng(self.seed))
        found = self.worth.get(place.name)
        if found is None:
            signal = np.sum(weights * (moments.gram @ weights))
            return np.full((len(weights), weights.shape[2]), 1.0 / max(float(signal), 1e-30))
        return np.sqrt(found * found.mean()).reshape(len(weights), -1)


def fit(task: Task, seen: Moments, judged: Moments, every: Moments, strength: float) -> Chosen:
    """The codes of a layer: damping by the samples that are held out, step by all, plain int8 where that is smaller.

    Args:
        task: with the float weights.
        seen: moments of most samples.
        judged: of those that are held out.
        every: of all.
        strength: see `shorten_codes`.
    """

    def cost(chosen: Chosen, moments: Moments) -> float:
        error = float(np.sum(task.worth * moments.error(chosen.weights - task.weights)))
        fixed = 8.0 * (HEADER_BYTES + DECODE_BYTES)
        return error + strength * (chosen.size_bits + fixed)

    costs = {}
    for damping in DAMPINGS:
        made = solver(task, seen, damping)
        costs[damping] = cost(round_short(made, strength, step_of(made, strength), 2), judged)
    made = solver(task, every, min(costs, key=lambda damping: costs[damping]))
    coded = [round_short(made, strength, step_of(made, strength, share)) for share in SHARES]
    best = min(coded, key=lambda chosen: cost(chosen, every))
    plain = round_short(made, FINEST, step_of(made, FINEST), 1)
    wrong = float(np.sum(task.worth * every.error(plain.weights - task.weights)))
    stays = stored_bytes(best.codes) == best.codes.size
    return plain if stays or wrong + strength * 8.0 * plain.codes.size < cost(best, every) else best


def _keep(place: Place, made: np.ndarray) -> None:
    """Range, codes and shift of a layer, out of one array."""
    layer = place.layer
    weights, reach = kernel_of(place), layer.correction("reach")
    codes = made[: weights.size].reshape(weights.shape)
    groups, _, m = weights.shape
    scale = made[weights.size : weights.size + groups * m]
    values = scale.reshape(reach.shape) if layer.spec.per_axis else np.full(reach.shape, scale[0])
    # Codes that an earlier correction kept were of the old grid.
    layer.round_by(None)
    layer.set_reach(np.float32(values * layer.spec.high), by_data=True)
    layer.round_by(from_matrix(codes, tuple(layer.weights_as_used().shape)))
    if layer.takes("shift"):
        layer.correction("shift").assign(made[weights.size + groups * m :])


def _able(sweep: Sweep, quiet: bool = False) -> list[Place]:
    """The layers whose codes may be chosen freely; a warning names the others."""
    every = every_place(sweep.graph)
    able = [p for p in every if p.rows is not None and not p.layer.shares and p.layer.spec.kind == "uniform"]
    names = {p.name for p in every} - {p.name for p in able}
    names |= {node.name for node in sweep.graph.nodes if has_codes(node.op) and not node.op.takes("rounding")}
    if not quiet:
        warn_left_out("shorten_codes", sweep.graph, "keep their codes")
    if names and not quiet:
        warn(
            f"shorten_codes: {', '.join(sorted(names))} keep their codes: they are no matrix products, share values, "
            "or have grids of their own."
        )
    return able

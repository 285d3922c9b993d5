"""The ladder under a byte budget: what costs nothing, codes, levels, distillation; zeros and sharing by training.

    as it is -> exact steps -> codes that TFLM decodes                      the same outputs, to the code
    -> one scale for each kernel                                            a coarser grid, whose codes are rarer
    -> levels of 4 bits by AdaRound (`int4-weights`), packed or in codes
    -> codes of fewer levels (`shorten_codes`), on either grid
    -> the better of these, distilled on the samples                        other outputs, without labels
    -> trained, longer codes at a price; zeros and trained; shared values and trained       where the caller trains

It stops behind the exact rungs where one of them holds the budget: no other can be better. Of the others the one of the
best score that holds it wins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.calibration.data import gather
from kquant.core.callers import is_callers
from kquant.core.checks import present
from kquant.core.messages import first_of
from kquant.core.progress import tqdm
from kquant.core.result import Result
from kquant.correct.byte_search import NoCodesHold, coded_form
from kquant.correct.output_worth import squash_of
from kquant.correct.short_codes import shorten_codes
from kquant.files.atomic import Outputs
from kquant.files.finished_work import Kept
from kquant.files.keras_files import load
from kquant.graph.copies import copy_of
from kquant.graph.watched import state_kept
from kquant.layers.kernel import holders
from kquant.masking.clustering import cluster, has_codebooks
from kquant.masking.pruning import has_masks, prune
from kquant.recipe import recipe as recipes
from kquant.runtime.arenas import host_ms
from kquant.search.ladder import score_of
from kquant.tflite.file_content import Files, Form, to_files
from kquant.tflite.lowering import lower
from kquant.tflite.memory_plan import memory_plan
from kquant.tflite.reader import read_model
from kquant.tflite.weight_bytes import layer_bytes
from kquant.train.distillation import distill
from kquant.views.quantized_model import read

JUDGED = 256  # samples that outputs are compared on
ROOM = 0.97  # of the budget, that training may move codes without passing it
MOST_RUNGS = 11
SPARSITY = 0.6  # of the rung with zeros
CLUSTERS = 16
STEPS, RATE, BATCH = 240, 3e-5, 32  # of the distillation
ONE_SCALE = {"weights": {"per_axis": False}}
FEWER = ("bits", "unpacked_bits")  # of the recipe for 4 bits; scales stay those of the recipe
HELD = {"training": {"entropy": 1.0}}  # loss for each KiB beyond the codes that training starts from
KINDS = {"SOFTMAX": "probabilities", "LOGISTIC": "binary-probabilities"}

Train = Callable[[keras.Model, str], Any]
Changes = Mapping[str, Any]  # tables of the recipe, and steps that follow its own where it has none of the name
Step = tuple[str, Callable[[], keras.Model], "bool | None"]
NONE: Changes = {}
SHORTER, ONE, FOUR = "shorter codes", "one scale for each kernel", "4 bits"
EXACT = ("as it is", "exact steps")  # weights lie there as they are


@dataclass(frozen=True)
class ByteRung:
    """One file that was tried.

    Attributes:
        name: what it adds.
        file_bytes: of the file; 0 where the rung failed.
        score: of the quantized model, see `ByteLadder.unit`; -inf where the rung failed.
        arena_bytes: the tensors, as TFLM plans them.
        lookups: steps of decoding in each call.
        host_ms: of a call of TFLM on this machine, see `kquant.runtime.arenas.host_ms`; None without the `micro` extra.
        seconds: that the rung took.
        coded: weights are in codes that TFLM decodes.
        holds: the budget holds.
        kept: the one that is returned.
        failed: why there is no such file, else "".
    """

    name: str
    file_bytes: int
    score: float
    arena_bytes: int
    lookups: int
    seconds: float
    coded: bool = False
    holds: bool = False
    kept: bool = False
    failed: str = ""
    host_ms: float | None = None

    @property
    def stored(self) -> bool:
        """Weights are in their smallest form: codes, or 4 bits, which the kernels read without decoding."""
        return self.name not in EXACT


@dataclass(frozen=True, eq=False, repr=False)
class ByteLadder(Result):
    """What was tried under a byte budget.

    Attributes:
        flash_bytes: the budget.
        unit: "score" of the caller's function, or "dB": signal to error of the outputs, against the float model.
        float_score: of the float model; inf in dB.
        rungs: in the order they were tried.
    """

    flash_bytes: int
    unit: str
    float_score: float
    rungs: tuple[ByteRung, ...]

    @property
    def best(self) -> ByteRung:
        """The rung of the file."""
        return next(rung for rung in self.rungs if rung.kept)

    @property
    def pareto(self) -> tuple[ByteRung, ...]:
        """Rungs that no other beats in bytes and score, the largest first."""
        made = [rung for rung in self.rungs if not rung.failed]
        best = [r for r in made if not any(_beats(other, r) for other in made)]
        return tuple(sorted(best, key=lambda rung: -rung.file_bytes))

    def __repr__(self) -> str:
        best = self.best
        return (
            f"ByteLadder({best.name}: {best.file_bytes:,} of {self.flash_bytes:,} bytes, {best.score:.4g} {self.unit})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        said = {"flash_bytes": self.flash_bytes, "unit": self.unit, "float_score": self.float_score}
        return {**said, "best": self.best.name, "rungs": [asdict(r) for r in self.rungs]}


def _beats(a: ByteRung, b: ByteRung) -> bool:
    better = a.file_bytes < b.file_bytes or a.score > b.score
    return better and a.file_bytes <= b.file_bytes and a.score >= b.score


@dataclass(frozen=True, eq=False)
class Wanted:
    """What the ladder is asked for.

    Attributes:
        model: the float model.
        data: representative samples.
        make: float model, pruned or not, and what is otherwise in the recipe -> the quantized one, calibrated.
        one_scale: the recipe has a scale for each channel, so that one for each kernel is another grid.
        four_bits: the recipe has more bits, on a grid that may have fewer.
        flash_bytes: the budget.
        strip_names, decode_budget, io: of the file, see `kquant.export`.
        evaluate: model -> score; None: outputs are compared with the float model's.
        float_score: what it gives for the float model.
        train: see `kquant.compress`; None: nobody trains.
        limit: of the samples.
        folder: for what is finished.
    """

    model: keras.Model
    data: Any
    make: Callable[[keras.Model, Changes], keras.Model]
    flash_bytes: int
    one_scale: bool = True
    four_bits: bool = True
    strip_names: bool = False
    decode_budget: int | None = None
    io: Any = "model"
    evaluate: Callable[[keras.Model], float] | None = None
    float_score: float = float("inf")
    train: Train | None = None
    limit: int | None = None
    folder: Path | None = None


def climb(wanted: Wanted, kept: Kept, verbose: bool) -> tuple[keras.Model, ByteLadder]:
    """The best quantized model under the budget, and all that was tried.

    Args:
        wanted: models, samples, the budget.
        kept: rows of an earlier call.
        verbose: show a bar.

    Raises:
        ValueError: nothing holds the budget, with the smallest file and the layers that stand in the way; or no target
            that decodes, where exact steps do not suffice; a score that is no number, with its rung. What the
            caller's functions raise passes, too; rungs that are finished stay in the folder.
    """
    search = _Search(wanted, kept)
    with tqdm(desc="byte budget", unit="rung", disable=not verbose, total=MOST_RUNGS) as bar:
        for name, make, coded in _ladder(search):
            bar.set_postfix_str(name)
            search.measure(name, make, coded)
            bar.update()
        bar.total = bar.n
    return search.result()


def _ladder(search: _Search) -> Iterator[Step]:
    """Name, what makes the model, and whether its weights are in codes (None: without exact steps either)."""
    wanted = search.wanted
    base = search.base
    yield EXACT[0], base, None
    yield EXACT[1], base, False
    if search.holds:
        return
    search.refuse_undecoded()
    yield "codes", base, True
    if search.holds:
        return
    if wanted.one_scale:
        yield ONE, lambda: base(ONE_SCALE), True
    if wanted.four_bits:
        yield FOUR, lambda: base(four_bits()), True
    yield SHORTER, lambda: search.shortened("levels", base(), 1.0), True
    if wanted.one_scale:
        yield f"{SHORTER}, one scale", lambda: search.shortened("one-scale", base(ONE_SCALE), 1.0), True
    grid = search.better_grid()
    what = "one-scale" if grid else "levels"
    yield f"{SHORTER}, distilled", lambda: search.distilled(search.shortened(what, base(grid), ROOM)), True
    if wanted.train is not None:
        yield from _trained(search, grid, what, wanted.train)


def four_bits() -> Changes:
    """What the recipe `int4-weights` has otherwise, its roundings with it."""
    recipe = recipes.load("int4-weights")
    return {"weights": {name: getattr(recipe.weights, name) for name in FEWER}, "steps": recipe.steps}


def _trained(search: _Search, grid: Changes, what: str, train: Train) -> Iterator[Step]:
    """The rungs of a caller who trains."""
    wanted = search.wanted
    priced = {**grid, **(HELD if can_hold(search.base(grid)) else NONE)}

    def trained(qmodel: keras.Model) -> keras.Model:
        hold_codes(qmodel)
        train(qmodel, "quantize")
        return qmodel

    def changed(model: keras.Model, stage: str) -> keras.Model:
        train(model, stage)
        return wanted.make(model, priced)

    yield f"{SHORTER}, trained", lambda: trained(search.shortened(what, search.base(priced), ROOM)), True
    if not (has_masks(wanted.model) or has_codebooks(wanted.model)):
        zeros = lambda: changed(prune(wanted.model, SPARSITY), "prune")  # noqa: E731
        yield "zeros, trained", lambda: trained(search.shortened("zeros", zeros(), ROOM)), True
        shared = lambda: changed(cluster(wanted.model, CLUSTERS, per_channel="scale"), "cluster")  # noqa: E731
        yield "shared values, trained", lambda: trained(shared()), True


def can_hold(qmodel: keras.Model) -> bool:
    """False where layers (LSTM) have one way to train, which knows no price."""
    return all(hasattr(holder, "learner") for holder in holders(qmodel))


def hold_codes(qmodel: keras.Model) -> None:
    """From now on, codes cost where a kernel's take more than they do now."""
    for holder in holders(qmodel):
        learner = getattr(holder, "learner", None)
        if learner is not None and learner.price is not None:
            (kernel,) = holder.kernels()
            bits = learner.bits(kernel.on_grid, holder.scale_of(kernel.used))
            learner.least_bits.assign(bits / tf.size(kernel.used, tf.float32))


class _Search:
    """What has been tried."""

    def __init__(self, wanted: Wanted, kept: Kept) -> None:
        self.wanted, self.kept = wanted, kept
        self.form = coded_form("compress", wanted.io, wanted.decode_budget, wanted.strip_names)  # of files in codes
        self.rungs: list[ByteRung] = []
        self.earlier = {rung.name: rung for rung in kept.rows("rungs", ByteRung)}
        self.models: dict[str, keras.Model] = {}
        self.reached: dict[str, int] = {}  # rung -> bytes of its smallest file, where none held the budget
        self._bases: list[tuple[Changes, keras.Model]] = []
        samples = gather(wanted.model, wanted.data, min(wanted.limit or JUDGED, JUDGED))
        self.x = samples if len(samples) > 1 else samples[0]
        if wanted.evaluate is None:
            with state_kept(wanted.model):
                self.outputs = _predicted(wanted.model, self.x)

    def base(self, changes: Changes = NONE) -> keras.Model:
        """The quantized model of the recipe, or of one with other tables; a copy, which the caller may change."""
        known = [model for of, model in self._bases if of == changes]
        if not known:
            known = [self.wanted.make(self.wanted.model, changes)]
            self._bases.append((changes, known[0]))
        return copy_of(known[0])

    def better_grid(self) -> Changes:
        """That of the better one of the two models with shorter codes."""
        scores = {rung.name: rung.score for rung in self.rungs if rung.holds}
        one = scores.get(f"{SHORTER}, one scale", float("-inf"))
        return ONE_SCALE if one > scores.get(SHORTER, float("-inf")) else NONE

    @property
    def holds(self) -> bool:
        """True where a rung holds the budget."""
        return any(rung.holds for rung in self.rungs)

    def refuse_undecoded(self) -> None:
        """Codes are for targets that decode them."""
        target = lower(self.base()).target
        if not target.decodes:
            least = min(rung.file_bytes for rung in self.rungs)
            raise ValueError(
                f"compress: the smallest file with the same outputs has {least:,} bytes, flash_bytes="
                f"{self.wanted.flash_bytes:,}; smaller ones are in codes, and '{target.name}' decodes none. Give "
                "target='tflm', or kquant.mixed_precision(model, data, flash_bytes=...) for weights of 4 bits."
            )

    def score(self, name: str, model: keras.Model) -> float:
        """Of the quantized model of a rung."""
        if self.wanted.evaluate is not None:
            return score_of(self.wanted.evaluate, model, f"the rung '{name}'", "compress")
        wrong = _predicted(model, self.x) - self.outputs
        signal, noise = float(np.sum(self.outputs**2)), float(np.sum(wrong**2))
        return 10.0 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30)))

    def measure(self, name: str, make: Callable[[], keras.Model], coded: bool | None) -> None:
        """Make a rung, unless an earlier call has."""
        rung = self.earlier.get(name)
        if rung is None or not (rung.failed or coded in (None, False) or self._saved(name)):
            started = time.perf_counter()
            try:
                model = make()
                rung = self._measured(name, model, coded)
            except ValueError as error:
                if not self.rungs or is_callers(error):  # a fault of the caller's training is none of the rung
                    raise
                rung = ByteRung(name, 0, float("-inf"), 0, 0, 0.0, failed=str(error).split("\n")[0])
                if isinstance(error, NoCodesHold):
                    self.reached[name] = error.smallest
            else:
                rung = replace(rung, score=self.score(name, model))
                self._save(name, model)
            rung = replace(rung, seconds=time.perf_counter() - started)
        self.rungs.append(rung)
        done = {rung.name for rung in self.rungs}
        later = [rung for name, rung in self.earlier.items() if name not in done]  # a rung that is new may be stopped
        self.kept.store(rungs=[rung for rung in (*self.rungs, *later) if not rung.failed])

    def _measured(self, name: str, model: keras.Model, coded: bool | None) -> ByteRung:
        """The row of a file, without its score."""
        files = self._files(model, coded)
        plan = memory_plan(read_model(files.content)).size_bytes
        lookups = 0 if files.decoding is None else files.decoding.lookups
        size = len(files.content)
        holds = coded is not None and size <= self.wanted.flash_bytes
        told = {"coded": files.decoding is not None, "holds": holds, "host_ms": host_ms(files.content)}
        return ByteRung(name, size, float("-inf"), plan, lookups, 0.0, **told)

    def _files(self, model: keras.Model, coded: bool | None) -> Files:
        wanted = self.wanted
        form = self.form if coded else Form(io=wanted.io, bare=wanted.strip_names and coded is not None)
        return to_files(lower(model, shrink=coded is not None), form)

    def shortened(self, what: str, model: keras.Model, share: float) -> keras.Model:
        """Codes so short that the file holds the budget, or a little less."""
        wanted = self.wanted
        bytes_ = int(share * wanted.flash_bytes)
        folder = None if wanted.folder is None else wanted.folder / f"{what}-{bytes_}"
        edges = {"strip_names": wanted.strip_names, "io": wanted.io, "decode_budget": wanted.decode_budget}
        options = {**edges, "limit": wanted.limit, "folder": folder}
        return shorten_codes(model, wanted.data, flash_bytes=bytes_, verbose=False, **options)

    def distilled(self, model: keras.Model) -> keras.Model:
        """Trained a little towards the float model, on the samples alone."""
        kinds = [KINDS.get(squash_of(read(model), t), "regression") for t in read(model).output_tensors]
        samples = gather(self.wanted.model, self.wanted.data, self.wanted.limit)
        count = len(samples[0])
        epochs = max(1, STEPS * BATCH // max(count, BATCH))
        drawn = np.random.default_rng(0)
        trainer: Any = distill(model, self.wanted.model, alpha=1.0, temperature=1.0, outputs=kinds)
        steps = epochs * -(-count // BATCH)
        falling: Any = keras.optimizers.schedules.CosineDecay(RATE, steps)
        trainer.compile(keras.optimizers.Adam(falling))
        for _ in range(epochs):
            # in an order of our own: Keras would draw it from TensorFlow's global seed, the caller's
            order = drawn.permutation(count)
            x = [each[order] for each in samples]
            trainer.fit(x if len(x) > 1 else x[0], batch_size=BATCH, shuffle=False, verbose=0)
        return model

    def _saved(self, name: str) -> bool:
        path = self._path(name)
        return path is not None and path.is_file()

    def _path(self, name: str) -> Path | None:
        folder = self.wanted.folder
        return None if folder is None else folder / f"{name.replace(', ', '-').replace(' ', '-')}.keras"

    def _save(self, name: str, model: keras.Model) -> None:
        self.models = {name: model, **{key: m for key, m in self.models.items() if key == self._best_so_far()}}
        path = self._path(name)
        if path is not None:
            with Outputs([path], "compress") as new:
                size = 4 * sum(int(np.prod(w.shape)) for w in model.weights)
                with new.making(path, size) as made:
                    model.save(made)

    def _best_so_far(self) -> str:
        held = [rung for rung in self.rungs if rung.holds]
        return max(held, key=lambda rung: rung.score).name if held else ""

    def result(self) -> tuple[keras.Model, ByteLadder]:
        """The best of what holds, or an error that says what stands in the way."""
        best = self._best_so_far()
        if not best:
            raise ValueError(self._too_large())
        if best in (*EXACT, "codes", ONE):
            model = self.base(ONE_SCALE if best == ONE else NONE)
        elif best in self.models:
            model = self.models[best]
        else:
            model = load(present(self._path(best), f"compress: the model of '{best}' was not kept."))
        unit = "dB" if self.wanted.evaluate is None else "score"
        rungs = tuple(replace(rung, kept=rung.name == best) for rung in self.rungs)
        return model, ByteLadder(self.wanted.flash_bytes, unit, self.wanted.float_score, rungs)

    def _too_large(self) -> str:
        made = {rung.name: rung.file_bytes for rung in self.rungs if not rung.failed}
        sizes = {**made, **self.reached}
        least = min(sizes, key=lambda name: sizes[name])
        said = f"'{least}' with {sizes[least]:,} bytes"
        if least in self.reached:
            kept = min(made, key=lambda name: made[name])
            said += f", and hardly a weight in it that is not zero; of files with weights, '{kept}' with {made[kept]:,}"
        rows = layer_bytes(to_files(lower(self.base()), coded_form("compress")).content).layers
        largest = sorted(rows, key=lambda row: -row.stored_bytes)[:3]
        where = first_of([f"{row.name} ({row.stored_bytes:,} bytes)" for row in largest])
        # what the one that went furthest says of the bytes that are left, else what went wrong first
        failed = next((r for r in self.rungs if r.failed and (r.name == least or least not in self.reached)), None)
        why = "" if failed is None else f" '{failed.name}': {failed.failed}"
        return (
            f"compress: nothing holds flash_bytes={self.wanted.flash_bytes:,}. The smallest is {said}. The largest "
            f"tensors of the recipe's file, in codes: {where}.{self._narrow()}{why}"
        )

    def _narrow(self) -> str:
        """What a budget of arena has to do with it, as a sentence with its space in front."""
        arena = self.form.storing.budget_bytes
        with_it = next((rung.file_bytes for rung in self.rungs if rung.name == "codes"), 0)
        if arena is None or not with_it:
            return ""
        free = replace(self.form, storing=replace(self.form.storing, budget_bytes=None))
        files = to_files(lower(self.base()), free)
        if files.decoding is None or len(files.content) >= with_it:
            return ""
        grows = files.decoding.arena_growth_bytes
        return (
            f" decode_budget={arena:,} keeps weights out of codes: 'codes' would have {len(files.content):,} bytes in "
            f"place of {with_it:,} with decode_budget={grows:,}; give as much, or leave it out."
        )


def _predicted(model: Any, x: Any) -> np.ndarray:
    outputs = model.predict(x, verbose=0)
    return np.concatenate([np.reshape(np.asarray(y, np.float64), (len(y), -1)) for y in keras.tree.flatten(outputs)], 1)

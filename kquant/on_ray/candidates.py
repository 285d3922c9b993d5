"""`kquant.on_ray.try_recipes`: many recipes of one model, each quantized and judged by a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras

from kquant import targets
from kquant.core.checks import check_score
from kquant.core.progress import tqdm
from kquant.core.result import Result
from kquant.correct.steps import apply_steps
from kquant.files.destination import check_folder
from kquant.on_ray.shipping import finished, packed, sent, started, unpacked
from kquant.prepare.quantization import quantize
from kquant.recipe.recipe import load
from kquant.search.ladder import Rung, score_of, tried
from kquant.search.search_state import rounded, search_state

Evaluate = Callable[[keras.Model], float]
VERB = "on_ray.try_recipes"


@dataclass(frozen=True, eq=False, repr=False)
class Candidates(Result):
    """What `try_recipes` found.

    Attributes:
        float_score: of the float model.
        rows: one for each recipe, the highest score first, of equal ones the smaller file.
    """

    float_score: float
    rows: tuple[Rung, ...]

    @property
    def best(self) -> Rung:
        """The first row."""
        return self.rows[0]

    def __repr__(self) -> str:
        failed = sum(bool(row.failed) for row in self.rows)
        best = f"best {self.best.name}, score {self.best.score:.4g}, drop {self.best.drop:+.4g}"
        return f"Candidates({len(self.rows)} recipes, {failed} failed; {best}, {self.best.file_bytes:,} bytes)"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"float_score": self.float_score, "rows": [asdict(row) for row in self.rows]}


def try_recipes(
    model: keras.Model,
    data: Any,
    evaluate: Evaluate,
    recipes: Sequence[Any],
    *,
    target: str = targets.DEFAULT,
    folder: str | Path | None = None,
    verbose: bool = True,
) -> Candidates:
    """Quantize a model by each of many recipes, and judge each, as tasks of Ray.

    Copies: `model` stays as it was.

    Args:
        model: a built float Keras model.
        data: representative samples, see `kquant.calibrate`; sent to each process once, so arrays, or what pickles.
        evaluate: see `kquant.autotune`; sent along with what it refers to.
        recipes: names, files or plain data, each with a name of its own.
        target: where the file is to run.
        folder: keep finished rows there, in candidates.json; the same call, with an `evaluate` that says the same of
            the float model again, goes on where it was stopped.
        verbose: show a progress bar.

    Returns:
        A row for each recipe; one that cannot be made is reported as failed.

    Raises:
        ValueError: no recipe, two of one name, a score that is no number (finished rows stay in the folder), Ray is not
            installed, data or an `evaluate` that do not pickle, or a folder of another search.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> kquant.on_ray.try_recipes(model, np.ones((64, 4)), lambda m: 1.0, [])
        Traceback (most recent call last):
        ValueError: on_ray.try_recipes: give one recipe or more.
    """
    given = [load(recipe) for recipe in recipes]
    names = [recipe.name for recipe in given]
    if not given:
        raise ValueError("on_ray.try_recipes: give one recipe or more.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"on_ray.try_recipes: two recipes are called '{twice[0]}'; give each a `name` of its own.")
    check_score(VERB, evaluate)
    check_folder(folder, VERB, "search")
    ray = started()
    before = score_of(evaluate, model, "the float model", VERB)
    options = {"target": target, "float_score": rounded(before)}
    kept = search_state(folder, "candidates.json", VERB, model, data, given[0], evaluate, **options)
    earlier = {row.name: row for row in kept.rows("rows", Rung)}
    rows = [row for r in given if (row := earlier.get(r.name)) and row.recipe == r.plain()]
    done = {row.name for row in rows}
    todo = [recipe for recipe in given if recipe.name not in done]
    shared = sent(ray, VERB, model=packed(model), data=data, evaluate=evaluate)
    results = finished(ray, tried_there, [(*shared, recipe.name, recipe.plain(), target, before) for recipe in todo])
    for _, row in tqdm(results, desc="recipes", unit="recipe", total=len(todo), disable=not verbose):
        rows.append(row)
        kept.store(rows=[row for row in rows if not row.failed])
    return Candidates(before, tuple(sorted(rows, key=lambda row: (-row.score, row.file_bytes, row.name))))


def tried_there(
    content: bytes, data: Any, evaluate: Evaluate, name: str, plain: dict[str, Any], target: str, before: float
) -> Rung:
    """A task: one recipe."""
    recipe = load(plain)

    def made() -> keras.Model:
        return apply_steps(quantize(unpacked(content), recipe, target=target), recipe.steps, data, verbose=False)

    return tried(name, recipe, made, evaluate, before, VERB)[0]

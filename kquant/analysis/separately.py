"""What `analyze` measures piece by piece: settings in groups, remedies one by one; kept in a folder, or made elsewhere.

    settings -> groups -> a walk over the data for each -> a row for each setting
    remedies -> the gain of each

A row is a function of the model, the samples and the setting, so that it does not matter who makes it, nor when.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import keras
import numpy as np

from kquant.analysis.metrics import name_of
from kquant.analysis.passes import Metric, Names, Passes, chunks
from kquant.analysis.remedies import Trials
from kquant.analysis.results import Gain
from kquant.analysis.sqnr import Noise
from kquant.analysis.units import units
from kquant.core.progress import tqdm
from kquant.files.destination import path_of
from kquant.files.finished_work import Kept, fingerprint, judged_by
from kquant.layers.provenance import Provenance
from kquant.views.quantized_model import read

GROUP = 8  # settings of a walk, which computes the float values once more


@dataclass(frozen=True)
class Judged:
    """One setting over all samples; numbers as texts of theirs, which tell infinity and every bit.

    Attributes:
        names: of what quantizes in it.
        value: of the metric.
        signal, noise: at the output of the one layer that the setting quantizes; "" where it is not one layer.
    """

    names: list[str]
    value: str
    signal: str
    noise: str


@dataclass(frozen=True)
class Tried:
    """One remedy.

    Attributes:
        change: lines of the recipe.
        value, sqnr_db: what they gain, as texts; "" where no model comes of them.
        right: samples that are right with it, see `by_chance.right_of`.
    """

    change: str
    value: str
    sqnr_db: str
    right: str = ""

    @property
    def gain(self) -> Gain | None:
        """As a number."""
        return Gain(float.fromhex(self.value), float.fromhex(self.sqnr_db), self.right) if self.value else None


@dataclass(frozen=True)
class Said:
    """What a metric says of the float and of the quantized model, to six digits: sums may differ in the last ones."""

    real: str
    quantized: str


Groups = Sequence[Sequence[Names]]


class AnalysisElsewhere(Protocol):
    """Makes rows in other processes, in whatever order."""

    def judged(
        self, qmodel: keras.Model, x: list[np.ndarray], metric: Metric | None, groups: Groups
    ) -> Iterator[list[Judged]]:
        """Rows of `judged_settings`, group by group."""
        ...

    def tried(self, trials: Trials, changes: Sequence[str]) -> Iterator[Tried]:
        """What `tried_remedy` gives for each change."""
        ...


@dataclass(frozen=True)
class Work:
    """Where rows come from, and where they are kept.

    Attributes:
        kept: rows of an earlier call.
        elsewhere: None: this process makes them.
    """

    kept: Kept
    elsewhere: AnalysisElsewhere | None = None

    def recognize(self, real: float, quantized: float) -> None:
        """Refuse the rows of another metric: functions cannot be compared, what they say of two models can.

        Args:
            real: what this one says of the float model.
            quantized: of the quantized one.

        Raises:
            ValueError: that of an earlier call said something else.
        """
        said = Said(f"{real:.6g}", f"{quantized:.6g}")
        earlier = self.kept.rows("metric", Said)
        if earlier and earlier != [said]:
            raise ValueError(
                f"analyze: {self.kept.path} is of another search: its metric says {earlier[0].real} of the float and "
                f"{earlier[0].quantized} of the quantized model, this one {said.real} and {said.quantized}. Give "
                "another folder, or delete it."
            )
        self.kept.store(metric=[said])

    def settle(self, passes: Passes, qmodel: keras.Model, x: list[np.ndarray], rest: list[Names], show: bool) -> None:
        """Give passes what they did not walk over."""
        rows = {frozenset(row.names): row for row in self.kept.rows("settings", Judged)}
        todo = [names for names in rest if names not in rows]
        groups = [todo[i : i + GROUP] for i in range(0, len(todo), GROUP)]
        here = (judged_settings(qmodel, x, passes.metric, group) for group in groups)
        made = here if self.elsewhere is None else self.elsewhere.judged(qmodel, x, passes.metric, groups)
        with tqdm(total=len(rest), desc="settings", unit="setting", disable=not show) as bar:
            bar.update(len(rest) - len(todo))
            for some in made:
                rows |= {frozenset(row.names): row for row in some}
                self.kept.store(settings=list(rows.values()))
                bar.update(len(some))
        for names in rest:
            row = rows[names]
            passes.settle(names, float.fromhex(row.value), _noise(row))

    def gains(self, trials: Trials, changes: Sequence[str], show: bool) -> dict[str, Gain | None]:
        """What each change gains."""
        rows = {row.change: row for row in self.kept.rows("remedies", Tried)}
        todo = [change for change in changes if change not in rows]
        here = (tried_remedy(trials, change) for change in todo)
        made = here if self.elsewhere is None else self.elsewhere.tried(trials, todo)
        with tqdm(total=len(changes), desc="remedies", unit="model", disable=not show) as bar:
            bar.update(len(changes) - len(todo))
            for row in made:
                rows[row.change] = row
                self.kept.store(remedies=list(rows.values()))
                bar.update()
        return {change: rows[change].gain for change in changes}


def judged_settings(
    qmodel: keras.Model, x: list[np.ndarray], metric: Metric | None, settings: Sequence[Names]
) -> list[Judged]:
    """Rows of some settings, in one walk over the data."""
    graph = read(qmodel)
    passes = Passes(graph, units(graph), metric, list(settings))
    passes.walk(chunks(graph, x), False, only_settings=True)
    rows = []
    for names in settings:
        unit = passes.by_names.get(names)
        local = None if unit is None else passes.local[id(unit)]
        both = ("", "") if local is None else (local.signal.hex(), local.noise.hex())
        rows.append(Judged(sorted(names), float(passes.value(names)).hex(), *both))
    return rows


def tried_remedy(trials: Trials, change: str) -> Tried:
    """The row of a remedy."""
    gain = trials.gain(change)
    if gain is None:
        return Tried(change, "", "")
    return Tried(change, float(gain.value).hex(), float(gain.sqnr_db).hex(), gain.right)


def kept_in(
    folder: str | Path | None, qmodel: keras.Model, x: list[np.ndarray], origin: Provenance, metric: Metric | None
) -> Kept:
    """Rows that an earlier call left in a folder; none where nothing is to be kept.

    Args:
        folder: see `analyze`.
        qmodel: the analyzed model.
        x: its samples.
        origin: how the model was made.
        metric: a user's; None: SQNR.

    Raises:
        ValueError: they are of another model, of one made otherwise, of other samples or of a metric of another name;
            or no folder can be made there.
    """
    if folder is None:
        return Kept(None, "analyze", {})
    made = json.dumps(origin.to_config(), sort_keys=True).encode()
    told = {
        "model": qmodel.name,
        "weights": fingerprint(qmodel.get_weights()),
        "recipe": origin.recipe,
        "target": origin.target,
        "made": fingerprint([np.frombuffer(made, np.uint8)]),  # its settings and the layers it leaves, in short
        "data": fingerprint(x),
        "samples": len(x[0]),
        "metric": name_of(metric),
        **judged_by(metric),
    }
    return Kept(path_of(folder, "analyze", "analysis") / "analysis.json", "analyze", told)


def _noise(row: Judged) -> Noise | None:
    return Noise(float.fromhex(row.signal), float.fromhex(row.noise)) if row.signal else None

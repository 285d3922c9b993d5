"""Benchmarks are run by hand; that they can start is checked here."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import keras_hub_models, ptq_time, short_codes, tables
from benchmarks.__main__ import ALL
from benchmarks.zoo import ZOO, measure, table
from benchmarks.zoo.__main__ import answered

FOLDER = Path(__file__).parent.parent / "benchmarks"
ELSEWHERE = {"tfmot_steps", "litert_quantizer"}  # run in environments of their own
NAMES = sorted({path.stem for path in FOLDER.glob("*.py")} - ELSEWHERE)
# of a benchmark that is a folder; the peers' scripts run elsewhere
FOLDERS = [path.parent for path in sorted(FOLDER.rglob("__main__.py")) if path.parent != FOLDER]
INSIDE = [
    ".".join(path.relative_to(FOLDER).with_suffix("").parts)
    for folder in FOLDERS
    for path in sorted(folder.glob("*.py"))
    if path.stem != "__init__"
]


@pytest.mark.parametrize("name", [*NAMES, *INSIDE])
def test_it_imports_what_there_is(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def test_every_benchmark_is_in_the_list() -> None:
    runnable = {n for n in NAMES if 'if __name__ == "__main__":' in (FOLDER / f"{n}.py").read_text()} - {"__main__"}
    runnable |= {".".join(folder.relative_to(FOLDER).parts) for folder in FOLDERS}
    assert set(ALL) | {"latency", "same_files"} == runnable  # one wants files, the other a second tree


def test_a_part_of_the_table_of_times_replaces_nothing() -> None:
    assert ptq_time.written_to(list(ptq_time.TASKS), None) == ptq_time.RESULTS
    assert ptq_time.written_to(["kws"], None) is None
    assert ptq_time.written_to(["kws"], Path("r.json")) == Path("r.json")


def test_one_place_tells_what_a_measurement_ran_on() -> None:
    """Elsewhere `platform.processor()` says what an architecture is called, and nobody knows which processor it was."""
    asking = {path for path in FOLDER.rglob("*.py") if {"platform", "cpuinfo"} & set(re.split(r"\W", path.read_text()))}
    assert asking == {FOLDER / "machine.py"}


def test_the_page_of_the_zoo_tells_the_figures_that_were_measured() -> None:
    rows = table.load()
    assert {key.split("/")[0] for key in rows} <= set(ZOO)
    assert table.tables(rows) in table.PAGE.read_text()


def test_the_page_of_the_zoo_tells_what_became_of_keras_hubs_models() -> None:
    results = json.loads(keras_hub_models.RESULTS.read_text())
    assert list(results["models"]) == list(keras_hub_models.MODELS)
    page = keras_hub_models.PAGE.read_text()
    assert f"{keras_hub_models.BEGIN}\n\n{keras_hub_models.table(results)}\n\n{keras_hub_models.END}" in page
    assert f"KerasHub {results['keras_hub']}" in page


@pytest.mark.parametrize("name", tables.TABLES)
def test_the_page_of_benchmarks_tells_the_times_that_were_measured(name: str) -> None:
    """`python -m benchmarks.tables` puts them there."""
    start, end = tables.marks(name)
    told = tables.PAGE.read_text().split(start)[1].split(end)[0]
    assert told.strip() == tables.made(name)


def test_a_converter_that_crashes_is_told_and_a_fault_of_our_own_raises() -> None:
    killed = subprocess.CompletedProcess([], -11, "", "")
    assert answered("crnn", ["int8/converter"], killed) == {"int8/converter": {"why": "crashed: SIGSEGV"}}
    for done in (killed, subprocess.CompletedProcess([], 1, "", "no such layer")):
        with pytest.raises(RuntimeError, match="crnn: "):
            answered("crnn", ["int8/litert"], done)


def test_enough_numbers_judge_a_model_with_few_outputs() -> None:
    assert measure.judging(ZOO["tcn"]()) * 4 == measure.OUTPUTS
    assert measure.judging(ZOO["recommender"]()) == measure.MOST
    assert measure.judging(ZOO["mtcnn_pnet"]()) == measure.FEWEST


@pytest.mark.parametrize("name", sorted({key.split("/")[0] for key in table.load()}))
def test_a_row_was_judged_by_as_many_samples_as_are_asked_now(name: str) -> None:
    rows = [row for key, row in table.load().items() if key.split("/")[0] == name]
    assert {row["judged"] for row in rows if "judged" in row} == {measure.judging(ZOO[name]())}


@pytest.mark.parametrize("name", ["tcn", "mtcnn_pnet"])
def test_a_row_of_the_zoo_can_be_measured(name: str) -> None:
    row = measure.measured(name, "tflm", "int8")
    assert row["integer"] and row["equal"] == 1.0 and row["reloads"] and row["trains"]


def test_forms_of_short_codes_are_known_by_their_names(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    names = list(short_codes.forms("anomaly_detection", 0))
    assert names[0] == "int8" and names[-1] == "one scale, 0.45"
    assert short_codes.due(names, [], []) == (set(names), set())
    assert short_codes.due(names, ["int8", "4 bits"], ["short, 0.45"]) == ({"short, 0.45"}, {"int8", "4 bits"})
    assert short_codes.due(names, ["4 bits"], ["short, 0.45"]) == ({"int8", "short, 0.45"}, {"4 bits"})
    assert short_codes.due(names, ["4 bits"], ["short, 0.40"]) == (set(), {"4 bits"}), "of another model"
    monkeypatch.setattr("sys.argv", ["short_codes", "anomaly_detection", "--only", "short, 0.40"])
    with pytest.raises(SystemExit):
        short_codes.main()
    assert "--only: expected some of int8; 4 bits;" in capsys.readouterr().err

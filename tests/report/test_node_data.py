"""Figures of a file by operator, as Model Explorer takes them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kquant
from kquant.app.cli import app
from kquant.core.operators import OPERATORS
from kquant.report import node_data
from kquant.sizing.operator_figures import figures_of, macs_of_operator

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
layers = keras.layers
ADAPTER = "ai_edge_model_explorer_adapter"
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (128, 8, 8, 2)).astype("float32")


def _net() -> tuple[keras.Model, np.ndarray, dict[str, Any]]:
    x = keras.Input((8, 8, 2), name="image")
    y = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(x)
    y = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(y))
    y = layers.Add(name="sum")([y, layers.Conv2D(4, 1, name="skip")(y)])
    y = layers.Dense(3, activation="softmax", name="score")(layers.Flatten(name="flat")(y))
    return keras.Model(x, y, name="net"), IMAGES, {}


def _gru() -> tuple[keras.Model, np.ndarray, dict[str, Any]]:
    x = keras.Input((12, 6), name="sequence")
    y = layers.Dense(3, name="out")(layers.GRU(8, name="memory")(x))
    return keras.Model(x, y, name="gru"), RNG.normal(size=(128, 12, 6)).astype("float32"), {}


def _stream() -> tuple[keras.Model, np.ndarray, dict[str, Any]]:
    x = keras.Input((16, 4), name="frames")
    y = layers.Dense(3, name="out")(layers.Conv1D(8, 3, padding="causal", activation="relu", name="conv")(x))
    clips = RNG.normal(size=(128, 16, 4)).astype("float32")
    return keras.Model(x, y, name="stream"), clips, {"streaming": True, "states": "variables"}


def _tables() -> tuple[keras.Model, np.ndarray, dict[str, Any]]:
    x = keras.Input((8, 8, 2), name="image")
    y = layers.Flatten()(layers.Conv2DTranspose(3, 3, strides=2, name="up")(x))
    model = keras.Model(x, layers.Dense(3, name="out")(layers.Dense(16, name="wide")(y)), name="tables")
    return kquant.cluster(model, {"name": "few", "clustering": {"clusters": 8}}), IMAGES, {"compression": "lut"}


MODELS = {"net": _net, "gru": _gru, "stream": _stream, "tables": _tables}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("files")
    for name, build in MODELS.items():
        model, x, options = build()
        q = kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False)
        kquant.export(q, made / f"{name}.tflite", check_runtimes=False, **options)
        if name == "net":
            q.save(made / "net.keras")
            np.savez(made / "x.npz", x=x)
    return made


@pytest.mark.parametrize("name", MODELS)
def test_every_operator_has_a_value_by_its_graph(name: str, folder: Path) -> None:
    made = kquant.view(folder / f"{name}.tflite")
    file = kquant.inspect(folder / f"{name}.tflite")
    endings = {Path(path).name.removeprefix(f"{name}.") for path in made.node_data}
    assert endings == {"bytes.json", "macs.json", "arena.json"}
    for path in made.node_data:
        graphs = json.loads(Path(path).read_text())
        assert set(graphs) == set(file.graphs)
        assert sum(len(graph["results"]) for graph in graphs.values()) == len(file.operators)
    stored = json.loads(Path(made.node_data[0]).read_text())
    assert sum(r["value"] for g in stored.values() for r in g["results"].values()) == file.weight_bytes


@pytest.mark.skipif(
    importlib.util.find_spec(ADAPTER) is None, reason=f"needs {ADAPTER}: pip install 'kquant[explorer]'"
)
@pytest.mark.parametrize("name", MODELS)
def test_model_explorer_finds_the_nodes(name: str, folder: Path) -> None:
    adapter: Any = importlib.import_module(ADAPTER)
    file = str(folder / f"{name}.tflite")
    answer = json.loads(adapter.ConvertFlatbufferDirectlyToJson(adapter.VisualizeConfig(), file))
    graphs = {graph["id"]: graph["nodes"] for one in answer for graph in one["subgraphs"]}
    figures = figures_of(file)
    found = node_data.node_data(figures, "macs")
    assert set(found) == set(graphs)
    for graph, nodes in graphs.items():
        known = {node["id"]: node for node in nodes}
        told = [(n, a) for n in nodes for o in n.get("outputsMetadata", []) for a in o["attrs"]]
        tensors = {attribute["value"]: node for node, attribute in told if attribute["key"] == "tensor_name"}
        of_graph = [row for row in figures.operators if row.graph == graph]
        assert len(found[graph]["results"]) == len(of_graph)
        for key, row in zip(found[graph]["results"], of_graph, strict=True):
            node = tensors.get(key) or known[key]
            assert node["id"] == str(row.node)
            assert node["label"] == row.code.lower() or row.code == "TFLM_DECODE"


def test_tools_show_names_of_layers(folder: Path) -> None:
    """What Netron and Model Explorer write beside a node: names of tensors."""
    file = kquant.inspect(folder / "net.tflite")
    written = [file.tensors[op.outputs[0]].name for op in file.operators]
    assert written == ["relu", "skip", "sum", "score", "score_softmax"]
    assert {t.name for t in file.tensors if t.size_bytes} >= {"conv/kernel", "conv/bias", "score/kernel"}
    figures = figures_of(folder / "net.tflite")
    assert [row.layer for row in figures.operators] == ["conv", "skip", "sum", "score", "score_softmax"]


@pytest.mark.parametrize("name", MODELS)
def test_multiplications_are_those_of_the_model(name: str, folder: Path) -> None:
    """A loop counts for one step, a stream for one frame."""
    model, _, _ = MODELS[name]()
    told, counted = figures_of(folder / f"{name}.tflite").macs, kquant.estimate(model, target="tflm").macs
    steps = {"gru": 12, "stream": 16}.get(name, 1)
    once = 3 * 8 if name == "gru" else 0  # the layer behind the loop
    assert (told - once) * steps + once == counted


def test_multiplications_of_other_operators() -> None:
    a, b = keras.Input((5, 4), name="a"), keras.Input((4, 3), name="b")
    model = keras.Model([a, b], keras.ops.matmul(a, b))
    x = [RNG.normal(size=(128, *shape)).astype("float32") for shape in ((5, 4), (4, 3))]
    q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
    kquant.export(q, "product.tflite", check_runtimes=False)
    file = kquant.inspect("product.tflite")
    assert [macs_of_operator(file, op) for op in file.operators if op.code == "BATCH_MATMUL"] == [5 * 4 * 3]
    assert {code for code, known in OPERATORS.items() if known.weights and known.multiplies is None} <= {
        *(
            "GATHER",
            "EMBEDDING_LOOKUP",
            "SVDF",
        ),  # rows that are looked up; what kquant reads of others and never writes
    }


def test_errors_come_from_an_analysis(folder: Path, tmp_path: Path) -> None:
    q = keras.models.load_model(folder / "net.keras")
    analysis = kquant.analyze(q, IMAGES, sensitivity=False, remedies=False, verbose=False)
    made = kquant.view(folder / "net.tflite", analysis=analysis, folder=tmp_path)
    (graph,) = json.loads((tmp_path / "net.error.json").read_text()).values()
    assert graph["results"]["sum"]["value"] == round(analysis.layer("sum").sqnr_db, 2)
    assert {row.sqnr_db is None for row in made.figures.operators if row.code != "RESHAPE"} == {False}
    with pytest.raises(ValueError, match="has no layer of 'net'"):
        kquant.view(folder / "gru.tflite", analysis=analysis, folder=tmp_path)


def test_any_file_may_be_looked_at(tmp_path: Path) -> None:
    """One that the TensorFlow converter wrote, with its names."""
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4, name="first")])
    model.export(str(tmp_path / "float.tflite"), format="litert", verbose=False)
    assert kquant.view(tmp_path / "float.tflite").figures.macs == 32


def _explorer(folder: Path, code: int = 0) -> Path:
    """A command that notes what it is asked."""
    path = folder / node_data.COMMAND
    path.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(folder / 'asked')!r}, 'w').write('|'.join(sys.argv[1:]))\n"
    )
    path.write_text(f"{path.read_text()}sys.exit({code})\n")
    path.chmod(0o755)
    return path


def test_model_explorer_is_started_with_the_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_data, "find_explorer", lambda: str(_explorer(tmp_path)))
    made = kquant.view(folder / "net.tflite", folder=tmp_path, start=True)
    asked = (tmp_path / "asked").read_text().split("|")
    assert asked == [made.path, f"--node_data_paths={','.join(made.node_data)}"]
    done = CliRunner().invoke(app, ["view", str(folder / "net.tflite"), "--folder", str(tmp_path), "--no-start"])
    assert done.exit_code == 0
    (tmp_path / "asked").unlink()
    done = CliRunner().invoke(app, ["view", str(folder / "net.tflite"), "--folder", str(tmp_path)])
    assert done.exit_code == 0 and (tmp_path / "asked").exists()
    monkeypatch.setattr(node_data, "find_explorer", lambda: str(_explorer(tmp_path, 3)))
    with pytest.raises(ValueError, match="ended with code 3"):
        kquant.view(folder / "net.tflite", folder=tmp_path, start=True)


def test_without_model_explorer_it_says_how_to_get_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_data, "find_explorer", lambda: None)
    with pytest.raises(ImportError, match=r"pip install 'kquant\[explorer\]'"):
        kquant.view(folder / "net.tflite", folder=tmp_path, start=True)
    assert list(tmp_path.iterdir()) == []
    options = ["--model", str(folder / "net.keras"), "--data", str(folder / "x.npz"), "--folder", str(tmp_path)]
    done = CliRunner().invoke(app, ["view", str(folder / "net.tflite"), *options])
    assert done.exit_code == 0 and "pip install 'kquant[explorer]'" in done.output
    assert (tmp_path / "net.error.json").exists()
    told = CliRunner().invoke(app, ["view", str(folder / "net.tflite"), "--folder", str(tmp_path), "--json"])
    assert json.loads(told.stdout)["figures"]["macs"] == figures_of(folder / "net.tflite").macs


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--start"], 1, "pip install 'kquant[explorer]'"),
        (["--limit", "9", "--data", "x.npz"], 2, "give --model and --data, or neither"),
        (["--folder", "absent"], 1, "does not exist; make it first"),
    ],
)
def test_what_does_not_fit_is_told(
    folder: Path, options: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_data, "find_explorer", lambda: None)
    given = [str(folder / option) if option.endswith(".npz") else option for option in options]
    done = CliRunner().invoke(app, ["view", str(folder / "net.tflite"), *given])
    assert done.exit_code == code and said in " ".join(done.output.replace("│", " ").split()), done.output


def test_a_comma_would_be_two_paths(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a,b.tflite").write_bytes((folder / "net.tflite").read_bytes())
    monkeypatch.setattr(node_data, "find_explorer", lambda: "model-explorer")
    with pytest.raises(ValueError, match="takes no comma in a path"):
        kquant.view(tmp_path / "a,b.tflite", start=True)

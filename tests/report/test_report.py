"""Reports: what has to be known comes first, names are shown as they are, JSON is strict."""

import json
import math
from dataclasses import replace

import keras
import numpy as np
import pytest

import kquant
from kquant import report
from kquant.exporting.verification import Agreement, VerifyReport
from kquant.prepare.forecast import CheckReport, LayerCheck
from kquant.report.tables import page

ODD = "bold[red]/x:0"
AGREEMENT = Agreement(output=ODD, equal=0.99999, max_err_lsb=1, argmax=1.0, sqnr_db=math.inf)
VERIFIED = VerifyReport("tflm", 64, (AGREEMENT,), (), (), None)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="head")], name="tiny")
    x = np.random.default_rng(0).random((64, 4), np.float32)
    return kquant.compress(model, x, path=tmp_path_factory.mktemp("report") / "m.tflite", verbose=False)


def test_compress_result_shows_its_report(result):
    text = report.render(result)
    assert text == report.render(result.report)
    assert "FULLY_CONNECTED" in text
    assert f"{result.report.file_bytes:,} bytes" in text
    told = json.loads(report.to_json(result))
    assert told["card"] == result.card.to_dict()
    assert told == json.loads(report.to_json(result.report))
    assert (result.card.macs, result.card.flash_bytes) == (8, result.report.file_bytes)


def test_ports_show_what_the_application_computes_with(result):
    text = report.render(kquant.inspect(result.report.path))
    port = result.report.inputs[0]
    assert f"{port.scale:.9g}" in text
    assert str(port.zero_point) in text


def test_names_are_not_markup():
    assert ODD in report.render(VERIFIED)
    assert ODD in report.render_arrays({ODD: np.zeros((2, 3))})
    row = LayerCheck(ODD, "Dense", "integer", ("FULLY_CONNECTED",), "")
    assert ODD in report.render(CheckReport("[b]model", "tflm", (row,)))


def test_findings_come_before_tables():
    bad = replace(VERIFIED, float_operators=("RELU (act)",), wrong_encodings=("x",), first_difference="conv: 1.00%")
    text = report.render(bad)
    assert "NOT the model" in text.splitlines()[0]
    assert text.index("compute in float: RELU (act)") < text.index("equal codes")
    assert text.index("not the model's at x") < text.index("equal codes")
    assert text.index("first differ from the model at conv") < text.index("equal codes")


def test_refused_layers_come_with_the_remedy():
    row = LayerCheck("memory", "LSTM", "refused", (), "replace it")
    text = report.render(CheckReport("model", "tflm", (row,)))
    assert "memory (LSTM), refused: replace it" in text
    assert "1 of 1 layers cannot be integer" in text


def test_almost_equal_is_not_printed_as_equal():
    assert "99.99 %" in report.render(VERIFIED)


def test_json_is_strict():
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    found = json.loads(report.to_json(VERIFIED), parse_constant=refuse)
    assert found["agreements"][0]["sqnr_db"] is None
    assert found["ok"] is True


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="Received: int"):
        report.render(3)


def test_compression_has_pages():
    model = keras.Sequential([keras.Input((8,), name="x"), keras.layers.Dense(16, name="wide"), keras.layers.Dense(4)])
    zeros = report.render(kquant.sparsity(kquant.prune(model, 0.75, protect=["dense*"])))
    assert "96" in zeros and "wide" in zeros
    x = np.random.default_rng(0).random((16, 8), np.float32)
    scan = report.render(kquant.scan_sparsity(model, x, sparsities=(0.5, 0.9), verbose=False))
    assert "SQNR" in scan and "90 %" in scan
    assert "they are outputs of the model" in report.render(kquant.channel_groups(model))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_table_breaks_a_number(result, width):
    """Whatever the terminal: every figure stands whole in a line, every line fits."""
    long, path = "a_layer_with_a_name_of_more_than_forty_characters", result.report.path
    rows = tuple(LayerCheck(f"{long}_{i}", "Conv2D", "integer", ("CONV_2D",), "") for i in (1, 2))
    figures = tuple(f"{n * 123_456_789:,}" for n in range(1, 9))
    wide = report.Table("t", ("layer", *"abcdefgh"), ((long, *figures),), tuple("abcdefgh"))
    reports = (result, kquant.inspect(path), CheckReport("m", "tflm", rows), VERIFIED, kquant.layer_bytes(path))
    for table in (wide, *(table for r in reports for table in page(r).tables if table.rows)):
        lines = report.render_table(table, width).splitlines()
        assert all(len(line) <= width for line in lines), (table.title, width)
        words = {word for line in lines for word in line.split()}
        for row in table.rows:
            for column, cell in zip(table.columns, row, strict=True):
                if column in table.right or cell.replace(",", "").isdigit():
                    assert set(cell.split()) <= words, (table.title, column, cell)

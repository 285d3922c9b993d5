"""The demo, whole: what the README says of it is read off its result."""

from pathlib import Path

import pytest

import kquant
from kquant.app import demo
from kquant.runtime.running import RUNTIMES, available

pytest.importorskip("sklearn")
POINT = 0.01


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """With a third of the README's epochs, whose figures nobody compares: how far they come differs by processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "EPOCHS", 12)
        patch.setattr(demo, "QAT_EPOCHS", 2)
        return demo.run(tmp_path_factory.mktemp("demo"), verbose=False)


def test_rows_and_splits(result):
    assert [row.name for row in result.rows] == ["float", "PTQ int8", "QAT int8"]
    digits = demo.load_digits()
    train, test = ({x.tobytes() for x in part} for part in (digits.x_train, digits.x_test))
    assert len(digits.x_test) == result.test_samples == 540
    assert not train & test


@pytest.mark.parametrize("row", [1, 2], ids=["PTQ", "QAT"])
def test_integer_files_keep_the_float_accuracy_everywhere(result, row):
    reference, row = result.rows[0].float_accuracy, result.rows[row]
    assert reference > 0.95  # it has learned
    assert row.simulated_accuracy >= reference - POINT
    for name in available():
        assert abs(row.accuracy[name] - row.simulated_accuracy) <= POINT / 5


def test_files_are_integer_and_smaller(result):
    paths = {path.rsplit("/", 1)[-1]: path for path in result.files}
    assert set(paths) == {f"digits_{n}" for n in ("float.tflite", "ptq.tflite", "qat.tflite", "model.cc", "model.h")}
    for name in ("digits_ptq.tflite", "digits_qat.tflite"):
        file = kquant.inspect(paths[name])
        assert {t.type for t in file.tensors} <= {"INT8", "INT32"}
        assert not file.findings
    floats, ptq, qat = result.rows
    assert max(ptq.file_bytes, qat.file_bytes) < floats.file_bytes / 2


def test_dense_weights_have_one_scale_for_each_unit(result):
    (path,) = (path for path in result.files if path.endswith("digits_ptq.tflite"))
    file = kquant.inspect(path)
    (dense,) = (op for op in file.operators if op.code == "FULLY_CONNECTED")
    kernel = file.tensors[dense.inputs[1]]
    assert len(kernel.scale) == kernel.shape[0] == 10


def test_the_printed_table_is_the_result(result):
    text = demo.render(result)
    for row in result.rows:
        assert f"{row.file_bytes:,}" in text
    assert all(word in text for word in ("float", "simulated", "LiteRT", "TFLM", "arena bytes", "operators"))
    assert set(result.rows[1].accuracy) == set(RUNTIMES)


def test_the_readme_shows_this_table(result):
    """Title and columns, to the letter; the figures of one run, so rows by name."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    title, columns = demo.render(result).strip().splitlines()[:2]
    assert title in readme
    assert columns.split() in [line.split() for line in readme.splitlines()]
    assert all(f"\n{row.name} " in readme for row in result.rows)

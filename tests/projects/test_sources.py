"""The sources of a project compile without a warning, say what Python says, and name operators as TFLM does."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_project import WARNINGS, X, compiled, small_bundle, small_model  # noqa: F401

import kquant
from kquant import targets
from kquant.core.operators import OPERATORS, facts
from kquant.runtime.running import available, quantize_input

pytestmark = [
    pytest.mark.skipif("tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)"),
    pytest.mark.filterwarnings("ignore:calibrate. .* carry hardly any signal"),
]


MAIN = """
#include <math.h>
#include <stdio.h>
#include "golden.h"
#include "io.h"
#include "model.h"
int main() {
  for (size_t i = 0; i < net_model_size; ++i) printf("%02x", net_model[i]);
  printf("\\n");
  for (size_t c = 0; c < NET_GOLDEN_CALLS; ++c) {
    const signed char* x = static_cast<const signed char*>(net_golden_inputs[c][0].values);
    const signed char* y = static_cast<const signed char*>(net_golden_outputs[c][0].values);
    for (size_t i = 0; i < net_golden_inputs[c][0].bytes; ++i) printf("%d ", x[i]);
    for (size_t i = 0; i < net_golden_outputs[c][0].bytes; ++i) printf("%d ", y[i]);
  }
  printf("\\n");
  for (int i = -4000; i <= 4000; ++i) printf("%d ", net_input_image_code(0.001f * static_cast<float>(i)));
  const float odd[] = {INFINITY, -INFINITY, NAN};
  for (float v : odd) printf("%d ", net_input_image_code(v));
  printf("\\n");
  for (int i = -128; i <= 127; ++i) {
    printf("%.9g ", static_cast<double>(net_output_score_softmax_real(static_cast<int8_t>(i))));
  }
  printf("\\n%d %d\\n", net_input_image_code_of_raw(255.0f, 0), net_input_image_code_of_raw(0.0f, 1));
  printf("%s|%s|%s\\n", net_labels[0], net_labels[1], net_labels[2]);
  return 0;
}
"""


def test_the_sources_say_what_python_says(made: kquant.BundleReport, tmp_path: Path) -> None:
    folder = Path(made.folder)
    (tmp_path / "said.cc").write_text(MAIN)
    printed = compiled(folder, "model.cc", "golden.cc", "io.c", tmp_path / "said.cc", program=tmp_path / "said")
    array, golden, codes, reals, raw, labels = printed.splitlines()
    content = (folder / "model.tflite").read_bytes()
    assert bytes.fromhex(array) == content
    file = kquant.inspect(content)
    picked = X[[0, 32, 63]]  # spread over all
    wanted = kquant.predict(content, picked, runtime="tflm")
    rows = np.array(golden.split(), int).reshape(3, -1)
    np.testing.assert_array_equal(rows[:, :128], quantize_input(picked, file.inputs[0]).reshape(3, -1))
    (scale,), (zero,) = file.outputs[0].scale or (), file.outputs[0].zero_point
    np.testing.assert_array_equal((rows[:, 128:] - zero) * np.float32(scale), wanted)
    values = np.float32(0.001) * np.arange(-4000, 4001, dtype=np.float32)
    expected = quantize_input(values, file.inputs[0])
    got = np.array(codes.split(), int)
    np.testing.assert_array_equal(got[:-3], expected)
    assert got[-3:].tolist() == [127, -128, -128]
    of_codes = (np.arange(-128, 128) - zero) * np.float32(scale)
    np.testing.assert_array_equal(np.array(reals.split(), np.float32), of_codes)
    real = np.array([(255 / 255 - 0.5) / 0.5, (0 - 0.25) / 0.5], np.float32)
    assert [int(v) for v in raw.split()] == quantize_input(real, file.inputs[0]).tolist()
    assert labels == 'left|the "right"|é'


CORES = {
    "M0+": ("-mcpu=cortex-m0plus", "-mthumb"),
    "M4F": ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
    "M55": ("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"),
}


@pytest.mark.skipif(shutil.which("arm-none-eabi-g++") is None, reason="needs Debian's gcc-arm-none-eabi")
@pytest.mark.parametrize("core", CORES)
def test_it_compiles_for_a_core(made: kquant.BundleReport, core: str, tmp_path: Path) -> None:
    for source in ("model.cc", "golden.cc", "io.c"):
        compiler = ("gcc", "-std=c11") if source.endswith(".c") else ("g++", "-std=c++17")
        command = [f"arm-none-eabi-{compiler[0]}", compiler[1], *WARNINGS, *CORES[core], "-Os", "-c"]
        command += [str(Path(made.folder) / source), "-o", str(tmp_path / "x.o")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_operators_are_registered_once(made: kquant.BundleReport) -> None:
    text = (Path(made.folder) / "op_resolver.h").read_text()
    called = re.findall(r"resolver\.(\w+)\(\)", text)
    assert called == ["AddConv2D", "AddFullyConnected", "AddSoftmax"]
    assert "kOperators = 3;" in text


def test_every_operator_of_tflm_has_a_registration_or_is_known_to_have_none() -> None:
    lacking = [code for code in targets.load("tflm").ops if facts(code).resolver_of(code) is None]
    assert all(OPERATORS[code].resolver == "" for code in lacking)
    # what is no camel case in tensorflow/lite/micro/micro_mutable_op_resolver.h
    named = {"BATCH_MATMUL": "AddBatchMatMul", "PADV2": "AddPadV2", "TFLM_DECODE": "AddDecode"}
    named |= {"SPACE_TO_BATCH_ND": "AddSpaceToBatchNd", "LEAKY_RELU": "AddLeakyRelu", "RELU6": "AddRelu6"}
    named |= {"UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM", "SELECT_V2": "AddSelectV2"}
    assert {code: facts(code).resolver_of(code) for code in named} == named

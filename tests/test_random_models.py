"""Random models of every rule's examples, in every format: the file is integer and computes the codes of the model."""

from __future__ import annotations

import contract
import pytest
import random_models

import kquant
from kquant.runtime.running import available

pytestmark = pytest.mark.filterwarnings(
    r"ignore:calibrate. '.*' \(.*\) takes values from",
    "ignore:calibrate. tensors of very different ranges share",
    "ignore:calibrate. these tensors hold a single value",
    "ignore:quantize. .* takes no packed 4-bit weights",
    "ignore:quantize. .* has no 16-bit kernel",
    "ignore:The structure of `inputs` doesn't match",
    "ignore:.* every weight is 0",
    r"ignore:.* the weights of \d+ of its \d+ output channels are all 0",
    "ignore:calibrate. the range differs more than 2 times",
    r"ignore:calibrate. \d+ samples are few",
    r"ignore:calibrate. .* the mask leaves out steps between real ones",
    r"ignore:calibrate. .*real steps at an end of some samples",
    r"ignore:calibrate. the sound of input",
    "ignore:.* what it draws in training",
    "ignore:quantize. an output of the model joins heads",
    "ignore:calibrate. what an output of the model joins has ranges that are alike",
)

GRAPHS = 40
# (target, runtime): each model is tried on one of them; the benchmark tries five hundred on both
SIDES = (("litert", "litert-reference"), ("tflm", "tflm"))


@pytest.mark.one_in(5)
@pytest.mark.parametrize("seed", range(GRAPHS))
def test_file_computes_the_codes_of_the_model(seed: int) -> None:
    target, runtime = SIDES[seed % 2]
    if runtime not in available():
        pytest.skip(f"{runtime} needs an extra: pip install 'kquant[micro]'")
    verdict = random_models.verdict(seed, target, runtime)
    assert verdict.ok, verdict


@pytest.mark.parametrize("seed", [130, 164])
def test_a_tensor_reshaped_twice_is_reshaped_once(seed: int) -> None:
    """With two equal RESHAPEs of one tensor LiteRT 2.3 overwrites what the second reads."""
    verdict = random_models.verdict(seed, "litert", "litert-reference")
    assert verdict.result == "equal", verdict


def test_refusals_name_a_layer() -> None:
    model = random_models.random_model(0)
    recipe = {"name": "r", "rules": [{"layer": "*", "float": True}]}
    with pytest.raises(ValueError, match=r"\n  [^:\n]+ \([A-Za-z0-9]+\): .* runs integers only"):
        kquant.quantize(model, recipe, target="tflm")
    assert len(contract.EXAMPLES) > len(random_models.usable()) > 100

"""Scale, mean and deviation of raw values: numbers, or refused by their name."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from kquant.tflite.raw_values import Normalization, normalization_of

TAKES = keras.Input((4, 2), name="image")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scale": "1/255"}, r"scale must be a number, like 1 / 255\. Received: '1/255'"),
        ({"scale": "0.5"}, "scale must be a number.*'0.5'"),
        ({"scale": [0.5, 0.5]}, "scale is one number, for all channels"),
        ({"mean": "0.5"}, "mean must be a number, or one for each channel"),
        ({"mean": [0.1, None, {}]}, "mean must be a number"),
        ({"std": [[1.0], [1.0, 2.0]]}, "std must be a number"),
        ({"std": [1.0, 2.0, 3.0]}, "std has 3 numbers; the first input, image, has 2 channels"),
    ],
)
def test_what_is_no_number_is_refused_by_its_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^bundle: {said}"):
        normalization_of("bundle", TAKES, *(given.get(name) for name in ("scale", "mean", "std")))


@pytest.mark.parametrize("half", [0.5, np.float32(0.5), np.array(0.5)])
def test_numbers_of_any_kind_are_taken(half: Any) -> None:
    made = normalization_of("bundle", TAKES, half, None, (half, 2))
    assert made == Normalization(0.5, (0.0, 0.0), (0.5, 2.0))

"""Verbs that wrap what layers compute leave behind what was there, whatever order threads end in."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.graph.wrapped_calls import wrapped_calls

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")


def doubling(layer, call):
    return lambda x: 2.0 * call(x)


def adding(layer, call):
    return lambda x: call(x) + 1.0


def test_runs_end_in_any_order_and_what_was_there_comes_back() -> None:
    layer = layers.Rescaling(1.0)
    own = layer.call
    for before in (False, True):
        if before:
            object.__setattr__(layer, "call", own)
        runs = [wrapped_calls([layer], wrap) for wrap in (doubling, adding, doubling)]
        for run in runs:
            run.__enter__()
        assert float(layer.call(3.0)) == 7.0  # each once
        runs[0].__exit__(None, None, None)
        assert float(layer.call(3.0)) == 8.0  # in the order of those that are left
        runs[1].__exit__(None, None, None)
        assert float(layer.call(3.0)) == 6.0
        runs[2].__exit__(None, None, None)
        assert vars(layer).get("call") is (own if before else None)


@pytest.mark.filterwarnings("ignore:calibrate. ")
def test_a_call_of_the_users_is_there_after_calibrate() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3), layers.Softmax(name="classes")])
    q = kquant.quantize(model)
    softmax = q.get_layer("classes")
    call, seen = softmax.call, []

    def own(x, *args, **kwargs):
        seen.append(x.shape)
        return call(x, *args, **kwargs)

    object.__setattr__(softmax, "call", own)
    kquant.calibrate(q, X, verbose=False)
    assert seen and vars(softmax)["call"] is own
    kquant.distill(q, model, features={"classes": "classes"})
    assert vars(softmax)["call"] is own

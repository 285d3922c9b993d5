"""What every verb of a float model says of the model that it is given."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kquant


class OwnSteps(keras.Model):
    """A model that trains in its own way."""

    def train_step(self, data: Any) -> Any:
        return super().train_step(data)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 2.0 * super().compute_loss(*args, **kwargs)


VERBS: dict[str, Callable[[keras.Model], keras.Model]] = {
    "quantize": kquant.quantize,
    "prune": lambda model: kquant.prune(model, 0.5),
    "cluster": lambda model: kquant.cluster(model, 3),
    "prune_channels": lambda model: kquant.prune_channels(model, macs=0.9, minimum=1, verbose=False),
    "factorize": lambda model: kquant.factorize(model, macs=0.9, verbose=False),
}


def hidden() -> keras.Model:
    inner = layers.Dense(16, activation="relu", name="inner")
    return keras.Sequential([keras.Input((16,)), inner, layers.Dense(4, name="head")], name="net")


@pytest.mark.parametrize("verb", VERBS)
def test_lost_steps_of_the_users_class_are_named(verb: str) -> None:
    model = hidden()
    own = OwnSteps(model.inputs, model.outputs)
    message = rf"^{verb}: OwnSteps has train_step, compute_loss of its own.*Own\(new"
    with pytest.warns(UserWarning, match=message) as said:
        new = VERBS[verb](own)
    assert [w.filename for w in said] == [__file__]  # where the user called
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        around = OwnSteps(new.inputs, new.outputs)
        VERBS[verb](model)
        kquant.distill(around, model, outputs="logits")
    before = new.get_weights()
    losses = []
    for trained in (new, around):
        trained.compile(keras.optimizers.SGD(1e-6), "mse")
        losses.append(float(trained.train_on_batch(np.ones((4, 16)), np.full((4, 4), 99.0))))
    assert losses[1] == pytest.approx(2.0 * losses[0], rel=0.05)
    assert any(not np.array_equal(a, b) for a, b in zip(before, new.get_weights(), strict=True))


@pytest.mark.parametrize("verb", [*VERBS, "scan_sparsity"])
def test_weights_that_are_no_numbers_are_named(verb: str) -> None:
    model = hidden()
    values = model.get_layer("inner").kernel.numpy()
    values[3, 2] = np.nan
    model.get_layer("inner").kernel.assign(values)
    verbs = VERBS | {"scan_sparsity": lambda model: kquant.scan_sparsity(model, np.ones((4, 16)), verbose=False)}
    with pytest.raises(ValueError, match="^net: variable 'net/inner/kernel' holds NaN or Inf; restore a good"):
        verbs[verb](model)

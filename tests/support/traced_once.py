"""A step of training that is traced once: where the first step makes the optimizer's variables, Keras traces it again.

`keras.Model.make_train_function = traced_once.make_train_function`
"""

from __future__ import annotations

import keras
import tensorflow as tf

_keras_own = keras.Model.make_train_function


def make_train_function(model: keras.Model, force: bool = False) -> None:
    """Keras' own, with the optimizer's variables made before."""
    optimizer, variables = getattr(model, "optimizer", None), model.trainable_variables
    if optimizer is not None and variables and not optimizer.built and not tf.distribute.has_strategy():
        optimizer.build(variables)
    _keras_own(model, force)

"""Layers that do nothing at inference: regularizing ones stay for training and are not written, the others leave.
`Masking` writes 0 where its value is another one; recurrent layers and means leave out what it marks (recurrent.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.graph.step_mask import StepMask
from kquant.layers.training_only import Conjugated
from kquant.ops.condition import is_condition
from kquant.ops.function import function
from kquant.ops.position import holds_positions
from kquant.ops.real_steps import RealSteps
from kquant.ops.rule import Call, Make, Rule, computed, example

layers = keras.layers

# Each value times a random factor.
MULTIPLIES = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
)
# What stays in the quantized model and acts in training only; `prepare.unblock` moves it out of the way of fusions.
TRAINING_ONLY = (*MULTIPLIES, layers.AlphaDropout, layers.GaussianNoise, Conjugated)


# Augmentation: images come out of inference as they went in.
AUGMENTATION = (
    layers.AugMix,
    layers.CutMix,
    layers.MaxNumBoundingBoxes,
    layers.MixUp,
    layers.RandAugment,
    layers.RandomBrightness,
    layers.RandomColorDegeneration,
    layers.RandomColorJitter,
    layers.RandomContrast,
    layers.RandomElasticTransform,
    layers.RandomErasing,
    layers.RandomFlip,
    layers.RandomGaussianBlur,
    layers.RandomGrayscale,
    layers.RandomHue,
    layers.RandomInvert,
    layers.RandomPerspective,
    layers.RandomPosterization,
    layers.RandomRotation,
    layers.RandomSaturation,
    layers.RandomSharpness,
    layers.RandomShear,
    layers.RandomTranslation,
    layers.RandomZoom,
    layers.Solarization,
)


# What each of these says of itself where it moves nothing, and repeats, adds and leaves out nothing.
_IDLE: dict[tuple[type, ...], Callable[[Any], bool]] = {
    (layers.Reshape, layers.Flatten): lambda op: True,
    (layers.Permute,): lambda op: list(op.dims) == sorted(op.dims),
    (layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D): lambda op: bool(np.all(np.equal(op.size, 1))),
    (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D): lambda op: not np.any(op.padding),
    (layers.Cropping1D, layers.Cropping2D, layers.Cropping3D): lambda op: not np.any(op.cropping),
    (layers.MaxPooling1D, layers.MaxPooling2D, layers.AveragePooling1D, layers.AveragePooling2D): lambda op: (
        set(op.pool_size) | set(op.strides) == {1}
    ),
}


def is_idle(op: Any, x: Any) -> bool:
    """True for a layer that moves values, and here gives x as it came: it need not stand in the way of anything.

    Args:
        op: Keras layer or operation.
        x: what it is called with.

    Example:
        >>> x = keras.KerasTensor((None, 4, 3))
        >>> is_idle(keras.layers.Reshape((4, 3)), x), is_idle(keras.layers.Reshape((3, 4)), x)
        (True, False)
    """
    # The very class: what a user derived from it may do more.
    idle = next((idle for classes, idle in _IDLE.items() if type(op) in classes), None)
    if idle is None or not isinstance(x, keras.KerasTensor) or not idle(op):
        return False
    return tuple(op.compute_output_shape(x.shape)) == tuple(x.shape)


def _masking(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    """What equals `mask_value` becomes 0; layers that read the mask are given it."""
    # What is 0 already stays 0.
    if op.mask_value == 0:
        return x
    if len(x.shape) != 3:
        raise ValueError(
            f"{op.name} (Masking): expected [samples, steps, features] where mask_value={op.mask_value} turns steps "
            f"into 0. Received: {tuple(x.shape)}. Write zeros in the application and take mask_value=0."
        )
    return make("kept", lambda: RealSteps("kept", value=op.mask_value, name=f"{op.name}_kept"))([x, x])


def _pass(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    return x


def _same(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    """The same numbers; a conversion to whole numbers would cut them, one to conditions tells them from 0."""
    dtype = str(getattr(op, "dtype", None) or "float")
    if dtype == "bool" and not is_condition(x):
        return _not_zero(op, make, x)
    if "int" in dtype and not _is_whole(x):
        raise ValueError(
            f"{op.name} ({type(op).__name__}): it cuts numbers off to {dtype}; use keras.ops.floor or trunc, which "
            "have an integer form, or do it in the application. Where they are indices, give the model an input of "
            "their own for them, keras.Input(..., dtype='int32'), which needs no cast."
        )
    return x


def _not_zero(op: Any, make: Make, x: Any) -> Any:
    if "int" in str(x.dtype):  # indices, or a mask: which of them are not padding
        return make("real", lambda: StepMask(features=False, name=op.name))(x)
    return function(make, "not_equal", x, op.name)


def _is_whole(x: Any) -> bool:
    return any(kind in str(x.dtype) for kind in ("int", "bool")) or holds_positions(x) or is_condition(x)


def _lower(program: Program, call: Call) -> None:
    """A RESHAPE to the same shape, which tidying removes."""
    program.reshape(call.inputs[0], call.output.shape, call.output)


def _doubled(x: Any) -> Any:
    y: Any = keras.ops.cast(keras.ops.stop_gradient(x), "float32")
    return y * 2.0


RULES = (
    Rule(
        layers=(layers.ActivityRegularization, layers.Identity),
        expand=_pass,
        examples=(example(layers.Identity, lambda: layers.Dense(3), shape=(4,)),),
    ),
    Rule(
        layers=AUGMENTATION,
        expand=_pass,
        examples=(
            example(
                lambda: layers.RandomFlip(),
                lambda: layers.RandomBrightness(0.2),
                lambda: layers.Solarization(),
                lambda: layers.Conv2D(2, 3),
                shape=(5, 5, 3),
            ),
        ),
    ),
    Rule(
        layers=(layers.Masking,),
        expand=_masking,
        examples=(
            example(layers.Masking, lambda: layers.Dense(3), shape=(4, 3)),
            example(lambda: layers.Masking(-0.5), lambda: layers.Dense(3), shape=(4, 3)),
        ),
    ),
    Rule(
        operations=("Cast", "StopGradient", "ConvertToTensor", "Copy"),
        expand=_same,
        examples=(computed(_doubled, (4,)),),
    ),
    Rule(
        layers=TRAINING_ONLY,
        operators=(),
        output="same",
        lower=_lower,
        examples=(
            example(
                lambda: layers.Dropout(0.5), lambda: layers.Dense(3), lambda: layers.GaussianNoise(0.1), shape=(4,)
            ),
            example(lambda: layers.SpatialDropout1D(0.5), layers.Identity, lambda: layers.Dense(3), shape=(4, 5)),
            example(
                lambda: layers.Conv2D(4, 3),
                lambda: layers.GaussianNoise(0.1),
                layers.BatchNormalization,
                lambda: layers.Dropout(0.5),
                layers.ReLU,
                shape=(6, 6, 2),
            ),
        ),
    ),
)

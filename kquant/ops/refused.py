"""What has no integer form, and what to do instead: class name -> remedy, which `quantize` and `check` say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras

from kquant.ops.activation import name_of
from kquant.ops.samples import ONE, REDUCED, why_mixed
from kquant.targets import Target

PREPROCESS = "it computes with strings, integers or statistics of the input; keep it in the application's preprocessing"
FOREIGN = "it runs {}, which kquant cannot look into; rebuild it with Keras layers and copy the weights"

LAYERS: dict[str, str] = {
    "AutoContrast": "it stretches each image by its own extremes; " + PREPROCESS.split("; ")[1],
    "ContrastLimitedAdaptiveHistogramEqualization": "it counts pixels; " + PREPROCESS.split("; ")[1],
    **dict.fromkeys(
        ("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"),
        "its state is an image, which no fused kernel keeps; put a TimeDistributed convolution before an LSTM",
    ),
    "Discretization": PREPROCESS + ", and feed its bins to an integer input",
    "Equalization": "it counts the pixels of each image; " + PREPROCESS.split("; ")[1],
    "FlaxLayer": FOREIGN.format("JAX"),
    "HashedCrossing": PREPROCESS,
    "Hashing": PREPROCESS,
    "IntegerLookup": PREPROCESS + ", and feed its indices to an integer input",
    "JaxLayer": FOREIGN.format("JAX"),
    "RandomCrop": "its output has another shape in inference than in training; use CenterCrop in the model",
    "StringLookup": PREPROCESS + ", and feed its indices to an integer input",
    "TFSMLayer": FOREIGN.format("a SavedModel"),
    "TextVectorization": PREPROCESS + ", and feed its tokens to an integer input",
    "TorchModuleWrapper": FOREIGN.format("PyTorch"),
}

TRANSFORM = (
    "no int8 kernel transforms; layers.STFTSpectrogram in its place, or layers.MelSpectrogram for bands, is written as "
    "a convolution"
)
SORT = "no int8 kernel sorts; end the model before it and do it in the application"
RANK = (
    SORT + ". Boxes of a detector, from its raw outputs, are what kquant.Detection describes and kquant.detect chooses"
)
BEST = (
    "kquant does not write it, though LiteRT has an operator for int8 (TOPK_V2); end the model before it and take the "
    "largest in the application" + RANK.removeprefix(SORT)
)
RUNNING = "no int8 kernel adds along an axis step by step; write it as a Dense layer with a triangular kernel"
CONDITION = "no int8 kernel asks for a condition of many values; write ops.max{} over the axes of one sample"
LOOP = "the data say how often it runs, and a file has one sequence of operators; write a fixed number of steps"
EACH = "it calls a function for each row; write the function on all rows at once, or on x[:, i] in a Python loop"
OPERATIONS: dict[str, str] = {
    "All": CONDITION.format("(ops.cast(c, 'float32')) with min for max"),
    "Any": CONDITION.format("(ops.cast(c, 'float32'))"),
    "Argsort": RANK,
    "AssociativeScan": EACH,
    "Cond": "it chooses by a value what to compute; compute both and choose with ops.where(condition, a, b)",
    "CropImages": "kquant has no rule for it; take layers.Cropping2D or a slice, x[:, 4:24, 4:24, :]",
    "Diagonal": "no int8 kernel picks a diagonal; multiply with ops.eye(n) and sum over an axis of one sample",
    "ForiLoop": LOOP + " as a Python loop",
    "Inner": f"it multiplies every sample with every other; {ONE}. Write ops.sum(x * y, axis=-1)",
    "Map": EACH,
    "Outer": f"it lays all samples in one row; {ONE}. Write x[:, :, None] * y[:, None, :]",
    "PadImages": "kquant has no rule for it; take layers.ZeroPadding2D",
    "RFFT": TRANSFORM,
    "Ravel": f"it lays all samples in one row; {ONE}. Take layers.Flatten()",
    "STFT": TRANSFORM,
    "Scan": EACH,
    "Scatter": "no int8 kernel writes rows by position; use ops.where with a constant mask, or concatenate the parts",
    "ScatterUpdate": "no int8 kernel writes into a tensor; use ops.where with a constant mask, or concatenate parts",
    "SliceUpdate": "no int8 kernel writes into a tensor; concatenate the parts that stay and the new one",
    "Trace": "no int8 kernel picks a diagonal; multiply with ops.eye(n) and sum over the axes of one sample",
    "Vdot": f"it adds up the products of all samples; {ONE}. Write ops.sum(x * y, axis=-1)",
    "VectorizedMap": EACH,
    "WhileLoop": LOOP + " as a Python loop",
    "Cumprod": "no int8 kernel multiplies along an axis; do it in the application",
    "Cumsum": RUNNING,
    "Median": SORT,
    "Prod": "a product along an axis leaves every int8 range; add logarithms instead, or multiply parts one by one",
    "Quantile": SORT,
    "Sort": RANK,
    "Sparsemax": "it sorts, and no int8 kernel does; use softmax",
    "TopK": BEST,
}


@dataclass(frozen=True)
class Problem:
    """A layer that cannot be integer on the target, and the remedy."""

    layer: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.layer} ({self.kind}): {self.reason}"


def describe(problems: Iterable[Problem], target: Target) -> str:
    """One message for all problems."""
    lines = "\n".join(f"  {p}" for p in problems)
    return f"These layers cannot run in integers on {target.title}:\n{lines}"


def remedy(op: Any) -> str | None:
    """Why this layer or operation is refused whatever its settings, and the way out; None where it is not.

    Example:
        >>> remedy(keras.layers.Hashing(4)).split("; ")[1]
        "keep it in the application's preprocessing"
    """
    if isinstance(op, keras.layers.Activation):
        return _activation(op)
    if isinstance(op, keras.layers.Layer):
        # What a user derived from one of these is refused with it; a layer of the same name from elsewhere is not
        # meant.
        return next((LAYERS[c.__name__] for c in type(op).__mro__ if _is_kerass(c) and c.__name__ in LAYERS), None)
    kind = type(op).__name__
    # Over the samples there is a better reason than a missing kernel: nothing could compute that.
    if kind in OPERATIONS and kind in REDUCED and getattr(op, "axis", 1) in (0, None, (0,), [0]):
        return why_mixed(kind, everything=op.axis is None)
    return OPERATIONS.get(kind)


def _activation(op: Any) -> str | None:
    """Of an Activation layer, by its function."""
    name = name_of(op.activation) or ""
    # `keras.activations.log_softmax` is `LogSoftmax` among the operations.
    return OPERATIONS.get("".join(word.capitalize() for word in name.split("_")))


def _is_kerass(cls: type) -> bool:
    return cls.__module__.startswith("keras.")


# Layers without a rule whose `call` is made of operations that have one; a test unfolds each.
UNFOLDED: dict[str, str] = {
    "Lambda": "its function, where that is written with keras.ops",
    "Pipeline": "its layers",
    "GRUCell": "one step of operations",
    "LSTMCell": "one step of operations",
    "SimpleRNNCell": "one step of operations",
    "StackedRNNCells": "one step of each cell",
}
# Not layers of a graph: what layers are derived from, and where a model begins.
ABSTRACT = ("InputLayer", "Layer", "Wrapper")

"""The loss between a teacher's and a student's outputs, and what these outputs are: logits, probabilities, numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from kquant.graph.graph import trace
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.ops.activation import name_of

KINDS = ("logits", "probabilities", "binary-logits", "binary-probabilities", "regression")
SMALLEST = 1e-7  # of a probability whose logarithm is taken, as in Keras' losses
SOFTMAX_LOSSES = ("categoricalcrossentropy", "sparsecategoricalcrossentropy", "categoricalfocalcrossentropy")
SOFTMAX_LOSSES += ("kldivergence",)
SIGMOID_LOSSES = ("binarycrossentropy", "binaryfocalcrossentropy")
PASSIVE = (keras.layers.Flatten, keras.layers.Reshape, keras.layers.Dropout, keras.layers.Identity)


@keras.saving.register_keras_serializable(package="kquant")
class SoftTargets(keras.losses.Loss):
    """`T^2 * KL(softmax(z_t / T) || softmax(z_s / T))` for each sample; with sigmoids the mean of the binary ones.

    The factor keeps the gradient's size where T changes. Regression has no temperature: the mean square difference.

    Args:
        student: what `y_pred` is, one of `KINDS`.
        teacher: what `y_true` is.
        temperature: T.

    Source: Hinton et al., arXiv:1503.02531, section 2.
    """

    def __init__(self, student: str, teacher: str, temperature: float = 4.0, name: str = "soft_targets", **kwargs: Any):
        super().__init__(name=name, **{"dtype": "float32", **kwargs})
        self.student, self.teacher, self.temperature = student, teacher, float(temperature)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Of float32[..., classes] both: float32[...]."""
        if self.student == "regression":
            return tf.reduce_mean(tf.square(y_true - y_pred), axis=-1)
        # as logits, since a temperature divides those: probabilities know it as a power
        wanted = _logits(y_true, self.teacher) / self.temperature
        given = _logits(y_pred, self.student) / self.temperature
        if self.student.startswith("binary"):
            # both classes of each sigmoid, yes and no: 1 - sigmoid(z) is sigmoid(-z), exact where z is large
            parts = [
                tf.sigmoid(sign * wanted) * (tf.math.log_sigmoid(sign * wanted) - tf.math.log_sigmoid(sign * given))
                for sign in (1.0, -1.0)
            ]
            return self.temperature**2 * tf.reduce_mean(parts[0] + parts[1], axis=-1)
        # logarithms from logits: log(softmax) would meet the logarithm of 0
        logs = tf.nn.log_softmax(wanted)
        return self.temperature**2 * tf.reduce_sum(tf.exp(logs) * (logs - tf.nn.log_softmax(given)), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        own = {"student": self.student, "teacher": self.teacher, "temperature": self.temperature}
        return {**super().get_config(), **own}


def _logits(y: tf.Tensor, kind: str) -> tf.Tensor:
    """Logits, up to a constant of each sample for softmax: `softmax(log p / T)` is `p^(1/T)`, normalized."""
    if kind == "probabilities":
        return tf.math.log(tf.maximum(y, SMALLEST))
    if kind == "binary-probabilities":
        y = tf.clip_by_value(y, SMALLEST, 1.0 - SMALLEST)
        return tf.math.log(y) - tf.math.log1p(-y)
    return y


def kinds_given(outputs: Any, count: int) -> list[str]:
    """What a user says the outputs are: one word for all of them, or one each.

    Raises:
        ValueError: another word, or another number of them.
    """
    kinds = keras.tree.flatten(outputs)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"distill: outputs must be of {', '.join(KINDS)}. Received: {unknown[0]!r}.")
    if len(kinds) not in (1, count):
        raise ValueError(f"distill: outputs says {len(kinds)} kinds, the student has {count} outputs.")
    return kinds * count if len(kinds) == 1 else kinds


def kinds_of_loss(loss: Any, y_pred: Any, names: Sequence[str] | None) -> list[str]:
    """What a loss takes its outputs for.

    Args:
        loss: as given to `compile`.
        y_pred: the outputs, in the model's structure.
        names: of the outputs, where a dict of losses goes by them.

    Raises:
        ValueError: an output without a loss of Keras, which tells nothing.
    """
    flat = keras.tree.flatten(y_pred)
    if isinstance(loss, Mapping):
        keys = keras.tree.flatten({key: key for key in y_pred}) if isinstance(y_pred, Mapping) else names or ()
        losses = [loss.get(key) for key in keys]
    else:
        losses = list(loss) if isinstance(loss, list | tuple) else [loss] * len(flat)
    if len(losses) != len(flat):
        raise ValueError(f"distill: {len(losses)} losses for {len(flat)} outputs.")
    return [_kind_of_loss(each) for each in losses]


def _kind_of_loss(given: Any) -> str:
    loss = keras.losses.get(given) if isinstance(given, str | dict) else given
    name = getattr(loss, "__name__", type(loss).__name__).replace("_", "").lower()
    module = getattr(loss, "__module__", "") or ""
    # a loss of the user's own may be called anything, and take anything
    if loss is None or not (module.startswith("keras.") or type(loss).__module__.startswith("keras.")):
        raise ValueError(
            f"distill: the loss {given!r} does not tell what the student's output is. Say so: "
            f"kquant.distill(..., outputs=...), one of {', '.join(KINDS)}."
        )
    form = "logits" if getattr(loss, "from_logits", False) else "probabilities"
    if name in SOFTMAX_LOSSES:
        return form
    return f"binary-{form}" if name in SIGMOID_LOSSES else "regression"


def kinds_of_teacher(kinds: Sequence[str], ends: Sequence[str | None]) -> list[str]:
    """What the teacher's outputs are: of the student's kind, as probabilities or logits as its last layer makes them.

    Args:
        kinds: of the student's outputs.
        ends: what `last_activations` says of the teacher.
    """
    theirs = []
    for kind, end in zip(kinds, ends, strict=True):
        form = "probabilities" if end in ("softmax", "sigmoid") else "logits"
        same = kind == "regression" or end is None
        theirs.append(kind if same else f"binary-{form}" if kind.startswith("binary") else form)
    return theirs


def last_activations(model: keras.Model, count: int) -> list[str | None]:
    """Name of the activation behind each output ("linear": none); None where only the model knows.

    Args:
        model: any Keras model.
        count: number of its outputs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of variables that would not train: nothing is trained here
        try:
            graph = trace(model, lambda op: isinstance(op, keras.layers.Layer) and not isinstance(op, keras.Model))
        except ValueError:  # its `call` is not to be followed: it is not needed either
            return [None] * count
    made_by = graph.producers
    ends = []
    for t in graph.output_tensors:
        node = made_by.get(id(t))
        # back through what leaves the numbers as they are
        while node is not None and (isinstance(node.op, (FakeQuant, *PASSIVE)) or _is_linear(node.op)):
            node = made_by.get(id(node.inputs[0]))
        ends.append(None if node is None else _activation(node.op))
    return ends


def _is_linear(op: Any) -> bool:
    return isinstance(op, keras.layers.Activation) and op.activation is keras.activations.linear


def _activation(op: Any) -> str | None:
    if isinstance(op, Compressed):
        return "linear"  # its activation stands alone
    if not type(op).__module__.startswith("keras."):
        return None
    if hasattr(op, "activation"):
        return name_of(op.activation)
    return {"Softmax": "softmax", "Sigmoid": "sigmoid"}.get(type(op).__name__, "linear")

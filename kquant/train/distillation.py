"""Knowledge distillation: a student learns from a teacher's outputs, and from the layers inside it.

    loss = (1 - alpha) * hard + alpha * T^2 * KL(teacher at T || student at T) + feature_weight * MSE(features)

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2; features: Romero et
al., "FitNets", arXiv:1412.6550, section 2.2.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from kquant.graph.output_names import NamedOutputs
from kquant.graph.watched import state_unmoved
from kquant.train.features import Seen, adapters_of, pairs_of, traced, watching
from kquant.train.soft_targets import (
    SoftTargets,
    kinds_given,
    kinds_of_loss,
    kinds_of_teacher,
    last_activations,
)


def distill(
    student: keras.Model,
    teacher: keras.Model,
    *,
    temperature: float = 4.0,
    alpha: float = 0.5,
    features: Sequence[str] | Mapping[str, str] = (),
    feature_weight: float = 1.0,
    outputs: Any = None,
) -> Distiller:
    """A Keras trainer that trains `student`, in place, towards `teacher`.

    In place: `fit` of what is returned trains `student`; `teacher` stays as it was.

    `loss = (1 - alpha) * hard + alpha * T^2 * KL(softmax(z_t / T) || softmax(z_s / T)) + feature_weight * MSE`, where
    `hard` is the loss it is compiled with and MSE the mean square distance of the features.

    Args:
        student: a built Keras model, compressed or not: what `kquant.quantize` returned trains as ever.
        teacher: a built Keras model with the same inputs and outputs; it runs at inference and does not change.
        temperature: T above: higher ones show more of what the teacher thinks of the wrong classes.
        alpha: share of the soft loss, 0 to 1. At 1, labels are not needed: `fit(x)`.
        features: layers whose outputs the student is to match, names that both have or {student's: teacher's}; where
            channels differ, a 1x1 convolution (FitNets' regressor) brings the student's to the teacher's.
        feature_weight: of their loss.
        outputs: what the outputs are: "logits", "probabilities" (softmax), "binary-logits", "binary-probabilities"
            (sigmoid) or "regression" (the soft loss is the mean square error), or a list or dict of these for
            several outputs. None: the loss given to `compile` tells (a cross-entropy says what it takes; any
            other loss of Keras means regression). A teacher whose last layer is visible may have logits where the
            student has probabilities, and the other way round.

    Returns:
        A `Distiller`: compile it with the hard loss, fit, evaluate, save. `predict` and metrics are the student's.

    Raises:
        ValueError: models that do not fit each other, share weights or are not built; names, shapes or numbers that
            cannot be.

    Example:
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="wide"), keras.layers.Dense(3)])
        >>> student = kquant.quantize(keras.models.clone_model(teacher))
        >>> trainer = kquant.distill(student, teacher, features=["wide"], outputs="logits", alpha=1.0)
        >>> trainer.compile("adam")
        >>> history = trainer.fit(np.ones((32, 4), "float32"), verbose=0)
        >>> sorted(history.history)
        ['feature_loss', 'loss', 'soft_loss']
    """
    return Distiller(
        student,
        teacher,
        temperature=temperature,
        alpha=alpha,
        features=features,
        feature_weight=feature_weight,
        outputs=outputs,
    )


@keras.saving.register_keras_serializable(package="kquant")
class Distiller(keras.Model):
    """Trains `student` in place; `teacher` runs at inference, and none of its variables train. See `distill`."""

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        *,
        temperature: float = 4.0,
        alpha: float = 0.5,
        features: Sequence[str] | Mapping[str, str] = (),
        feature_weight: float = 1.0,
        outputs: Any = None,
        **kwargs: Any,
    ) -> None:
        _check(student, teacher, temperature, alpha, feature_weight)
        # The student's policy, for Keras scales the loss under mixed_float16; inputs reach both models as they are.
        super().__init__(**{"dtype": student.dtype_policy, "autocast": False, **kwargs})
        self.student, self.teacher = student, teacher
        self.temperature, self.alpha, self.feature_weight = float(temperature), float(alpha), float(feature_weight)
        self.features, self.outputs_are = features, outputs
        count = len(_output_shapes(student))
        self._given = None if outputs is None else kinds_given(outputs, count)
        self._ends = last_activations(teacher, count)
        self.adapters = adapters_of(student, teacher, self.pairs)
        self._local = threading.local()  # replicas are threads
        names = ("hard", "soft", "feature") if self.pairs else ("hard", "soft")
        self._trackers = {name: keras.metrics.Mean(name=f"{name}_loss") for name in names}
        self.built = True

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Keras', behind a word on steps that the student's recipe has and nobody ran."""
        if isinstance(self.student, NamedOutputs) and self.student.before_fit is not None:
            self.student.before_fit()
        return super().fit(*args, **kwargs)

    @property
    def pairs(self) -> list[tuple[keras.layers.Layer, keras.layers.Layer]]:
        """The student's and the teacher's layers whose outputs are to match."""
        return pairs_of(self.student, self.teacher, self.features)

    @property
    def output_names(self) -> list[str] | None:
        """Of the student: a dict of losses may go by them."""
        return getattr(self.student, "output_names", None)

    def build(self, *_: Any, **__: Any) -> None:
        """Nothing to do: both models are built."""

    def call(self, x: Any, training: bool = False) -> Any:
        """The student's outputs."""
        # on the way: for features the student need not run twice in a step
        with watching([ours for ours, _ in self.pairs]) as seen:
            y = self.student(x, training=training)
        self._local.seen = seen
        return y

    # Keras would list the variables of both models, as it tracks what an attribute holds: the teacher's would train.
    @property
    def trainable_variables(self) -> list[Any]:
        """Those of the student and of the adapters."""
        return [v for part in (self.student, *self.adapters) for v in part.trainable_variables]

    @property
    def trainable_weights(self) -> list[Any]:
        """Those of the student and of the adapters."""
        return self.trainable_variables

    @property
    def non_trainable_variables(self) -> list[Any]:
        """All others."""
        training = {id(v) for v in self.trainable_variables}
        return [v for v in self.variables if id(v) not in training]

    @property
    def non_trainable_weights(self) -> list[Any]:
        """All others, without the states of metrics and seeds."""
        training = {id(v) for v in self.trainable_variables}
        return [v for v in self.weights if id(v) not in training]

    @property
    def losses(self) -> list[Any]:
        """What the student's layers add to the loss; the teacher's regularizers are none of its business."""
        return self.student.losses

    @property
    def metrics(self) -> list[Any]:
        """Keras' own, and the parts of the loss that there are."""
        absent = self._trackers["hard"] if self.loss is None else None
        return [metric for metric in super().metrics if metric is not absent]

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The sum of the three parts, and what the student's layers add.

        Args:
            x: inputs of both models.
            y: labels, or None.
            y_pred: what `call` returned.
            sample_weight: of the hard and the soft loss.
            training: as the student ran.

        Raises:
            ValueError: labels or a loss are missing where `alpha` counts the hard loss.
        """
        if self.alpha < 1.0 and (y is None or self.loss is None):
            raise ValueError(
                f"{self.name}: alpha = {self.alpha:g} counts the hard loss, but there are no labels or no loss. Fit "
                "with labels and compile with a loss, or distill with alpha=1."
            )
        pairs = self.pairs
        # no gradient, no dropout, no counter: the teacher only answers
        with watching([theirs for _, theirs in pairs]) as shown, state_unmoved(self.teacher):
            wanted = keras.tree.map_structure(tf.stop_gradient, self.teacher(x, training=False))
        parts = {"soft": self._soft_loss(wanted, y_pred, sample_weight)}
        if y is not None and self.loss is not None:
            parts["hard"] = self._compile_loss(y, y_pred, sample_weight)
        if pairs:
            parts["feature"] = self._feature_loss(self._seen(x, training), shown)
        share = {"soft": self.alpha, "hard": 1.0 - self.alpha, "feature": self.feature_weight}
        replicas = float(tf.distribute.get_strategy().num_replicas_in_sync)  # Keras has divided by it
        for name, value in parts.items():
            self._trackers[name].update_state(value * replicas)
        terms = [tf.cast(value, tf.float32) * share[name] for name, value in parts.items()]
        added: list[Any] = [self._aggregate_additional_loss(value) for value in self.losses]
        return tf.add_n(terms + [tf.cast(value, tf.float32) for value in added])

    def _soft_loss(self, wanted: Any, y_pred: Any, sample_weight: Any) -> tf.Tensor:
        kinds = self._given or kinds_of_loss(self.loss, y_pred, self.output_names)
        outputs, wanted = keras.tree.flatten(y_pred), keras.tree.flatten(wanted)
        weights = [None] if sample_weight is None else keras.tree.flatten(sample_weight)
        if len(weights) == 1:
            weights = weights * len(outputs)
        # one of Keras' losses for each output: it takes sample weights as they do
        losses: list[Any] = [
            SoftTargets(kind, theirs, self.temperature)(t, s, sample_weight=weight)
            for kind, theirs, t, s, weight in zip(
                kinds, kinds_of_teacher(kinds, self._ends), wanted, outputs, weights, strict=True
            )
        ]
        return tf.add_n(losses)

    def _seen(self, x: Any, training: bool) -> Seen:
        """The student's features of this step."""
        # taken once: what is left over of another step, or of a graph that was traced before, would be wrong here
        seen, self._local.seen = getattr(self._local, "seen", None), None
        if seen is None or not all(_is_here(t) for t in keras.tree.flatten(seen)):
            with watching([ours for ours, _ in self.pairs]) as seen:  # Keras asks for the loss alone, to see its shape
                self.student(x, training=training)
        return seen

    def _feature_loss(self, seen: Seen, shown: Seen) -> tf.Tensor:
        """Mean square distance of the student's features, as the adapters bring them, to the teacher's."""
        losses = []
        for (ours, theirs), adapter in zip(self.pairs, self.adapters, strict=True):
            for feature, wanted in zip(seen[id(ours)], shown[id(theirs)], strict=True):
                # in float32 also under mixed precision, where squares of float16 overflow from 256 on
                distance = keras.losses.MeanSquaredError(dtype="float32")
                losses.append(distance(tf.stop_gradient(wanted), adapter(tf.cast(feature, tf.float32))))
        return tf.add_n(losses)

    def get_config(self) -> dict[str, Any]:
        """All arguments; the models go along whole."""
        features = dict(self.features) if isinstance(self.features, Mapping) else list(self.features)
        outputs = None if self.outputs_are is None else list(self._given or ())
        models = {
            "student": keras.saving.serialize_keras_object(self.student),
            "teacher": keras.saving.serialize_keras_object(self.teacher),
        }
        numbers = {"temperature": self.temperature, "alpha": self.alpha, "feature_weight": self.feature_weight}
        return {"name": self.name, **models, **numbers, "features": features, "outputs": outputs}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Distiller:
        """A trainer with models of its own."""
        config = dict(config)
        for name in ("student", "teacher"):
            config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
        return cls(**config)


def _is_here(tensor: Any) -> bool:
    """False for a tensor of another graph than the one that is being traced."""
    return tf.executing_eagerly() or tensor.graph is tf.compat.v1.get_default_graph()


def _output_shapes(model: keras.Model) -> list[tuple[int | None, ...]]:
    known = getattr(model, "outputs", None)  # subclassed models have none
    return [tuple(t.shape) for t in known or keras.tree.flatten(traced(model))]


def _check(student: keras.Model, teacher: keras.Model, temperature: float, alpha: float, feature_weight: float) -> None:
    """Refuse what cannot be distilled."""
    for what, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, keras.Model) or not model.built:
            raise ValueError(f"distill: the {what} must be a built Keras model. Received: {model!r}.")
    if not temperature > 0.0:
        raise ValueError(f"distill: temperature must be above 0. Received: {temperature}.")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"distill: alpha must lie in 0 to 1. Received: {alpha}.")
    if feature_weight < 0.0:
        raise ValueError(f"distill: feature_weight must be 0 or more. Received: {feature_weight}.")
    shared = {id(v) for v in student.variables} & {id(v) for v in teacher.variables}
    if shared:
        raise ValueError(
            f"distill: student and teacher share {len(shared)} variables, so the teacher would change as the student "
            "trains. Take keras.models.clone_model(teacher), and set its weights."
        )
    ours, theirs = _output_shapes(student), _output_shapes(teacher)
    if [shape[1:] for shape in ours] != [shape[1:] for shape in theirs]:
        raise ValueError(f"distill: the student's outputs are {ours}, the teacher's {theirs}; they must be alike.")

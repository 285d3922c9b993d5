"""A Functional model names its outputs after its last layers; one that is made of it keeps the old names.

`compile(loss={"kind": ...})`, `metrics`, `loss_weights` and monitors ("val_kind_loss") go by them. Where the last layer
is another one now (a `FakeQuant`, an activation that stands alone), one of two things keeps them:

    NamedOutputs   a Functional model that remembers names: models that hold layers of kquant's in any case
    as_keras       the layers are named so that plain Keras finds the same names
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import keras
from keras import tree

from kquant.core.messages import did_you_mean, warn
from kquant.graph.defaults import own_defaults
from kquant.graph.held_constants import HeldConstants
from kquant.graph.keras_private import deep_graphs, maker
from kquant.graph.steps_kept import StepsKept


@keras.saving.register_keras_serializable(package="kquant")
class NamedOutputs(HeldConstants):
    """A Functional model whose outputs are called as they were in the model that it was made of.

    Attributes:
        kept: of each output, which of its steps losses and metrics count; None or missing where they count all, and
            where the layers hand on a mask.
        steps_left: steps of the recipe that were not run yet (`views/recipe_steps.py`); None where nobody knows.
        describe: prints the layers, `(model, line_length, print_fn)`; set by `views/layer_table.py`, which knows what
            layers of kquant's are.
        before_fit: looks at the model that is to be trained; set by `views/recipe_steps.py`, likewise.
    """

    describe: ClassVar[Callable[..., None] | None] = None
    before_fit: ClassVar[Callable[[Any], None] | None] = None
    kept: tuple[StepsKept | None, ...] = ()
    steps_left: tuple[str, ...] | None = None

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """The masks of outputs, which Keras puts on those that have none from their layers."""
        if not any(self.kept):
            return None
        by_name = isinstance(inputs, dict) and not isinstance(self.input, dict)  # as Keras takes them, too
        given = [inputs[t.name] for t in self.inputs] if by_name else tree.flatten(inputs)
        return [kept and kept.mask(given) for kept in self.kept]

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Keras', behind a look at what was to be done first."""
        if self.before_fit is not None:
            self.before_fit()
        return super().fit(*args, **kwargs)

    def summary(
        self,
        line_length: int | None = None,
        positions: Any = None,
        print_fn: Any = None,
        expand_nested: bool = False,
        show_trainable: bool = False,
        layer_range: Any = None,
    ) -> None:
        """As `kquant.summary`; with one of Keras' other arguments, Keras' own table of every layer that there is."""
        describe = self.describe
        if positions or expand_nested or show_trainable or layer_range or describe is None:
            super().summary(line_length, positions, print_fn, expand_nested, show_trainable, layer_range)
        else:
            describe(line_length=line_length, print_fn=print_fn)

    def get_config(self) -> dict[str, Any]:
        """That of the Functional model, the names, masks where there are some, and which steps were not run."""
        kept = {"kept": [k and asdict(k) for k in self.kept]} if any(self.kept) else {}
        left = {} if self.steps_left is None else {"steps_left": list(self.steps_left)}
        return {**super().get_config(), "output_names": list(self.output_names), **kept, **left}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> NamedOutputs:
        """The Functional model, names and masks put on."""
        rest = {key: value for key, value in config.items() if key not in ("output_names", "kept", "steps_left")}
        with deep_graphs():
            model = super().from_config(rest, custom_objects=custom_objects)
        if "output_names" in config:
            model.output_names = list(config["output_names"])
        model.kept = tuple(told and StepsKept(**told) for told in config.get("kept", ()))
        if "steps_left" in config:
            model.steps_left = tuple(config["steps_left"])
        return model


def output_names(model: keras.Model) -> tuple[str, ...] | None:
    """What a model calls its outputs, in the order of `tree.flatten`.

    Args:
        model: any Keras model.

    Returns:
        The names; of a subclassed model with a dict of outputs nobody but its `call` knows them: None.

    Example:
        >>> x = keras.Input((4,))
        >>> output_names(keras.Model(x, keras.layers.Dense(2, name="kind")(x)))
        ('kind',)
    """
    if isinstance(model, keras.Sequential) and model.layers:
        return (model.layers[-1].name,)
    names = getattr(model, "output_names", None)
    return tuple(names) if names else None


def functional(
    inputs: Any, outputs: Any, name: str, names: Sequence[str] | None, kept: tuple[StepsKept | None, ...] = ()
) -> keras.Model:
    """A Functional model with these names of its outputs, and these masks.

    Args:
        inputs: symbolic tensors in any structure.
        outputs: the same.
        name: of the model.
        names: of the flattened outputs; None leaves them to Keras.
        kept: masks of the flattened outputs that no layer hands on.

    Returns:
        Keras' own class where no layer is kquant's and the names are those that Keras finds; that has no masks.
    """
    with deep_graphs():
        if not _made_by_ours(outputs):
            # Made first, since only Keras knows which names it gives; most often they are right.
            model = keras.Model(inputs, outputs, name=name)
            right = names is None or list(names) == list(model.output_names)
            if right and not any(kept) and not _has_ours(model):
                return model
        named = NamedOutputs(inputs, outputs, name=name)
    if names is not None:
        named.output_names = list(names)
    named.kept = kept
    return named


def _has_ours(model: keras.Model) -> bool:
    return any(type(layer).__module__.startswith("kquant.") for layer in model.layers)


def _made_by_ours(outputs: Any) -> bool:
    """True where a layer of kquant's made an output: no other has to be looked at, which takes a model."""
    return any(type(maker(t)).__module__.startswith("kquant.") for t in tree.flatten(outputs))


def as_keras(model: keras.Model) -> keras.Model:
    """The same model in Keras' own class, the names of its outputs in its layers.

    A layer that was made of the one that has the name (`kind_softmax`, of `kind`) takes it over, and that one is called
    after its class (`kind_dense`); anything else gets an Identity of that name behind it.

    Args:
        model: of layers that may be renamed; what `rewrite` returned.

    Returns:
        Itself where the names are right already and layers are kquant's, or where no layer can have them. Masks of
        outputs stay where layers are kquant's.

    Example:
        >>> x = keras.Input((4,))
        >>> y = keras.layers.Softmax(name="kind_softmax")(keras.layers.Dense(2, name="kind")(x))
        >>> model = as_keras(functional(x, y, "model", ["kind"]))
        >>> [layer.name for layer in model.layers[1:]], list(model.output_names)
        (['kind_dense', 'kind'], ['kind'])
    """
    if not isinstance(model, NamedOutputs):
        return model
    ours = _has_ours(model)
    if any(model.kept) and not ours:
        warn(
            f"{model.name}: a model of Keras' own class does not put the masks of its outputs "
            f"({', '.join(n for n, k in zip(model.output_names, model.kept, strict=True) if k)}) on them: `fit` and "
            "`evaluate` count the steps that were masked. Give `sample_weight`, 0 at those steps."
        )
    # What plain Keras would call them, of the same layers.
    with deep_graphs():
        had, wanted = list(keras.Model(model.input, model.output).output_names), list(model.output_names)
    makers = {name: {h for h, w in zip(had, wanted, strict=True) if w == name} for name in wanted}
    if had == wanted and ours:  # it is of this class for its layers' sake
        return model
    # One name for two tensors, or that of an input: no layer can be called so, and the class that remembers names
    # stays.
    if any(len(made_by) > 1 for made_by in makers.values()) or {t.name for t in model.inputs} & set(wanted):
        return model
    by_name = {op.name: op for op in model.operations}
    renamed: dict[str, str] = {}
    ends: dict[tuple[int, str], Any] = {}
    for t, h, w in zip(model.outputs, had, wanted, strict=True):
        # One tensor may be several outputs, of one name or of several.
        if h == w or renamed.get(h) == w or (id(t), w) in ends:
            continue
        # The name is free from here on, whether a layer takes it over or an Identity.
        if w in by_name:
            _after_its_class(by_name[w], by_name)
        # A layer that makes two outputs of different names can have one of them only.
        alone = {other for name, other in zip(had, wanted, strict=True) if name == h} == {w}
        if h.startswith(f"{w}_") and alone:
            by_name[h].name = w
            renamed[h] = w
        else:
            ends[id(t), w] = keras.layers.Identity(name=w, dtype=t.dtype)(t)
    new = [ends.get((id(t), w), t) for t, w in zip(model.outputs, wanted, strict=True)]
    with own_defaults(model.layers), deep_graphs():
        outputs = tree.pack_sequence_as(model.output, new)
        if any(model.kept) and ours:
            return functional(model.input, outputs, model.name, wanted, model.kept)
        return keras.Model(model.input, outputs, name=model.name)


def _after_its_class(op: Any, taken: dict[str, Any]) -> None:
    """`kind` of class Dense becomes `kind_dense`."""
    name = fresh = f"{op.name}_{type(op).__name__.lower()}"
    number = 1
    while fresh in taken:
        fresh, number = f"{name}_{number}", number + 1
    taken[fresh] = taken.pop(op.name)
    op.name = fresh


def named_shapes(model: keras.Model) -> dict[str, tuple[Any, ...]]:
    """Names and shapes of the outputs, in the order in which `predict` gives them; a dict's keys are its names.

    Example:
        >>> x = keras.Input((4,))
        >>> named_shapes(keras.Model(x, {"kind": keras.layers.Dense(2)(x)}))
        {'kind': (None, 2)}
    """
    names = sorted(model.output) if isinstance(model.output, dict) else model.output_names
    return {name: t.shape for name, t in zip(names, keras.tree.flatten(model.output), strict=True)}


def output_number(key: str | int, names: Sequence[str], where: str) -> int:
    """Which output is meant.

    Args:
        key: its name or number.
        names: of the outputs.
        where: what to call the model in errors.

    Raises:
        ValueError: there is none of that name or number, with the nearest.

    Example:
        >>> output_number("boxes", ["scores", "boxes"], "net")
        1
    """
    if isinstance(key, int):
        if not 0 <= key < len(names):
            raise ValueError(f"{where}: no output {key}; it has {len(names)}: {', '.join(names)}.")
        return key
    if key not in names:
        raise ValueError(f"{where}: no output '{key}'.{did_you_mean(key, names)} Its outputs: {', '.join(names)}.")
    return list(names).index(key)

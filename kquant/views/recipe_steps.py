"""Which steps of its recipe a quantized model has not had yet, as it remembers itself, saved and loaded too.

    quantize  ->  ("equalize", "calibrate")  ->  each step that is run strikes its name out  ->  export, fit look here

`quantize` runs no step, since it has no data. A model that was copied into another one, or saved by an earlier kquant,
remembers nothing: nobody can tell then, and nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable

import keras

from kquant.core.messages import warn
from kquant.graph.keras_private import every_layer
from kquant.graph.output_names import NamedOutputs
from kquant.layers.provenance import provenance_of

RANGES = ("calibrate", "data-free")  # steps that set the range of every activation: one stands for the other


class StepsLeft(UserWarning):
    """Steps of the recipe were not run on a model that is trained or exported."""


def remember_steps(qmodel: keras.Model, names: Iterable[str]) -> None:
    """Note what is to be run, in order.

    Args:
        qmodel: that was just made; changed in place.
        names: of the steps.
    """
    qmodel.steps_left = tuple(names)


def step_done(qmodel: keras.Model, name: str) -> keras.Model:
    """Note that a step was run, with whatever options.

    Args:
        qmodel: that it was run on; changed in place.
        name: of the step.

    Returns:
        `qmodel`.
    """
    left: list[str] = list(getattr(qmodel, "steps_left", None) or ())
    meant = next((step for step in left if step == name or {step, name} <= set(RANGES)), None)
    if meant is not None:
        left.remove(meant)
        qmodel.steps_left = tuple(left)
    return qmodel


def steps_left(qmodel: keras.Model) -> tuple[str, ...] | None:
    """What was not run; None where nobody knows."""
    return getattr(qmodel, "steps_left", None)


def warn_of_steps(who: str, qmodel: keras.Model, otherwise: str) -> None:
    """Name the corrections of the recipe that were not run, and the call that runs them.

    Args:
        who: the verb that warns.
        qmodel: quantized.
        otherwise: what becomes of the verb's result without them.
    """
    # a model without ranges is refused by who needs them, and needs no second word
    left = [name for name in steps_left(qmodel) or () if name not in RANGES]
    if not left:
        return
    recipe = provenance_of(every_layer(qmodel)).recipe
    said, them = ("a step that was", "it") if len(left) == 1 else ("steps that were", "them")
    warn(
        f"{who}: recipe '{recipe}' has {said} not run: {', '.join(left)}. {otherwise} without {them}; "
        f"kquant.run_steps(qmodel, data) before `{who}` runs {them}, as kquant.compress does by itself.",
        StepsLeft,
    )


def begin_training(model: keras.Model) -> None:
    """Warn before `fit` of a model whose corrections were not run; then they count as run.

    Behind training they would undo it, so `export` does not ask for them again.

    Args:
        model: quantized or not.
    """
    warn_of_steps("fit", model, "Training begins")
    if steps_left(model) is not None:
        model.steps_left = ()


NamedOutputs.before_fit = begin_training

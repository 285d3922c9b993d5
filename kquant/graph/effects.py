"""What a `call` does beside computing its output: refused where a file cannot follow, named where a new model loses it.

draws, or state that the output depends on     another output at each call: refused
state and losses beside the output             named
another way with training=True                 named; the new model computes what inference does
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kquant.graph.keras_private import every_layer
from kquant.graph.recording import Recording
from kquant.graph.watched import Watched, reads, same

Follow = Callable[[bool | None, Watched], Recording]

DRAWS = (
    "Draw outside of the model and give it the numbers as one more input, draw only `if training:`, or take a layer "
    "that does so (Dropout, GaussianDropout, GaussianNoise). An int as seed draws the same numbers each time, and is a "
    "constant"
)
STATE = (
    "Make the state an input and the new state an output of the model (kquant.cell does that for recurrent layers), or "
    "assign it only `if training:`"
)


@dataclass(frozen=True)
class Effects:
    """What a layer does that a new model of its operations does not.

    Attributes:
        where: its name and class.
        at_inference: sentences about what it does beside its output.
        in_training: what it does in training only, in words; empty where it does the same.
    """

    where: str
    at_inference: tuple[str, ...] = ()
    in_training: str = ""

    def sentences(self) -> list[str]:
        """What is to be said where it does not stay whole."""
        said = list(self.at_inference)
        if self.in_training:
            said.append(
                f"{self.where}: with training=True its `call` {self.in_training}; the new model computes in training "
                "what inference computes. Dropout, GaussianDropout and GaussianNoise stay, as layers of their own "
                "that are called at inference as well."
            )
        return said


def effects(op: Any, first: Recording, watched: Watched, follow: Follow, training: bool | None) -> Effects:
    """Look at what a `call` that was followed once does beside.

    Args:
        op: the layer or model.
        first: its first run.
        watched: what was seen meanwhile.
        follow: runs it again, with that flag and from that state.
        training: the flag of the first run.

    Returns:
        What a new model loses.

    Raises:
        ValueError: two calls in inference give two results.
    """
    _refuse_changing(op, first, watched, follow, training)
    where = f"{op.name} ({type(op).__name__})"
    said = []
    if watched.assigned:
        said.append(
            f"{where}: its `call` assigns {_names(watched.assigned)}, which its output does not depend on now; the new "
            "model does without, and computes with the values of the variables as they are."
        )
    if watched.losses:
        said.append(
            f"{where}: its `call` uses add_loss, and the new model does without. Give the layer whose weights are "
            "penalized a kernel_regularizer, or put the penalty into the loss that the model is compiled with."
        )
    asks = not training and "training" in op.call_signature_parameters
    taught = _taught(op, first, watched, follow) if asks else ""
    return Effects(where, tuple(said), taught)


def refusal_of_draws(where: str) -> str:
    """The message for a random draw that inference computes with.

    Args:
        where: name and class of the layer.
    """
    return (
        f"{where}: it draws random numbers at inference, so two calls give two results; a file would hold one draw for "
        f"good. {DRAWS}."
    )


def _refuse_changing(op: Any, first: Recording, watched: Watched, follow: Follow, training: bool | None) -> None:
    """Run it once more from where the first run left its state: it must come out the same."""
    where = f"{op.name} ({type(op).__name__})"
    moved = {id(v) for v in watched.assigned} & reads(first)
    try:
        # From the state that the first run left, as `predict` would go on: from its own start any run comes out alike.
        if not moved and same(first, follow(training, Watched(watched.after()))):
            return
    except Exception:  # noqa: BLE001, whatever the user's code raises
        moved = {id(v) for v in watched.assigned}  # it cannot be followed from the new state: it depends on it
    if watched.draws and not moved:
        raise ValueError(refusal_of_draws(where))
    if watched.assigned:
        raise ValueError(
            f"{where}: its `call` assigns {_names(watched.assigned)} at inference and computes with it, so each call "
            f"gives another result; a file would hold one state for good. {STATE}."
        )
    raise ValueError(
        f"{where}: its `call` computes with other numbers, or other operations, each time it runs (numpy.random, "
        f"Python's random, an attribute that counts calls), so two calls give two results. {DRAWS}."
    )


def _taught(op: Any, first: Recording, before: Watched, follow: Follow) -> str:
    """What a `call` does in training only, in words; nothing where it does the same."""
    watched = Watched()
    try:
        with _not_building(op):
            taught = follow(True, watched)
    except Exception:  # noqa: BLE001, what cannot be followed in training, but in inference, is something else
        taught = None
    ways = ["draws random numbers"] if watched.draws and not before.draws else []
    # What inference assigns as well was said, or refused, before.
    assigned = [v for v in watched.assigned if id(v) not in before.updates]
    if assigned:
        ways.append(f"assigns {_names(assigned)}")
    if len(watched.losses) > len(before.losses):
        ways.append("adds a loss")
    if not ways and (taught is None or not same(first, taught)):
        ways.append("computes something else")
    return " and ".join(ways)


@contextlib.contextmanager
def _not_building(op: Any) -> Iterator[None]:
    """Inside, a layer that was never called, because only training calls it, fails instead of making variables."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("a layer that inference never called")

    unbuilt = [(layer, layer.build) for layer in every_layer(op) if not layer.built]
    for layer, _ in unbuilt:
        # Keras has put its own wrapper of `build` there (`Layer.__new__`), so that there is one to put back.
        layer.__dict__["build"] = refuse
    try:
        yield
    finally:
        for layer, build in unbuilt:
            layer.__dict__["build"] = build


def _names(variables: list[Any]) -> str:
    return ", ".join(dict.fromkeys(v.name for v in variables))

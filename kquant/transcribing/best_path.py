"""A network's scores of time steps -> labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant.core.checks import check_kind
from kquant.graph.output_names import named_shapes, output_number
from kquant.runtime.running import predict
from kquant.tflite.reader import inspect, label
from kquant.transcribing.spec import MOST_CLASSES, Ctc, Transcript


def transcribe(
    model: keras.Model | str | Path | bytes,
    data: Any,
    ctc: Ctc | None = None,
    *,
    lengths: Sequence[int] | np.ndarray | None = None,
    runtime: str = "litert",
) -> list[Transcript]:
    """What a network trained with CTC says, sample by sample.

    Reads: `model` stays as it was.

    The best class of each step, the lowest of equal ones; of classes in a row one is left, then blanks go. The C of
    `kquant.bundle(ctc=...)` writes the same labels.

    Args:
        model: a Keras model, float or quantized, or a `.tflite` file or its bytes.
        data: samples, as for `model.predict` or `kquant.predict`.
        ctc: what the output means; the first output with blank 0 by default.
        lengths: how many steps of each sample's output count, where samples are padded at their end; all by default.
        runtime: that computes a file, see `kquant.predict`.

    Returns:
        One `Transcript` for each sample.

    Raises:
        TypeError: `ctc` is no `Ctc`.
        ValueError: an output that there is not or that has no steps, an alphabet of another number than the classes,
            or lengths of another number than the samples or longer than the output.

    Example:
        >>> frames = keras.Input((20, 8))
        >>> model = keras.Model(frames, keras.layers.Dense(4, activation="softmax", name="letters")(frames))
        >>> x = np.random.default_rng(0).random((2, 20, 8), np.float32)
        >>> [len(said) <= 20 for said in kquant.transcribe(model, x, kquant.Ctc("letters", alphabet="_abc"))]
        [True, True]
    """
    ctc = Ctc() if ctc is None else ctc
    check_kind("transcribe", "ctc", ctc, Ctc)
    if isinstance(model, keras.Model):
        shapes, where = named_shapes(model), model.name
        outputs = keras.tree.flatten(model.predict(data, verbose=0))  # pyright: ignore[reportArgumentType]
    else:
        shapes, where = {name: t.shape for name, t in inspect(model).named_outputs.items()}, label(model)
        given = predict(model, data, runtime)
        outputs = [given] if isinstance(given, np.ndarray) else given
    output, chosen = resolved(ctc, list(shapes), list(shapes.values()), where)
    scores = np.asarray(outputs[output])
    return [_read(one[:steps], chosen) for one, steps in zip(scores, _lengths(lengths, scores, where), strict=True)]


def resolved(ctc: Ctc, names: Sequence[str], shapes: Sequence[Sequence[Any]], where: str) -> tuple[int, Ctc]:
    """The number of the output, and what it means with the number of its blank.

    Args:
        ctc: names them.
        names: of a model's outputs.
        shapes: of them, the batch first.
        where: what to call the model in errors.

    Raises:
        ValueError: see `transcribe`.

    Example:
        >>> resolved(Ctc("letters", blank=-1), ["letters"], [(None, 20, 4)], "net")[1].blank
        3
    """
    output = output_number(ctc.output, names, where)
    shape, classes = tuple(shapes[output]), shapes[output][-1]
    if len(shape) != 3 or classes is None or not 2 <= classes <= MOST_CLASSES:
        raise ValueError(
            f"{where}: output '{names[output]}' must be [steps, classes], a label and a blank at least. Received: "
            f"{shape[1:]}."
        )
    if not -classes <= ctc.blank < classes:
        raise ValueError(f"{where}: blank {ctc.blank} is none of the {classes} classes of output '{names[output]}'.")
    if ctc.alphabet and len(ctc.alphabet) != classes:
        raise ValueError(
            f"{where}: {len(ctc.alphabet)} names for the {classes} classes of output '{names[output]}'; the blank has "
            "one too."
        )
    return output, replace(ctc, blank=ctc.blank % classes)


def steps_in(model: keras.Model, ctc: Ctc, made: Sequence[Sequence[Any]] | None = None) -> str:
    """What is read of a Keras model's outputs, as a sentence.

    Args:
        model: float or quantized.
        ctc: what the output means.
        made: the shapes of the outputs, in their order; None: those that the model tells.

    Raises:
        TypeError: `ctc` is no `Ctc`.
        ValueError: see `transcribe`.
    """
    check_kind("check", "ctc", ctc, Ctc)
    shapes = named_shapes(model)
    sizes = list(shapes.values()) if made is None else made
    output, chosen = resolved(ctc, list(shapes), sizes, model.name)
    steps, classes = sizes[output][1:]
    many = "steps" if steps is None else f"{steps} steps"
    return (
        f"labels are read beside the file, in integers: of output '{list(shapes)[output]}', {many} of {classes} "
        f"classes, of which {chosen.blank} is the blank"
    )


def best_path(scores: np.ndarray, blank: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the steps at which they begin.

    Args:
        scores: `[steps, classes]`, codes or real numbers.
        blank: the class that is no label.

    Example:
        >>> best_path(np.eye(3)[[1, 1, 0, 1, 2]], blank=0)[0].tolist()
        [1, 1, 2]
    """
    best = np.argmax(scores, axis=-1)  # the first of equal ones, as the C does it
    begins = np.concatenate([[True], best[1:] != best[:-1]])[: len(best)] & (best != blank)
    return best[begins].astype(np.int64), np.flatnonzero(begins)


def _read(scores: np.ndarray, ctc: Ctc) -> Transcript:
    labels, steps = best_path(scores, ctc.blank)
    return Transcript(labels, steps, "".join([ctc.alphabet[int(i)] for i in labels] if ctc.alphabet else []))


def _lengths(lengths: Sequence[int] | np.ndarray | None, scores: np.ndarray, where: str) -> list[int]:
    count, steps = scores.shape[:2]
    if lengths is None:
        return [steps] * count
    given = np.asarray(lengths)
    whole = np.issubdtype(given.dtype, np.integer) and given.shape == (count,)
    if not whole or np.any(given < 0) or np.any(given > steps):
        raise ValueError(
            f"{where}: lengths must be {count} whole numbers of 0 to {steps} steps, those of the output. Received: "
            f"{np.array2string(given, threshold=6)}."
        )
    return given.tolist()

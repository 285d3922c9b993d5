"""How right a model is: in float, simulated, and as the file that a runtime runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kquant import targets
from kquant.analysis.metrics import right_answers
from kquant.calibration.data import gather
from kquant.exporting.model_card import ModelCard
from kquant.exporting.verification import runtime_of
from kquant.masking.stripping import strip
from kquant.runtime.running import predict


def scored(
    card: ModelCard,
    models: tuple[keras.Model, keras.Model],
    file: Any,
    target: str,
    data: Any,
    labels: np.ndarray,
    *,
    verbose: bool = True,
) -> ModelCard:
    """The card with the share of right answers of the float model, the quantized one and the file.

    Args:
        card: without them.
        models: the float one and the quantized one.
        file: that was exported, its path.
        target: that it is for; the first of its runtimes that is installed runs it.
        data: samples, in the structure of the models' inputs.
        labels: int[samples], their classes.
        verbose: show a progress bar.

    Raises:
        ValueError: outputs that are not [samples, classes], or another number of labels than of samples.
    """
    count = len(keras.tree.flatten(data)[0])
    if count != len(labels):
        raise ValueError(
            f"accuracy: expected a label for each of {count:,} samples. Received: {len(labels):,} labels. Give the "
            "class of each of those very samples (--test on the command line; --data where there is none)."
        )
    right, (runtime, _) = right_answers(labels), runtime_of(targets.load(target))
    # a parameter of Keras has the type of its default
    outputs = [m.predict(data, verbose=0) for m in models]  # pyright: ignore[reportArgumentType]
    outputs.append(predict(file, data, runtime, verbose=verbose))
    float_one, simulated, of_file = (right(y) for y in outputs)
    return replace(
        card,
        float_accuracy=float(np.mean(float_one)),
        simulated_accuracy=float(np.mean(simulated)),
        file_accuracy=float(np.mean(of_file)),
        spoiled=int(np.sum(float_one & ~of_file)),
        mended=int(np.sum(of_file & ~float_one)),
        samples=count,
        runtime=runtime,
    )


def rated(card: ModelCard, qmodel: keras.Model, content: bytes, target: str, test: tuple[Any, Any] | None) -> ModelCard:
    """The card of a file, and how right it is where somebody can tell.

    Args:
        card: without accuracy.
        qmodel: the model.
        content: the file.
        target: that it is for.
        test: samples, and the class of each; None where there are none.

    Raises:
        ValueError: see `scored`.
    """
    if test is None:
        return card
    # what was quantized is a float function still: the model without its quantization is the float model
    models, x = (strip(qmodel), qmodel), keras.tree.pack_sequence_as(qmodel.input, gather(qmodel, test[0], None))
    return scored(card, models, content, target, x, np.asarray(test[1]).reshape(-1), verbose=False)

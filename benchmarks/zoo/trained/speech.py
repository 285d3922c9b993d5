"""A small DeepSpeech2 on spoken digits that are joined to utterances, with CTC; label error rate of greedy decoding."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from benchmarks.assets import FOLDER, loader
from benchmarks.zoo.sequences import deepspeech2
from benchmarks.zoo.trained.metrics import greedy, label_errors
from benchmarks.zoo.trained.task import Data, Subject, Trained, answers

FRAMES, MOST = 112, 4  # of an utterance: spectra, digits
SILENCE = -13.5  # mean over bands, below which a frame lies behind the recording
BLANK, FLOOR = 0, 1e-4  # label of no digit; least probability that the loss takes the logarithm of


def data() -> Data:
    """1,600 utterances of the digits that train, 250 of those that are the set's own test."""
    (x, y), (u, v) = loader().spoken_digits()
    mean, deviation = float(x.mean()), float(x.std())
    sounds, labels = _utterances(x, y, 1600, np.random.default_rng(0))
    judged, truth = _utterances(u, v, 250, np.random.default_rng(1))
    rows = [[label for label in row if label != BLANK] for row in truth.tolist()]
    return Data((sounds - mean) / deviation, labels, (judged - mean) / deviation, rows)


def _utterances(x: np.ndarray, y: np.ndarray, limit: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Digits one after the other with 2 to 8 quiet frames between, and their labels 1 to 10, BLANK behind the last."""
    ends = [int(np.flatnonzero(clip.mean(axis=1) > SILENCE)[-1]) + 1 for clip in x]
    sounds = np.full((limit, FRAMES, x.shape[2], 1), x.min(), np.float32)
    labels = np.full((limit, MOST), BLANK, np.int32)
    for n in range(limit):
        at = 0
        for k in range(rng.integers(1, MOST + 1)):
            which = rng.integers(len(x))
            at += int(rng.integers(2, 9))
            if at + ends[which] > FRAMES:
                break
            sounds[n, at : at + ends[which], :, 0] = x[which, : ends[which]]
            labels[n, k] = y[which] + 1
            at += ends[which]
    return sounds, labels


def loss(true: Any, found: Any) -> Any:
    """Connectionist temporal classification (Graves et al. 2006) of probabilities."""
    rows = ops.shape(found)[0]
    steps = ops.full((rows,), found.shape[1], dtype="int32")
    true = ops.cast(true, "int32")
    return ops.mean(
        ops.ctc_loss(true, ops.log(found + FLOOR), ops.sum(ops.cast(true != BLANK, "int32"), 1), steps, BLANK)
    )


def judged(subject: Subject, data: Data) -> dict[str, float]:
    """Wrong, missing and surplus labels in parts of the true ones."""
    found = [greedy(scores, BLANK) for scores in answers(subject, data.judged)]
    return {"label errors": label_errors(found, data.truth)}


def missing() -> str | None:
    """Why there is no row."""
    return None if (FOLDER / "fsdd").is_dir() else f"no spoken digits: {FOLDER} has no folder fsdd; set KQUANT_ASSETS"


def build() -> keras.Model:
    """The zoo's, for digits."""
    return deepspeech2(FRAMES, 40, 10, 32)


TASKS = (
    Trained(
        name="deepspeech2",
        title="DeepSpeech2, CTC, joined spoken digits",
        build=build,
        data=data,
        loss=loss,
        judge=judged,
        epochs=24,
        rate=4e-3,
        lower_is_better=True,
        missing=missing,
    ),
)

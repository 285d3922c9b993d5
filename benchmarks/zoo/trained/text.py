"""A small transformer that tells where a sentence comes from: a tweet, a review of a product or a film, an editorial.

24,000 real sentences come with the source package of vaderSentiment 2.5 (Hutto and Gilbert 2014), which KQUANT_TEXTS
names: `pip download vaderSentiment==2.5 --no-deps --no-binary :all:`.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections import Counter
from pathlib import Path

import keras
import numpy as np
from keras import layers

from benchmarks.zoo.blocks import encoder, model
from benchmarks.zoo.trained.task import Data, Subject, Trained, answers

INNER = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = ("tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets")
LENGTH, WORDS, EACH, JUDGED = 24, 2000, 3700, 250
PADDING, UNKNOWN = 0, 1


def package() -> Path:
    """The source package."""
    return Path(os.environ.get("KQUANT_TEXTS", "vaderSentiment-2.5.tar.gz"))


def sentences() -> list[list[list[str]]]:
    """Words and marks of the first so many sentences of each source, in a seeded order."""
    with tarfile.open(package()) as outer:
        content = outer.extractfile(INNER).read()  # type: ignore[union-attr]
    rng = np.random.default_rng(0)
    found = []
    with tarfile.open(fileobj=io.BytesIO(content)) as inner:
        for source in SOURCES:
            file = inner.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
            lines = file.read().decode("utf-8", "replace").lower().splitlines()[:EACH]  # type: ignore[union-attr]
            rows = [re.findall(r"[a-z']+|[^a-z\s]", line.split("\t")[2]) for line in lines]
            found.append([rows[k] for k in rng.permutation(len(rows))])
    return found


def data() -> Data:
    """The most frequent words of the sentences that train have a number of their own."""
    rows = sentences()
    train = [(words, label) for label, source in enumerate(rows) for words in source[JUDGED:]]
    judge = [(words, label) for label, source in enumerate(rows) for words in source[:JUDGED]]
    common = Counter(word for words, _ in train for word in words).most_common(WORDS - 2)
    numbers = {word: n for n, (word, _) in enumerate(sorted(common), start=2)}
    order = np.random.default_rng(1).permutation(len(train))
    (x, y), (u, v) = (_coded(part, numbers) for part in ([train[k] for k in order], judge))
    return Data(x, y, u, v)


def _coded(pairs: list[tuple[list[str], int]], numbers: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((len(pairs), LENGTH), PADDING, np.int32)
    for row, (words, _) in zip(tokens, pairs, strict=True):
        known = [numbers.get(word, UNKNOWN) for word in words[:LENGTH]]
        row[: len(known)] = known
    return tokens, np.int32([label for _, label in pairs])


def transformer(size: int = 48, blocks: int = 2) -> keras.Model:
    """Embeddings of words and positions, blocks with the norm before, the mean over the sentence."""
    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    x = layers.Embedding(WORDS, size)(tokens) + layers.Embedding(LENGTH, size)(np.arange(LENGTH)[None])
    for _ in range(blocks):
        x = layers.Dropout(0.2)(encoder(x, 4, 2 * size))
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x)))
    return model(tokens, layers.Dense(len(SOURCES), activation="softmax")(x), "text_transformer")


def judged(subject: Subject, data: Data) -> dict[str, float]:
    """Share of sentences whose source is right."""
    return {"accuracy": float(np.mean(answers(subject, data.judged).argmax(axis=1) == data.truth))}


def missing() -> str | None:
    """Why there is no row."""
    if package().is_file():
        return None
    return "no sentences: set KQUANT_TEXTS to vaderSentiment-2.5.tar.gz (pip download vaderSentiment==2.5 --no-deps)"


TASKS = (
    Trained(
        name="text_transformer",
        title="transformer encoder, source of a sentence",
        build=transformer,
        data=data,
        loss="sparse_categorical_crossentropy",
        judge=judged,
        epochs=5,
        batch=64,
        rate=1e-3,
        missing=missing,
    ),
)

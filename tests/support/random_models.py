"""Random models out of every rule's examples: branches, nested and shared models, odd shapes, several outputs.

Examples of the rules are put behind each other; where shapes do not fit, a Dense in between makes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import contract
import keras
import numpy as np
from keras import layers

import kquant

LARGEST = 400  # elements of a tensor, so that a Dense between two of them stays small
RECIPES: tuple[Any, ...] = (
    "int8",
    "int8",
    "int4-weights",
    "int16x8",
    {"name": "mixed", "rules": [{"position": "first", "activations": {"bits": 16, "observer": "minmax"}}]},
    {
        "name": "mixed",
        "activations": {"bits": 16, "observer": "minmax"},
        "rules": [{"position": "last", "activations": {"bits": 8}, "weights": {"bits": 4}}],
    },
)


@cache
def usable() -> tuple[str, ...]:
    """Examples with small float inputs and static shapes.

    Keras 3.15 declares other shapes than it computes for an EinsumDense of "...x,xy->...y" on an image; a model
    built on such a shape does not run in Keras either.
    """
    found = []
    for name, build in sorted(contract.EXAMPLES.items()):
        model = build()
        tensors = [*model.inputs, *model.outputs]
        plain = len(contract.takers(model)) > 1 and all(
            "float" in str(t.dtype) and None not in t.shape[1:] and len(t.shape) > 1 for t in tensors
        )
        if plain and max(math.prod(t.shape[1:]) for t in tensors) <= LARGEST and _computes_its_shapes(model):
            found.append(name)
    return tuple(found)


def _computes_its_shapes(model: keras.Model) -> bool:
    computed = model([keras.ops.zeros((1, *t.shape[1:])) for t in model.inputs])
    pairs = zip(keras.tree.flatten(computed), model.outputs, strict=True)
    return all(y.shape[1:] == t.shape[1:] for y, t in pairs)


def fitted(x: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """`x` in another shape: as it is, reshaped, or through a Dense."""
    if tuple(x.shape[1:]) == shape:
        return x
    size = math.prod(shape)
    if math.prod(x.shape[1:]) != size:
        x = layers.Dense(size, activation=str(rng.choice(["linear", "relu", "tanh"])))(layers.Flatten()(x))
    return x if tuple(x.shape[1:]) == shape else layers.Reshape(shape)(x)


def random_model(seed: int, steps: int = 4) -> keras.Model:
    """Examples on tensors picked at random; what nobody reads is an output."""
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    inputs = [keras.Input((7, 5, 3), name="image"), keras.Input((9,), name="vector")][: rng.integers(1, 3)]
    tensors, unread = list(inputs), []
    for step in range(steps):
        example = contract.EXAMPLES[str(rng.choice(usable()))]()
        part = keras.Model(example.inputs, example.outputs, name=f"part_{step}")
        for _ in range(2 if rng.random() < 0.2 else 1):  # a shared model
            picked = [tensors[rng.integers(max(0, len(tensors) - 4), len(tensors))] for _ in part.inputs]
            y = part([fitted(x, tuple(t.shape[1:]), rng) for x, t in zip(picked, part.inputs, strict=True)])
            made = keras.tree.flatten(y)
            unread = [t for t in unread if all(t is not p for p in picked)] + made
            tensors += made
        if rng.random() < 0.3 and len(tensors) > 2:
            a, b = tensors[-1], tensors[rng.integers(len(tensors) - 1)]
            merge = [layers.Add, layers.Multiply, layers.Concatenate, layers.Maximum][rng.integers(4)]
            y = merge()([a, fitted(b, tuple(a.shape[1:]), rng)])
            unread = [t for t in unread if t is not a and t is not b] + [y]
            tensors.append(y)
    outputs = unread[-3:]
    return contract.randomise(keras.Model(inputs, outputs, name=f"random_{seed}"), seed)


def random_recipe(seed: int) -> Any:
    """One of the formats."""
    return RECIPES[np.random.default_rng(seed + 10_000).integers(len(RECIPES))]


@dataclass(frozen=True)
class Verdict:
    """What became of a random model.

    Attributes:
        seed, target: which.
        result: "equal", "refused", "different", "float", or "failed" for any other error.
        said: the message, or the figures.
    """

    seed: int
    target: str
    result: str
    said: str

    @property
    def ok(self) -> bool:
        """Equal codes in an integer file, or refused with a reason."""
        return self.result in ("equal", "refused")


def verdict(seed: int, target: str, runtime: str, samples: int = 32) -> Verdict:
    """Quantize, calibrate, write, run and compare one model."""
    try:
        q = kquant.quantize(random_model(seed), random_recipe(seed), target=target)
        kquant.calibrate(q, contract.packed(q, contract.data(q, samples)), batch_size=samples, verbose=False)
        content = contract.file_of(q)
        if contract.floats(content):
            return Verdict(seed, target, "float", ", ".join(contract.floats(content)))
        parity = contract.compare(q, content, runtime, contract.data(q, samples, seed=3, spread=2.0))
    except ValueError as error:
        return Verdict(seed, target, "refused", str(error))
    except Exception as error:  # whatever it is, the report wants to count it
        return Verdict(seed, target, "failed", f"{type(error).__name__}: {error}")
    return Verdict(seed, target, "equal" if parity.equal == 1.0 else "different", str(parity))

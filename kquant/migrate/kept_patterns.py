"""Masks and codebooks of tfmot -> those of kquant, around the kernels of the float model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kquant.core.messages import first_of
from kquant.graph.graph import legal_name
from kquant.layers.transform import Transform
from kquant.masking.codebook import Codebook
from kquant.masking.kernel_sites import Site, put
from kquant.masking.mask import fixed
from kquant.masking.wrapping import as_loaded, to_transform

Patterns = Mapping[tuple[str, str], np.ndarray]


def kept(model: keras.Model, masks: Patterns, books: Patterns, where: str) -> keras.Model:
    """A model whose kernels keep their zeros and shared values while they train.

    Args:
        model: float.
        masks: (layer, weight) -> bool, like the weight.
        books: (layer, weight) -> float32[n], or [channels, n].
        where: the old file, for errors.

    Returns:
        A copy with `Transformed` layers; `model` itself where there is nothing to keep.

    Raises:
        ValueError: a mask or codebook whose kernel is not in the model.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="head")])
        >>> pruned = kept(model, {("head", "kernel"): np.array([[True], [False]])}, {}, "old.h5")
        >>> kquant.sparsity(pruned).total
        0.5
    """
    if not masks and not books:
        return model
    new = to_transform(model, "migrate")
    left = {(legal_name(layer), weight) for layer, weight in (*masks, *books)}

    def of(patterns: Patterns, site: Site) -> np.ndarray | None:
        for (layer, weight), value in patterns.items():
            if legal_name(layer) == site.holder.layer.name and site.path.rsplit(".", 1)[-1] in (weight, _plain(weight)):
                left.discard((legal_name(layer), weight))
                return value
        return None

    def mask(site: Site) -> Transform | None:
        value = of(masks, site)
        return None if value is None else fixed(value)

    def book(site: Site) -> Transform | None:
        value = of(books, site)
        return None if value is None else _codebook(value, site)

    put(new, mask)
    put(new, book)
    if left:
        names = first_of(f"{layer} ({weight})" for layer, weight in sorted(left))
        raise ValueError(f"{where}: masks or shared values of kernels that kquant does not know: {names}.")
    return as_loaded(new)


def _plain(weight: str) -> str:
    """The name that Keras 3 has for a depthwise kernel."""
    return weight.removeprefix("depthwise_")


def _codebook(values: np.ndarray, site: Site) -> Any:
    """The values of tfmot: one list, or one for each output channel; a 0 among them stays 0."""
    lists = np.atleast_2d(values)
    # one setting for all channels: a 0 that some list lacks is a value like the others
    keeps = bool(np.all(np.any(lists == 0.0, axis=1)))
    # a `Codebook` that keeps its 0 counts it among its values and does not store it
    free = [np.delete(row, np.flatnonzero(row == 0.0)[0]) if keeps else row for row in lists]
    axes = (site.geometry.output_axis % len(site.shape),) if len(lists) > 1 else ()
    made = Codebook(lists.shape[1], channel_axes=axes or (-1,), per_channel=bool(axes), preserve_sparsity=keeps)
    made.build(site.shape)
    made.centroids.assign(np.stack(free))
    return made

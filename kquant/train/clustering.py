"""Weight sharing: the weights of a kernel, or of each of its channels, take a few trainable values."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant.core import recipe as recipes
from kquant.core.recipe import Clustering, Recipe
from kquant.train.centroids import Init
from kquant.train.codebook import Aggregation, Channels, Codebook
from kquant.train.wrap import Site, transformed


def cluster(
    model: keras.Model,
    clusters: int | str | Path | dict[str, Any] | Recipe,
    init: Init = "kmeans++",
    per_channel: Channels = False,
    preserve_sparsity: bool = True,
    *,
    layers: str | Sequence[str] | None = None,
    skip: str | Sequence[str] = (),
    depthwise: bool = False,
    aggregation: Aggregation = "sum",
    seed: int = 0,
) -> keras.Model:
    """Replace every weight by the nearest of a few values, which go on training.

        w' = c[argmin_k |w - c[k]|]        (Han et al., Deep Compression, arXiv:1510.00149, section 3)

    Train it, then quantize it: after int8 quantization every output channel has at most `clusters` different codes,
    whether batch norms are folded or not. A pruned model keeps its masks, a quantized model its ranges: pruning,
    clustering and quantization compose in any order.

    Args:
        model: a built Keras 3 model, float (pruned or not) or quantized. It is not changed.
        clusters: number of values, 2 or more; or a recipe with a `[clustering]` section, in which case the arguments
            after this one replace what the section says where they are not at their default.
        init: first values: "kmeans++", "linear", "density" or "random".
        per_channel: False, one codebook for each kernel; True, one for each output channel; "scale", one for each
            kernel times a trainable scale for each output channel: int8 codes are then the same in all channels, so
            the file deflates best.
        preserve_sparsity: one of the values is 0 and stays 0, the others are split between the signs in proportion;
            weights that are exactly 0 stay so.
        layers: name patterns of the layers to cluster; None: all that have kernels.
        skip: name patterns of layers to leave.
        depthwise: cluster depthwise kernels too; they have few weights and lose most.
        aggregation: a value's gradient is the "sum" or the "mean" of those of its weights.
        seed: of what is drawn.

    Returns:
        A float model as a Functional one with `Transformed` layers; a quantized model as a quantized one.

    Raises:
        ValueError: too few clusters, an unknown init, a model that is not built or clustered already, a pattern that
            matches no layer, a recipe without `[clustering]`.

    Example:
        >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="head")])
        >>> small = kquant.cluster(model, 4)
        >>> np.unique(small.get_layer("head").weights_as_used("kernel")).size
        4
    """
    defaults = Clustering(clusters=2)
    given = {"init": init, "per_channel": per_channel, "preserve_sparsity": preserve_sparsity}
    given |= {"depthwise": depthwise, "aggregation": aggregation, "seed": seed}
    if isinstance(clusters, int | np.integer) and not isinstance(clusters, bool):
        recipe = recipes.load({"name": "cluster", "clustering": {"clusters": int(clusters), **given}})
    else:
        recipe = recipes.load(clusters)
        if recipe.clustering is None:
            raise ValueError(f"cluster: recipe '{recipe.name}' has no [clustering] section; add one with clusters = 16.")
        changed = {name: value for name, value in given.items() if value != getattr(defaults, name)}
        recipe = recipe.model_copy(update={"clustering": recipe.clustering.model_copy(update=changed)})
    return _clustered(model, recipe, _patterns(layers), _patterns(skip) or ())


def _patterns(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    return (given,) if isinstance(given, str) else tuple(given)


def _clustered(model: keras.Model, recipe: Recipe, wanted: tuple[str, ...] | None, skip: tuple[str, ...]) -> keras.Model:
    names: list[str] = []
    small: list[str] = []
    found: list[Site] = []

    def choose(site: Site) -> Codebook | None:
        known = [name for name, _ in site.names]
        names.extend(known)
        if any(fnmatchcase(name, p) for name in known for p in skip):
            return None
        if wanted is not None and not any(fnmatchcase(name, p) for name in known for p in wanted):
            return None
        settings = recipe.clustering_of(site.names, site.position)
        if settings is None or (site.kernel.depthwise and not settings.depthwise):
            return None
        if any(isinstance(t, Codebook) for t in site.transforms):
            raise ValueError(f"{site.layer.name}: '{site.path}' is clustered already; start from the model before.")
        book = _codebook(settings, site)
        count = site.weights.shape.num_elements()
        shared = count // book.groups_of(site.weights.shape) if settings.per_channel is True else count
        if shared <= settings.clusters:
            small.append(f"{site.layer.name} ({site.path}: {shared} weights, {settings.clusters} clusters)")
            return None
        found.append(site)
        return book

    new = transformed(model, choose)
    _check_patterns(names, [*(wanted or ()), *skip])
    if small:
        where = " for each output channel" if recipe.clustering is not None and recipe.clustering.per_channel else ""
        warnings.warn(
            f"cluster: left as they are, having no more weights than clusters{where}: {', '.join(small)}.", stacklevel=4
        )
    if not found:
        raise ValueError(f"{model.name}: no kernel to cluster; is there a layer with a kernel, and do patterns fit?")
    return new


def _codebook(settings: Clustering, site: Site) -> Codebook:
    axes = (-2, -1) if site.kernel.depthwise else (site.kernel.output_axis,)
    options = settings.model_dump(exclude={"depthwise"})
    return Codebook(**options, channel_axes=axes)


def _check_patterns(names: list[str], patterns: list[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"cluster: '{pattern}' matches no layer with a kernel. There are: {', '.join(names)}.")

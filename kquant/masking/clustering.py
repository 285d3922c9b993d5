"""Weight sharing: the weights of a kernel, or of each of its channels, take a few trainable values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import keras

from kquant.core.messages import warn
from kquant.core.origin import patterns_of
from kquant.core.renamed import renamed
from kquant.graph.keras_private import every_layer
from kquant.layers.oscillations import warn_unfrozen
from kquant.masking.centroids import Init
from kquant.masking.code_length import price_of, refuse_unpriced
from kquant.masking.codebook import Aggregation, Channels, Codebook
from kquant.masking.kernel_sites import Site, check_patterns, match, note_of, note_of_unknown, put, sites
from kquant.masking.mask import Mask
from kquant.masking.method import Method
from kquant.masking.wrapping import as_loaded, to_transform
from kquant.recipe import recipe as recipes
from kquant.recipe.clustering_section import Clustering
from kquant.recipe.recipe import Recipe
from kquant.views.float_model import warn_lost_steps


@renamed
def cluster(
    model: keras.Model,
    clusters: int | str | Path | dict[str, Any] | Recipe,
    init: Init | None = None,
    per_channel: Channels | None = None,
    preserve_sparsity: bool | None = None,
    *,
    layers: str | Sequence[str] | None = None,
    protect: str | Sequence[str] = (),
    depthwise: bool | None = None,
    train_values: bool | None = None,
    aggregation: Aggregation | None = None,
    seed: int | None = None,
    entropy: float | None = None,
    target_bytes: int | None = None,
) -> keras.Model:
    """Replace every weight by the nearest of a few values, which go on training.

    Copies: `model` stays as it was.

        w' = c[argmin_k |w - c[k]|]        (Han et al., Deep Compression, arXiv:1510.00149, section 3)

    Train it, then quantize it: after int8 quantization every output channel has at most `clusters` different codes,
    whether batch norms are folded or not. A pruned model keeps its masks, a quantized model its ranges: pruning,
    clustering and quantization compose in any order.

    Args:
        model: a built Keras 3 model, float (pruned or not) or quantized.
        clusters: number of values, 2 or more; or a recipe with a `[clustering]` section, in which case the arguments
            after this one replace what the section says. None leaves them as it says, or at the default.
        init: first values: "kmeans++" (the default), "linear", "density" or "random".
        per_channel: False (the default), one codebook for each kernel; True, one for each output channel; "scale",
            one for each kernel times a trainable scale for each output channel: int8 codes are then the same in all
            channels, so the file deflates best.
        preserve_sparsity: one of the values is 0 and stays 0, the others are split between the signs in proportion;
            weights that are exactly 0 stay so. True by default.
        layers: name patterns of the layers to cluster; None: all that have kernels.
        protect: name patterns of layers to leave.
        depthwise: cluster depthwise kernels too; they have few weights and lose most. False by default.
        train_values: False: only the weights train (and the scales of "scale"), the values stay as `init` found them.
            With init="linear" and per_channel="scale" the codes of all layers are then the same. True by default.
        aggregation: a value's gradient is the "sum" (the default) or the "mean" of those of its weights.
        seed: of what is drawn; 0 by default.
        entropy: what a KiB of the kernels' codes costs while the model trains, added to its loss; weights are drawn to
            codes that are frequent, so that Huffman codes get short. 0 by default; see docs/short_codes.md.
        target_bytes: where that ends, in bytes of these kernels' codes alone, by the histogram of each; the file is
            larger (tables, biases, scales, operators). For a file of so many bytes train the quantized model with
            `kquant.callbacks.FlashBudget`. None: nowhere.

    Returns:
        A float model as a Functional one with `Transformed` layers; a quantized model as a quantized one. Layers that
        do not train are left as they are, with a warning.

    Raises:
        ValueError: too few clusters, an unknown init, a model that is not built or clustered already, a pattern that
            matches no layer, a mask whose zeros preserve_sparsity=False would undo, a recipe without `[clustering]`.

    Example:
        >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="head")])
        >>> small = kquant.cluster(model, 4)
        >>> np.unique(small.get_layer("head").weights_as_used("kernel")).size
        4
    """
    options = {"init": init, "per_channel": per_channel, "preserve_sparsity": preserve_sparsity}
    options |= {"depthwise": depthwise, "train_values": train_values, "aggregation": aggregation, "seed": seed}
    options |= {"entropy": entropy, "target_bytes": target_bytes}
    recipe = _recipe(clusters, {name: value for name, value in options.items() if value is not None})
    new = to_transform(model, "cluster")
    put_codebooks(new, recipe, None if layers is None else patterns_of(layers), patterns_of(protect))
    new = as_loaded(new)
    warn_lost_steps(model, "cluster")
    return new


def put_codebooks(
    model: keras.Model, recipe: Recipe, layers: tuple[str, ...] | None = None, protect: tuple[str, ...] = ()
) -> None:
    """Codebooks in a model whose layers are wrapped, as its recipe's `[clustering]` says.

    Args:
        model: what `kquant.masking.wrapping.wrapped` or `kquant.quantize` gave; it is changed.
        recipe: with that section.
        layers: patterns of names, see `cluster`.
        protect: patterns of names.

    Raises:
        ValueError: no kernel to cluster, a pattern that matches no layer, or a model that is clustered already.
    """
    chooser = _Chooser(recipe, layers, protect)
    check_patterns("cluster", (*(layers or ()), *protect), sites(model))
    count = put(model, chooser.choose)
    chooser.price()
    if not count and not chooser.small:
        why = note_of(chooser.frozen) or note_of_unknown(model) or "depthwise ones only with depthwise=True."
        raise ValueError(f"{model.name}: cluster: no kernel to cluster: {why}")
    chooser.warn(note_of_unknown(model))
    warn_unfrozen(every_layer(model), "cluster")


def has_codebooks(model: keras.Model) -> bool:
    """True where weights of the model are shared."""
    return any(isinstance(layer, Codebook) for layer in every_layer(model))


def _recipe(given: Any, options: dict[str, Any]) -> Recipe:
    """A recipe with a `[clustering]` section: the one that is given, changed by options, or made of a number."""
    sharing = options.get("per_channel", False)
    if not isinstance(sharing, bool) and sharing != "scale":
        raise ValueError(f"cluster: per_channel must be False, True or 'scale'. Received: {sharing!r}.")
    if isinstance(given, Real):
        if not isinstance(given, Integral) or given < 2:
            raise ValueError(f"cluster: clusters must be a whole number, 2 or more. Received: {given!r}.")
        return recipes.load({"name": "cluster", "clustering": {"clusters": int(given), **options}})
    recipe = recipes.load(given)
    section = recipe.section(Clustering)
    if section is None:
        raise ValueError(f"cluster: recipe '{recipe.name}' has no [clustering] section. 'cluster16-int8' has one.")
    changed = recipes.load({"name": "cluster", "clustering": {**section.model_dump(), **options}})
    return recipe.model_copy(update={"clustering": changed.section(Clustering)})


@dataclass
class _Chooser:
    """Which kernels get a codebook, and what is to be said of the others."""

    recipe: Recipe
    wanted: tuple[str, ...] | None
    protect: tuple[str, ...]
    small: list[str] = field(default_factory=list)
    frozen: list[Site] = field(default_factory=list)
    books: list[tuple[Codebook, int | None, tuple[int, ...]]] = field(default_factory=list)

    def choose(self, site: Site) -> Codebook | None:
        """The codebook of one kernel."""
        known = [name for name, _ in site.names]
        asked = self.wanted is None or match(known, self.wanted)
        settings = self.recipe.section_of(Clustering, site.names, site.position)
        if not asked or match(known, self.protect) or settings is None or not settings.clusters:
            return None
        if site.geometry.depthwise and not settings.depthwise:
            return None
        if not site.trains:
            self.frozen.append(site)
            return None
        if any(isinstance(t, Codebook) for t in site.transforms):
            raise ValueError(f"{site.holder.name}: '{site.path}' is clustered already; start from the model before.")
        if not settings.preserve_sparsity and any(isinstance(t, Mask) for t in site.transforms):
            raise ValueError(
                f"{site.holder.name}: '{site.path}' has a mask, whose zeros a codebook without a zero would undo. Give "
                "cluster preserve_sparsity=True; or drop the mask before: kquant.strip(model)."
            )
        try:
            book = Codebook(**settings.model_dump(exclude={"depthwise", "target_bytes"}), channel_axes=_axes(site))
        except ValueError as error:
            raise ValueError(f"{site.label}: cluster: {error}") from error
        shape = site.shape
        # With "scale" the values are those of the whole kernel, so that all its weights count.
        each = math.prod(shape) // (book.groups_of(shape) if settings.per_channel is True else 1)
        if each > settings.clusters:
            self.books.append((book, settings.target_bytes, shape))
            return book
        self.small.append(f"{site.holder.name} ({site.path}: {each} for {settings.clusters} values)")
        return None

    def price(self) -> None:
        """When all codebooks are known: what their codes may take."""
        shapes = [shape for *_, shape in self.books]
        refuse_unpriced("cluster", ((book.price.entropy, target_bytes) for book, target_bytes, _ in self.books))
        for book, target_bytes, _ in self.books:
            book.price = price_of(book.price.entropy, target_bytes, shapes)

    def warn(self, unknown: str) -> None:
        """Name kernels that do not train, or have too few weights; and what is said of layers without known ones."""
        for note in (note_of(self.frozen), unknown):
            if note:
                warn(f"cluster: {note}")
        if self.small:
            warn(
                "cluster: left as they are, because they (or each of their channels) have no more weights than values: "
                f"{', '.join(self.small)}."
            )


def _axes(site: Site) -> tuple[int, ...]:
    """The axes that number the output channels."""
    # As the scales of a quantized layer go: by other channels, a channel would get the codes of several codebooks.
    if site.holder.channel_axes is not None:
        return site.holder.channel_axes
    return (-2, -1) if site.geometry.depthwise else (site.geometry.output_axis,)


METHOD = Method(Clustering, "cluster", cluster, put_codebooks, has_codebooks)

"""The `[clustering]` section of a recipe: how `kquant.cluster` shares weights.

[clustering]
clusters = 16
per_channel = true
[[rules]]
layer = "head"
clustering = { clusters = 64 }          # 0 leaves the layer as it is
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from kquant.recipe.section import Section


def _sharing(given: Any) -> Any:
    if not isinstance(given, bool) and given != "scale":
        raise ValueError('must be false, true or "scale"')
    return given


class Clustering(Section):
    """The arguments of `kquant.cluster`, which explains them; 0 clusters leave the weights."""

    key: ClassVar[str] = "clustering"
    place: ClassVar[int] = 2  # behind pruning, whose zeros a codebook keeps

    clusters: int = Field(default=16, ge=0)
    init: Literal["kmeans++", "linear", "density", "random"] = "kmeans++"
    per_channel: Annotated[bool | Literal["scale"], BeforeValidator(_sharing)] = False
    preserve_sparsity: bool = True
    train_values: bool = True
    depthwise: bool = False
    aggregation: Literal["sum", "mean"] = "sum"
    seed: int = Field(default=0, ge=0)
    entropy: float = Field(default=0.0, ge=0.0)
    target_bytes: int | None = Field(default=None, ge=1)

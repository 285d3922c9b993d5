"""The `[clustering]` section of a recipe: how `kquant.cluster` shares weights.

[clustering]
clusters = 16
per_channel = true
[[rules]]
layer = "head"
clustering = { clusters = 64 }          # 0 leaves the layer as it is
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Clustering(BaseModel):
    """The arguments of `kquant.cluster`, which explains them; 0 clusters leave the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clusters: int = Field(16, ge=0)
    init: Literal["kmeans++", "linear", "density", "random"] = "kmeans++"
    per_channel: bool | Literal["scale"] = False
    preserve_sparsity: bool = True
    train_values: bool = True
    depthwise: bool = False
    aggregation: Literal["sum", "mean"] = "sum"
    seed: int = Field(0, ge=0)

"""Work of many processes as tasks of Ray (`pip install 'kquant[ray]'`): the same functions, on a cluster.

    data, cut between batches -> `calibration`: a task for each shard -> `Observations`, added up in order
    recipes -> `candidates`: a task for each -> rows, the best first
    a search -> `searches`: tasks for what it will ask for -> what the search returns
    layers to be pruned -> `scans`: a task for each -> the scan
    widths and ranks -> `shrinking`: a task for each -> the smaller model

A model comes in with data or recipes; what the same work on one machine would return goes out. A task is a function of
what it is given, so one that a killed worker leaves is done again to the same bits. A new verb is a file here, which
hands its task to `finished` of `shipping`.
"""

from kquant.on_ray.calibration import observe
from kquant.on_ray.candidates import Candidates, try_recipes
from kquant.on_ray.scans import scan_sparsity
from kquant.on_ray.searches import analyze, autotune, mixed_precision
from kquant.on_ray.shrinking import factorize, prune_channels

__all__ = [
    "Candidates",
    "analyze",
    "autotune",
    "factorize",
    "mixed_precision",
    "observe",
    "prune_channels",
    "scan_sparsity",
    "try_recipes",
]

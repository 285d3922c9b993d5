"""Masks and codebooks of the float model, put on the kernels of the layers that its layers have become."""

from __future__ import annotations

from typing import Any

import numpy as np

from kquant.core.messages import warn
from kquant.core.origin import identities
from kquant.layers.transform import Carried, Transform, clone, kernel_at

MOSTLY = 0.5  # a layer was made of a kernel where more than this share of its weights are that kernel's


class Places:
    """Where what `release` took off a float model finds its place again.

    It remembers what was placed, because only the end tells what was not: a layer of the user may become several, each
    asked for in its turn.

    Args:
        carried: layer -> path of a kernel -> its values and transforms.
    """

    def __init__(self, carried: Carried) -> None:
        self.carried = carried
        self._placed: set[tuple[str, str]] = set()  # (layer, path)
        self._lost: set[tuple[str, str]] = set()  # those that found their place in part

    def holds(self, op: Any) -> bool:
        """True where the user's layer, or the one that it came from, had masks or codebooks."""
        return any(name in self.carried for name, _ in identities(op))

    def of(self, op: Any, path: str, gain: np.ndarray | None = None) -> list[Transform]:
        """Masks and codebooks of the user's layer, for the kernel of the layer that it has become."""
        kernel = kernel_at(op, path)
        for name, _ in identities(op):
            held = self.carried.get(name, {}).get(path)
            # a layer that became another one of its name (Conv1D a Conv2D) has kernels of other shapes: see `_derived`
            if held is not None and held.values.shape == tuple(kernel.shape):
                self._placed.add((name, path))
                return [t.carried() or clone(t) for t in held.transforms]
        return self._derived(op, kernel.numpy() if gain is None else kernel.numpy() / gain)

    def _derived(self, op: Any, kernel: np.ndarray) -> list[Transform]:
        """For a layer that the user's was taken apart into: of its kernels only the values are left, and tell which."""
        places = [(name, path) for name, _ in identities(op) for path in self.carried.get(name, {})]
        if not np.any(kernel) and not all(np.any(self.carried[name][path].values) for name, path in places):
            return []  # a kernel that starts at zero: a mask made of its values would hold all of it for good
        shares = {place: self.carried[place[0]][place[1]].share_of(kernel) for place in places}
        name, path = max(shares, key=shares.__getitem__, default=("", ""))
        if shares.get((name, path), 0.0) < MOSTLY:
            return []
        old = self.carried[name][path].transforms
        made = [new for t in old if (new := t.derived(kernel)) is not None]
        (self._placed if len(made) == len(old) else self._lost).add((name, path))
        return [t for t in made if t.rank or not np.all(kernel)]

    def warn_left(self) -> None:
        """Name kernels whose masks or codebooks have no place: their values stay, training would not keep them."""
        every = {(name, path) for name, kernels in self.carried.items() for path in kernels}
        left = [f"{name} ({path})" for name, path in sorted((every - self._placed) | self._lost)]
        if left:
            warn(
                f"quantize: the masks and codebooks of {', '.join(left)} are in the weights now, but training would "
                "not keep them: these layers become others. Quantize without training, or leave them out of prune and "
                "cluster."
            )

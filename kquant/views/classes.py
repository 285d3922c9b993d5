"""Which tensors of a plan share an encoding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Classes:
    """Union-find over tensors that must share an encoding.

    Attributes:
        parent: id(tensor) -> the next one on the way to the root of its class.
        fixed: root -> what is prescribed: (scale, zero point), or the edge of a loop.
        inside: id(tensor) at an edge of a loop -> the tensor on the other side, which has its range.
    """

    parent: dict[int, int] = field(default_factory=dict)
    fixed: dict[int, Any] = field(default_factory=dict)
    inside: dict[int, Any] = field(default_factory=dict)

    def root(self, tensor: Any) -> int:
        """Which class a tensor is in."""
        return self._root_of(id(tensor))

    def _root_of(self, key: int) -> int:
        # a tensor that was never joined is its own root: nobody need list all tensors beforehand
        while self.parent.get(key, key) != key:
            key = self.parent[key]
        return key

    def join(self, a: Any, b: Any) -> None:
        """Give two tensors one encoding, and with them all that share one with either."""
        first, second = self.root(a), self.root(b)
        if first != second:
            self.parent[second] = first
            # where both are prescribed they are equal: `plan` requantizes an input that would bring another one
            if second in self.fixed:
                self.fixed[first] = self.fixed.pop(second)

    def close(self, a: Any, source: Any) -> None:
        """`a` has the encoding of `source`, as one that is prescribed: neither joins the other's class."""
        self.inside[id(a)] = source
        self.fixed[self.root(a)] = ("closed", id(a))

    def held(self, tensor: Any) -> int:
        """The class whose range gives a tensor its encoding."""
        root = self.root(tensor)
        members = [source for key, source in self.inside.items() if self._root_of(key) == root]
        return self.held(members[0]) if members else root

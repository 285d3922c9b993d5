"""Prefix codes of bounded length, and the chain of tables by which a decoder reads them.

    counts  ->  `code_lengths`  ->  lengths  ->  `plan_tables`  ->  widths of tables  ->  `lay_out`  ->  entries

Codes are canonical: short ones first, equal ones in the order of their symbols. So the tree of a code is told by how
many leaves it has at each depth: those stand at the left, what branches further stands at the right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Bits that one look-up takes at most: an entry tells of how many of them its symbol used, in 4 bits.
MAX_WIDTH = 15
# What a look-up counts as, in bytes: a table twice as wide may cost one byte for every 256 look-ups that it saves.
LOOKUP_BYTES = 1 / 256


@dataclass(frozen=True, eq=False)
class Tree:
    """A canonical code.

    Attributes:
        leaves: how many codes of each length there are, 0 first.
        branches: how many nodes of each depth branch further.
        visits: for each depth, how often each of those is passed while everything is read.
    """

    leaves: np.ndarray
    branches: tuple[int, ...]
    visits: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Tables:
    """How many bits the table takes that begins at a node; nodes by depth, then from left to right.

    Attributes:
        tree: of the code.
        widths: bits of a table that would begin at each node.
        entries: of all tables that the root leads to.
        lookups: that it takes to read everything.
    """

    tree: Tree
    widths: tuple[np.ndarray, ...]
    entries: int
    lookups: int


@dataclass(frozen=True)
class Entry:
    """One entry of the tables: a leaf with the bits of this table that it used, or the table to go on in.

    Attributes:
        leaf: its place among the codes, the shortest first; -1 for another table.
        bits: used of this table, or the width of the next one.
        table: where the next one begins, in entries from the first of all.
    """

    leaf: int
    bits: int
    table: int = 0


def code_lengths(counts: np.ndarray, limit: int) -> np.ndarray:
    """Bits of each symbol in the shortest prefix code without longer ones: package-merge.

    Larmore and Hirschberg, "A fast algorithm for optimal length-limited Huffman codes", J. ACM 37 (1990).

    Args:
        counts: how often each symbol occurs, int64[symbols], at least two of them.
        limit: the longest code.

    Returns:
        int64[symbols]; never 0.

    Raises:
        ValueError: too few bits to tell the symbols apart.

    Example:
        >>> from kquant.tflite.prefix_code import code_lengths
        >>> code_lengths(np.array([45, 13, 12, 16, 9, 5]), 16).tolist()
        [1, 3, 3, 3, 4, 4]
    """
    symbols = len(counts)
    if symbols > 1 << limit:
        raise ValueError(f"{limit} bits cannot tell {symbols} symbols apart")
    order = np.argsort(counts, kind="stable")
    coins = counts[order].astype(np.int64)
    packages = np.zeros(0, np.int64)
    merged: list[np.ndarray] = []
    for _ in range(limit):
        both = np.concatenate([coins, packages])
        # stable, so that a coin comes before a package of its worth and codes do not get longer than they need to
        rank = np.argsort(both, kind="stable")
        merged.append(rank >= symbols)
        worth = both[rank]
        packages = worth[0 : len(worth) // 2 * 2 : 2] + worth[1::2]
    lengths, taken = np.zeros(symbols, np.int64), 2 * symbols - 2
    for packed in reversed(merged):
        inside = int(np.count_nonzero(packed[:taken]))
        lengths[: taken - inside] += 1
        taken = 2 * inside
    result = np.empty(symbols, np.int64)
    result[order] = lengths
    return result


def canonical_order(lengths: np.ndarray) -> np.ndarray:
    """Symbols in the order of their codes."""
    return np.argsort(lengths, kind="stable")


def canonical_codes(lengths: np.ndarray) -> np.ndarray:
    """The code of each symbol, int64[symbols]; of a symbol with `n` bits, the lowest `n` bits.

    Example:
        >>> from kquant.tflite.prefix_code import canonical_codes
        >>> [f"{code:0{bits}b}" for code, bits in zip(canonical_codes(np.array([2, 1, 2])), (2, 1, 2))]
        ['10', '0', '11']
    """
    order = canonical_order(lengths)
    longest = int(lengths.max())
    # As fractions of 1, codes are the sums of what stands before them.
    shares = 1 << (longest - lengths[order])
    codes = np.empty_like(lengths)
    codes[order] = (np.cumsum(shares) - shares) >> (longest - lengths[order])
    return codes


def tree_of(lengths: np.ndarray, counts: np.ndarray) -> Tree:
    """The tree of a canonical code and how often its nodes are passed."""
    leaves = np.bincount(lengths)
    branches = [1]
    for n in leaves[1:]:
        branches.append(2 * branches[-1] - int(n))
    weights = counts[canonical_order(lengths)]
    starts = np.cumsum(leaves) - leaves
    visits: list[np.ndarray] = [np.zeros(0, np.int64)]
    for depth in range(len(leaves) - 1, 0, -1):
        nodes = np.concatenate([weights[starts[depth] : starts[depth] + leaves[depth]], visits[0]])
        visits.insert(0, nodes[0::2] + nodes[1::2])
    return Tree(leaves, tuple(branches), tuple(visits))


def plan_tables(tree: Tree, entry_bytes: int, most_entries: int) -> Tables:
    """Widths with the fewest bytes, look-ups counted as `LOOKUP_BYTES`; by dynamic programming from the leaves on.

    Args:
        tree: of a code of two symbols or more.
        entry_bytes: of an entry.
        most_entries: that the tables may have, as far as they then count look-ups.
    """
    planned = _widths(tree, entry_bytes, LOOKUP_BYTES)
    return planned if planned.entries <= most_entries else _widths(tree, entry_bytes, 0.0)


def _widths(tree: Tree, entry_bytes: int, lookup: float) -> Tables:
    deepest = len(tree.leaves) - 1
    widths: list[np.ndarray] = [np.zeros(0, np.int64)] * (deepest + 1)
    # For each depth: costs, entries and look-ups of the first nodes together, none of them first.
    sums = [np.zeros((3, 1))] * (deepest + 1)
    for depth in range(deepest - 1, -1, -1):
        low = np.arange(tree.branches[depth])
        high, best, chosen = low + 1, np.full((3, len(low)), np.inf), np.zeros(len(low), np.int64)
        for width in range(1, min(MAX_WIDTH, deepest - depth) + 1):
            below = depth + width
            # of two children of each node, the leaves stand at the left
            low, high = (np.maximum(2 * ends - tree.leaves[below], 0) for ends in (low, high))
            costs = sums[below][:, high] - sums[below][:, low]
            costs += np.array([[entry_bytes << width], [1 << width], [0]])
            better = costs[0] < best[0]
            best[:, better], chosen[better] = costs[:, better], width
        best[0] += lookup * tree.visits[depth]
        best[2] += tree.visits[depth]
        widths[depth] = chosen
        sums[depth] = np.concatenate([np.zeros((3, 1)), np.cumsum(best, axis=1)], axis=1)
    _, entries, lookups = sums[0][:, 1]
    return Tables(tree, tuple(widths), int(entries), int(lookups))


def lay_out(tables: Tables) -> list[Entry]:
    """The entries of all tables, that of the root first, each table behind the entry that leads to it."""
    entries: list[Entry] = []
    waiting, end = [(0, 0)], 1 << int(tables.widths[0][0])
    for depth, node in waiting:  # grows as it is read
        for leaf, bits, below in _reached(tables, depth, node):
            if leaf >= 0:
                entries.append(Entry(leaf, bits))
                continue
            width = int(tables.widths[depth + bits][below])
            entries.append(Entry(-1, width, end))
            waiting.append((depth + bits, below))
            end += 1 << width
    return entries


def _reached(tables: Tables, depth: int, node: int) -> Iterator[tuple[int, int, int]]:
    """For all bits of a table: the leaf and how many of them it used; or -1, the table's width, and the node below."""
    leaves, width = tables.tree.leaves, int(tables.widths[depth][node])
    first = np.cumsum(leaves) - leaves
    for index in range(1 << width):
        at = node
        for used in range(1, width + 1):
            at = 2 * at + (index >> (width - used) & 1)
            if at < leaves[depth + used]:
                yield int(first[depth + used]) + at, used, 0
                break
            at -= int(leaves[depth + used])
        else:
            yield -1, width, at

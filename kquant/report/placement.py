"""Where a model runs on a target with an accelerator: for the page of `kquant.check`."""

from __future__ import annotations

from collections.abc import Iterable

from kquant.core.messages import first_of
from kquant.core.table import Table
from kquant.prepare.placement import Cut, Placement


def said_of(placed: Placement) -> str:
    """The result in a few words."""
    count = f"{placed.on_accelerator} of {placed.operators} operators run on {placed.accelerator}"
    count += f", of {placed.unknown} it is unknown" if placed.unknown else ""
    if placed.cuts == "nothing" or placed.parts < 1:
        return count
    parts = f"{placed.parts} parts" if placed.parts > 1 else "one part"
    more = f", {placed.parts_if_left} where what is unknown is left" if placed.parts_if_left != placed.parts else ""
    return f"{count}; the graph falls into {parts}{more}"


def placement_findings(placed: Placement) -> Iterable[str]:
    """What parts the graph, and what joins it again."""
    for cut in placed.cut_by:
        what = "ends what it runs" if placed.cuts == "rest" else "parts the graph"
        kind = f" ({cut.kind})" if cut.kind else ""
        yield f"{first_of(cut.layers)}{kind} {what}: {placed.accelerator} does not take {cut.reason}. {_joined(cut)}"
    if placed.most is not None and placed.parts > placed.most and placed.cuts == "graph":
        ran = "the largest" if placed.most == 1 else f"the {placed.most} largest"
        yield f"Of {placed.parts} parts {placed.accelerator} runs {ran} only, unless the application says otherwise."


def _joined(cut: Cut) -> str:
    """A change that was tried, or that there is none."""
    change = cut.change
    if change is None:
        return "No change that was tried joins it: put other layers in its place, or compute it outside of the model."
    function = "the same function" if change.same_function else "another function, so train again"
    parts = "one part" if change.parts == 1 else f"{change.parts} parts"
    counted = f"{change.on_accelerator} of {change.operators} operators there"
    return f"Tried: {change.what} ({function}) makes it {parts}, {counted}."


def placement_facts(placed: Placement) -> Iterable[str]:
    """What it was read from, what it needs, and what nobody here can see."""
    yield f"where it runs says {placed.source}"
    if placed.needs:
        yield f"the operators' versions need TensorFlow Lite {placed.needs} or later"
    yield from (f"not checked: {limit}" for limit in placed.limits)


def placement_table(placed: Placement) -> Table:
    """Each layer and its place."""
    left = "reference kernel" if placed.cuts == "nothing" else "processor"
    places = {"accelerator": placed.accelerator, "both": "both", "processor": left, "unknown": "unknown"}
    rows = tuple(
        (row.layer, ", ".join(row.operators), places[row.place], ", ".join(map(str, row.parts)), row.reason)
        for row in placed.layers
    )
    return Table("Where it runs", ("layer", "operators", "runs on", "part", "left because of"), rows)

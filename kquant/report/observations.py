"""What data showed of each tensor, as a page: `kquant.observe`."""

from __future__ import annotations

from kquant.calibration.observations import Observations
from kquant.calibration.tensor_statistics import Statistics
from kquant.report.page import Page, Table, page


@page.register
def _observations(o: Observations) -> Page:
    several = {name for name, call in o.tensors if call}
    rows = tuple(
        (name + f", call {call + 1}" * (name in several), *_range(statistics))
        for (name, call), statistics in o.tensors.items()
    )
    columns = ("tensor", "lowest", "highest", "batches")
    return Page(
        headline=f"{len(o.tensors)} tensors in {o.samples:,} samples",
        ok=o.samples > 0,
        findings=() if o.samples else ("No samples were seen: there are no ranges to be had from these.",),
        facts=(),
        tables=(Table("What the float model gave", columns, rows, columns[1:]),),
    )


def _range(s: Statistics) -> tuple[str, str, str]:
    if not len(s.lows):
        return "-", "-", "0"
    return f"{s.lows.min():.4g}", f"{s.highs.max():.4g}", f"{len(s.lows):,}"

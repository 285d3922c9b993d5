"""Zeros, the scan of sparsities, and channels that may leave, as pages; their tables are the reports' own."""

from __future__ import annotations

from kquant.masking.zeros import Sparsity
from kquant.report.page import Page, page
from kquant.search.sparsity_scan import SparsityScan
from kquant.shrink.channel_pruning import ChannelGroups


@page.register
def _sparsity(report: Sparsity) -> Page:
    loose = [k.layer for k in report.kernels if not k.masked and k.zeros]
    said = f"zeros without a mask, which training does not keep: {', '.join(loose)}"
    return Page(
        headline=f"{100 * report.total:.1f} % of the weights in {len(report.kernels)} kernels are zero",
        ok=True,
        findings=(said,) if loose and any(k.masked for k in report.kernels) else (),
        facts=(),
        tables=(report.table,),
    )


@page.register
def _scan(report: SparsityScan) -> Page:
    return Page(
        headline=f"A sparsity for each of {len(report.layers)} layers, {100 * report.target:g} % in total",
        ok=True,
        findings=(),
        facts=(f"each layer pruned alone, without training: {report.unit}",),
        tables=(report.table,),
    )


@page.register
def _channels(report: ChannelGroups) -> Page:
    able = sum(group.removable > 0 for group in report.groups)
    return Page(
        headline=f"{able} of {len(report.groups)} groups of channels can get narrower",
        ok=True,
        findings=(),
        facts=(),
        tables=(report.table,),
    )

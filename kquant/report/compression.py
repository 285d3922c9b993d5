"""Zeros, the scan of sparsities, and channels that may leave, as tables."""

from __future__ import annotations

from kquant.report.page import Page, Table, page
from kquant.shrink.prune import COLUMNS, ChannelGroups
from kquant.train.scan import SparsityScan
from kquant.train.sparsity import Sparsity


@page.register
def _sparsity(report: Sparsity) -> Page:
    rows = tuple(
        (k.layer, k.path, f"{k.size:,}", f"{k.zeros:,}", f"{100 * k.sparsity:.1f}", "yes" if k.masked else "no")
        for k in report.kernels
    )
    loose = [k.layer for k in report.kernels if not k.masked and k.zeros]
    said = f"zeros without a mask, which training does not keep: {', '.join(loose)}"
    return Page(
        headline=f"{100 * report.total:.1f} % of the weights in {len(report.kernels)} kernels are zero",
        ok=True,
        findings=(said,) if loose and any(k.masked for k in report.kernels) else (),
        facts=(),
        tables=(
            Table(
                "Zeros",
                ("layer", "kernel", "weights", "zeros", "%", "masked"),
                rows,
                right=("weights", "zeros", "%"),
            ),
        ),
    )


@page.register
def _scan(report: SparsityScan) -> Page:
    tried = tuple(f"{100 * s:g} %" for s in report.sparsities)
    rows = tuple(
        (row.layer, f"{row.weights:,}", *(f"{v:.4g}" for v in row.values), f"{100 * row.chosen:.1f} %")
        for row in report.layers
    )
    dense = report.dense
    unit = "SQNR of the outputs in dB" if dense is None else f"evaluate; the dense model gives {dense:.4g}"
    return Page(
        headline=f"A sparsity for each of {len(report.layers)} layers, {100 * report.target:g} % in total",
        ok=True,
        findings=(),
        facts=(f"each layer pruned alone, without training: {unit}",),
        tables=(
            Table("Layers", ("layer", "weights", *tried, "chosen"), rows, right=("weights", *tried, "chosen")),
        ),
    )


@page.register
def _channels(report: ChannelGroups) -> Page:
    able = sum(group.removable > 0 for group in report.groups)
    return Page(
        headline=f"{able} of {len(report.groups)} groups of channels can get narrower",
        ok=True,
        findings=(),
        facts=(),
        tables=(Table("Channels", COLUMNS, report.rows, right=("channels", "MACs", "may leave")),),
    )

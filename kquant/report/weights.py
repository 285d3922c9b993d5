"""Bytes of weights as tables: the largest tensors beside an export, all of them on their own page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kquant.exact.narrow import Removed
from kquant.report.page import Page, Table, page
from kquant.tflite.reader import FileModel
from kquant.tflite.storage import Decoding, storages
from kquant.tflite.weight_bytes import FileBytes, LayerBytes, Sparse

SHOWN = 6
# Of every file; one for each storage stands before the last.
COLUMNS = ("weights", "operator", "zeros", "codes", "a channel", "raw", "stored", "deflated")


@page.register
def _weights(report: FileBytes) -> Page:
    return Page(
        headline=f"{len(report.layers)} tensors of weights in a file of {report.file_bytes:,} bytes",
        ok=True,
        findings=weight_findings(report),
        facts=tuple(weight_facts(report)),
        tables=(weights_table(report, len(report.layers)), parts_table(report)),
    )


def weight_findings(report: FileBytes) -> tuple[str, ...]:
    """What went wrong while counting."""
    return (report.vela_refusal,) if report.vela_refusal else ()


def weight_facts(report: FileBytes) -> Iterable[str]:
    """Totals in a line or two."""
    totals = report.totals
    stored = "" if totals["stored_bytes"] == totals["raw_bytes"] else f", stored in {totals['stored_bytes']:,}"
    yield (
        f"codes {totals['raw_bytes']:,} bytes{stored}, {100 * report.sparsity:.1f} % of them zeros; deflated "
        f"{totals['deflated_bytes']:,}, the whole file {report.deflated_file_bytes:,}"
    )
    decoded = "".join(f"with {one.title} (TFLM) {totals[f'{key}_bytes']:,}, " for key, one in storages().items())
    yield f"{decoded}with sparse tensors (LiteRT) {totals['sparse_bytes']:,}"
    if report.vela_bytes is not None:
        yield f"weights and scales as Vela encodes them {report.vela_bytes:,} bytes"


def decoding_facts(decoding: Decoding | None) -> Iterable[str]:
    """What decoding costs in a line."""
    if decoding is not None:
        forms = ", ".join(f"{len(names)} in {storages()[key].title}" for key, names in decoding.tensors.items())
        yield (
            f"{decoding.saved_bytes:,} bytes less: weights {forms}; each call decodes {decoding.weights:,} of them in "
            f"{decoding.lookups:,} steps, the arena grows by up to {decoding.arena_growth_bytes:,} bytes"
        )


def removed_facts(shrunk: Mapping[str, int] | None) -> Iterable[str]:
    """What is not in a file, in a line.

    Args:
        shrunk: the totals, of `Narrowed.totals` or of a file's metadata.
    """
    if shrunk:
        yield (
            f"{shrunk.get('channels', 0):,} channels of {shrunk.get('layers', 0):,} layers are not in the file, as no "
            f"output depends on them: {shrunk.get('weights', 0):,} weights less, equal codes"
        )


def removed_table(removed: Sequence[Removed]) -> Table:
    """Of each layer that became smaller, what is left."""
    columns = ("layer", "channels", "left", "one code", "weights", "weights left")
    rows = (
        (r.layer, f"{r.channels:,}", f"{r.kept:,}", f"{r.constant:,}", f"{r.weights:,}", f"{r.weights_kept:,}")
        for r in removed
    )
    return Table("Channels that no output depends on", columns, tuple(rows), columns[1:])


def weights_table(report: FileBytes, shown: int = SHOWN) -> Table:
    """The largest tensors, bytes in every form; a form without a number is none that the runtime executes."""
    largest = sorted(report.layers, key=lambda layer: -layer.raw_bytes)[:shown]
    # the largest are shown, in the order of the file
    kept = [layer for layer in report.layers if layer in largest]
    title = "Bytes of weights"
    if len(kept) < len(report.layers):
        title += f": the largest {len(kept)} of {len(report.layers)}, kquant.layer_bytes has all"
    columns = (*COLUMNS, *(storage.column for storage in storages().values()), "sparse")
    return Table(title, columns, tuple(_row(layer) for layer in kept), columns[2:])


def parts_table(report: FileBytes) -> Table:
    """What every byte of a file is."""
    rows = ((part.name, f"{part.bytes:,}", f"{100 * part.bytes / report.file_bytes:.1f} %") for part in report.parts)
    columns = ("part", "bytes", "of the file")
    return Table(f"Every byte: {report.overhead_bytes:,} are no weights", columns, tuple(rows), columns[1:])


def tables_table(model: FileModel) -> Table:
    """Weights of a file that a DECODE writes."""
    columns = ("weights", "in", "bits", "tables", "raw", "stored")
    known = storages()
    rows = (
        (t.name, known[t.storage].title, str(t.bits), str(t.count), f"{t.raw_bytes:,}", f"{t.stored_bytes:,}")
        # weights that several DECODEs write, each for its reader, are one row
        for t in {t.name: t for t in model.tables}.values()
    )
    return Table("Weights that are decoded", columns, tuple(rows), columns[2:])


def _row(layer: LayerBytes) -> tuple[str, ...]:
    return (
        layer.name,
        layer.operator,
        f"{100 * layer.sparsity:.1f} %",
        str(layer.unique),
        str(layer.unique_per_channel),
        f"{layer.raw_bytes:,}",
        f"{layer.stored_bytes:,}",
        f"{layer.deflated_bytes:,}",
        *map(_bytes, layer.decoded_bytes.values()),
        "-" if layer.sparse is None else _sparse(layer.sparse),
    )


def _sparse(sparse: Sparse) -> str:
    return f"{sparse.size_bytes:,} ({sparse.form}{'' if sparse.on_xnnpack else ', no XNNPACK'})"


def _bytes(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"

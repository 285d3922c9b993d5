"""Rows of what there is to know of a file, in words; they stand in the README of a project."""

from __future__ import annotations

from kquant.exporting.export_file import ExportReport
from kquant.exporting.model_card import ModelCard
from kquant.projects.arena import Arena, unit_scales_bytes
from kquant.projects.exported import Array
from kquant.tflite.reader import FileModel

MUCH = 0.1  # of the arena: worth a word


def card_rows(exported: ExportReport, file: FileModel, array: Array, calls: int) -> list[tuple[str, str]]:
    """What there is to know, row by row.

    Args:
        exported: the report of the file.
        file: what it holds.
        array: the file as the project holds it.
        calls: golden vectors.
    """
    operators = ", ".join(f"{count} {code}" for code, count in sorted(exported.operators.items()))
    size = f"{exported.file_bytes:,} bytes, of them weights {exported.weight_bytes:,}"
    if array.compiled is not None and array.compiled.compiler:
        size = f"{len(array.content):,} bytes as it is compiled; model.tflite {size}"
    return [
        *([("file", size)] if array.arena is None else [("flash", size), *_memory(file, array.arena)]),
        *([] if array.compiled is None else [("NPU", str(array.compiled))]),
        *_accuracy(exported.card),
        ("multiply-accumulates", f"{exported.macs:,} for one sample"),
        ("operators", operators),
        ("recipe, target", f"{exported.recipe}, {exported.target}"),
        ("golden vectors", str(calls)),
    ]


def _accuracy(card: ModelCard) -> list[tuple[str, str]]:
    """A row where it was measured."""
    said = ", ".join(f"{name} {100 * value:.2f} %" for name, value in card.accuracies.items())
    return [("accuracy", f"{said}, of {card.samples:,} samples on {card.runtime}")] if said else []


def _memory(file: FileModel, arena: Arena) -> list[tuple[str, str]]:
    scales = unit_scales_bytes(file)
    said = f"{scales:,} bytes of the arena; recipe 'int8-dense-tensor' takes one for each layer"
    host = f"{arena.smallest_bytes:,} on a 64-bit host, {arena.margin_bytes:,} margin"
    if not arena.tried:
        host = f"{arena.smallest_bytes:,} told from the compiler's plan, not tried, {arena.margin_bytes:,} margin"
    shared = f"activations {arena.activation_bytes:,}, scratch of kernels {arena.scratch_bytes:,}"
    if not arena.tried:
        shared = f"activations and scratch of the NPU {arena.activation_bytes:,}"
    stays = f"persistent {arena.persistent_bytes:,} bytes"
    return [
        ("arena", f"{arena.bytes:,} bytes: {host}"),
        ("of it", f"{shared}, {stays}"),
        *([("most tensors alive", f"at {arena.peak_layer}: {arena.peak_bytes:,} bytes")] if arena.peak_layer else []),
        *([("scales of single units", said)] if scales > MUCH * arena.bytes else []),
    ]

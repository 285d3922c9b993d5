"""Pages of `kquant.autotune`, `kquant.mixed_precision` and `on_ray.try_recipes`, and the Pareto curve as a picture."""

from __future__ import annotations

import importlib
import importlib.util
import io
from pathlib import Path

from kquant.files.atomic import write_atomically
from kquant.files.destination import destination, path_of
from kquant.on_ray.candidates import Candidates
from kquant.report.tables import Page, Table, page
from kquant.search.bit_widths import Mixed
from kquant.search.byte_ladder import ByteLadder
from kquant.search.ladder import Rung, Tuned

POOR = 10.0  # dB: errors of a tenth of the outputs' power
UNITS = {"flash_bytes": "bytes of the file", "arena_bytes": "bytes of arena", "bit_macs": "MACs times bits"}


@page.register
def _tuned(t: Tuned) -> Page:
    columns = ("rung", "score", "drop", "file, bytes", "seconds", "")
    rows = tuple((r.name, *_figures(r), f"{r.seconds:.1f}", _state(r, t.best)) for r in t.rungs)
    verdict = f"drop {t.best.drop:+.4f} of the {t.max_drop:g} allowed"
    seconds = sum(r.seconds for r in t.rungs)
    return Page(
        headline=f"{t.best.name}: score {t.best.score:.4f} against {t.float_score:.4f} in float, {verdict}",
        ok=t.ok,
        findings=() if t.ok else (f"The budget does not hold: {t.advice}",),
        facts=(f"file {t.best.file_bytes:,} bytes", f"rungs tried: {len(t.rungs)}, in {seconds:.1f} s"),
        tables=(Table("Rungs, in the order they were tried", columns, rows, columns[1:5]),),
    )


def _state(rung: Rung, best: Rung) -> str:
    """Of one rung: the result, a step on the way to it, or why it failed."""
    if rung is best:
        return "chosen"
    return "better than before" if rung.kept else _failed(rung)


@page.register
def _candidates(c: Candidates) -> Page:
    columns = ("recipe", "score", "drop", "file, bytes", "seconds", "")
    rows = tuple((r.name, *_figures(r), f"{r.seconds:.1f}", _failed(r)) for r in c.rows)
    failed = sum(bool(r.failed) for r in c.rows)
    return Page(
        headline=f"{c.best.name}: score {c.best.score:.4f} against {c.float_score:.4f} in float",
        ok=not c.best.failed,
        findings=(f"{failed} of {len(c.rows)} recipes failed: the last column says why.",) if failed else (),
        facts=(f"file {c.best.file_bytes:,} bytes", f"{len(c.rows)} recipes in {sum(r.seconds for r in c.rows):.1f} s"),
        tables=(Table("Recipes, the best first", columns, rows, columns[1:5]),),
    )


@page.register
def _budget(ladder: ByteLadder) -> Page:
    columns = (
        "rung",
        "file, bytes",
        f"{ladder.unit}",
        "arena, bytes",
        "steps of decoding",
        "TFLM here, ms",
        "seconds",
        "",
    )
    best = {id(rung) for rung in ladder.pareto}
    rows = tuple(
        (r.name, "-", "-", "-", "-", "-", f"{r.seconds:.1f}", f"failed: {r.failed}")
        if r.failed
        else (
            r.name,
            f"{r.file_bytes:,}",
            f"{r.score:.4g}",
            f"{r.arena_bytes:,}",
            f"{r.lookups:,}",
            "-" if r.host_ms is None else f"{r.host_ms:.3g}",
            f"{r.seconds:.1f}",
            "kept" if r.kept else "Pareto" if id(r) in best else "",
        )
        for r in ladder.rungs
    )
    of_float = "" if ladder.unit == "dB" else f" against {ladder.float_score:.4g} in float"
    held = f"{ladder.best.file_bytes:,} of {ladder.flash_bytes:,} bytes"
    poor = (
        f"Outputs lie {ladder.best.score:.3g} dB above their error only: the file holds the budget and hardly computes "
        "what the model does. Give more bytes, or train (train= of kquant.compress)."
    )
    return Page(
        headline=f"{ladder.best.name}: {held}, {ladder.best.score:.4g} {ladder.unit}{of_float}",
        ok=True,
        findings=(poor,) if ladder.unit == "dB" and ladder.best.score < POOR else (),
        facts=(),
        tables=(Table("Files that were tried under the byte budget", columns, rows, columns[1:7]),),
    )


def _figures(rung: Rung) -> tuple[str, str, str]:
    return ("-", "-", "-") if rung.failed else (f"{rung.score:.4f}", f"{rung.drop:+.4f}", f"{rung.file_bytes:,}")


def _failed(rung: Rung) -> str:
    return f"failed: {rung.failed}" if rung.failed else ""


@page.register
def _mixed(m: Mixed) -> Page:
    unit, limit = m.budget
    columns = ("moves", "file, bytes", "arena, bytes", "bit MACs", "SQNR, dB", "score", "")
    # by identity: a point holds a recipe, a dict, and has no hash
    best = {id(p) for p in m.pareto}
    corrected = m.chosen not in m.points  # measured again behind its steps
    rows = tuple(
        (
            f"{p.moves} and steps" if corrected and p is m.chosen else str(p.moves),
            f"{p.flash_bytes:,}",
            "-" if p.arena_bytes is None else f"{p.arena_bytes:,}",
            f"{p.bit_macs:,}",
            f"{p.sqnr_db:.1f}",
            "-" if p.score is None else f"{p.score:.4f}",
            "chosen" if p is m.chosen else "Pareto" if id(p) in best else "",
        )
        for p in (*m.points, *((m.chosen,) if corrected else ()))
    )
    made = tuple((v.layer, f"{v.setting} {'4' if v.setting == 'weights' else '8'} bits") for v in m.made)
    cost = f"{getattr(m.chosen, unit):,} of {limit:,} {UNITS[unit]}"
    missed = f"No choice of widths is inside the budget: the smallest has {cost}."
    # the search did find a model inside the budget; what the caller does next differs
    if corrected and min(getattr(p, unit) for p in m.points) <= limit:
        missed = f"The steps brought the chosen model out of the budget: it has {cost}."
    return Page(
        headline=f"{m.chosen.moves} of {len(m.moves)} layers with fewer bits: {cost}, SQNR {m.chosen.sqnr_db:.1f} dB",
        ok=m.ok,
        findings=() if m.ok else (missed,),
        facts=(),
        tables=(
            Table("Measured models, the dearest first", columns, rows, columns[:-1]),
            Table("Fewer bits for", ("layer", "what"), made),
        ),
    )


def pareto(mixed: Mixed, path: str | Path) -> Path:
    """Draw the measured models of a search: SQNR against the budget's unit, and the Pareto curve through the best.

    Args:
        mixed: what `kquant.mixed_precision` returned.
        path: of the picture, .png, .svg or .pdf.

    Returns:
        The path.

    Raises:
        ImportError: the extra is not installed: `pip install 'kquant[report]'`.
        ValueError: another kind of picture, or the file cannot be written.

    Example:
        >>> model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(64), keras.layers.Dense(3)])
        >>> x = np.random.default_rng(0).normal(size=(64, 32)).astype("float32")
        >>> mixed = kquant.mixed_precision(model, x, flash_bytes=5000, verbose=False)
        >>> kquant.report.pareto(mixed, "pareto.png").name
        'pareto.png'
    """
    check_extra("the Pareto curve", "matplotlib")
    path = path_of(path, "report.pareto", "pareto.png")
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise ValueError(f"report.pareto: {path} must end in .png, .svg or .pdf.")
    destination(path, "report.pareto", "pareto.png")
    # without pyplot, which wants a screen and keeps every figure
    figures = importlib.import_module("matplotlib.figure")
    fig = figures.Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = fig.add_subplot()
    unit, limit = mixed.budget
    curve = mixed.pareto
    ax.plot([getattr(p, unit) for p in curve], [p.sqnr_db for p in curve], "o-", label="Pareto curve")
    rest = [p for p in mixed.points if p not in curve]
    if rest:
        ax.plot([getattr(p, unit) for p in rest], [p.sqnr_db for p in rest], "o", color="0.7", label="other models")
    chosen = mixed.chosen
    ax.plot(getattr(chosen, unit), chosen.sqnr_db, "s", markersize=10, fillstyle="none", color="C3", label="chosen")
    ax.axvline(limit, color="C3", linewidth=1, linestyle="--", label="budget")
    ax.set_xlabel(UNITS[unit])
    ax.set_ylabel("SQNR of the outputs, dB")
    ax.xaxis.set_major_formatter(_with_commas)
    ax.tick_params(axis="x", rotation=20)
    ax.legend(loc="lower right")
    content = io.BytesIO()
    fig.savefig(content, format=kind, dpi=150)
    write_atomically(path, content.getvalue(), "report.pareto")
    return path


def check_extra(what: str, *modules: str) -> None:
    """Refuse where the extra `report` is not installed.

    Raises:
        ImportError: gives the command that installs it.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{what} needs {' and '.join(missing)}: pip install 'kquant[report]'")


def _with_commas(value: float, _: int) -> str:
    return f"{value:,.0f}"

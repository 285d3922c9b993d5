"""HTML reports: one for every result, whole in itself, read without colour, script or mouse; figures are its own."""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import browser
import keras
import numpy as np
import pytest

import kquant
from kquant import report
from kquant.analysis.metrics import top1
from kquant.core.result import Result
from kquant.report.answers import price
from kquant.report.drawing import SIDE, Scale
from kquant.report.html_file import fragment, render_html, sheet_of
from kquant.report.sheet import Sheet
from kquant.search.answers import Answer, Answers, Trial
from kquant.tflite.memory_plan import memory_plan

VOID = {"meta", "wbr", "br", "hr", "img", "input", "link"}
QUIET: dict[str, Any] = {"verbose": False}
ODD = "a<b>&\"c'"


class Tree(HTMLParser):
    """Tags that open and close, and what stands in them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[int] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            # what may not stand inside of a paragraph, a table or a list
            inside = self.open[-1] if self.open else ""
            assert not (inside == "p" and tag in ("p", "div", "table", "ul", "h1", "h2", "h3", "pre", "dl")), tag
            assert inside not in ("ul", "ol") or tag == "li", tag
            assert inside not in ("tr",) or tag in ("th", "td"), tag
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of every public result, of one small model."""
    folder = tmp_path_factory.mktemp("html")
    keras.utils.set_random_seed(0)
    stack = [
        keras.layers.Conv2D(8, 3, activation="relu", name="first"),
        keras.layers.Conv2D(8, 3, activation="relu", name="second"),
        keras.layers.Flatten(name="flat"),
        keras.layers.Dense(4, activation="softmax", name="kind"),
    ]
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), *stack], name="net")
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
    y = model(x).numpy().argmax(1)
    y[::8] = (y[::8] + 1) % 4  # not all right in float either
    compressed = kquant.compress(model, x, path=folder / "net.tflite", target="tflm", **QUIET)
    q, path = compressed.model, compressed.report.path
    budget = {"target": "tflm", "flash_bytes": compressed.report.file_bytes - 200, **QUIET}
    budgeted = kquant.compress(model, x, path=folder / "less.tflite", **budget)
    search = {"flash_bytes": compressed.report.file_bytes - 300, "points": 3, **QUIET}
    return {
        "Analysis": kquant.analyze(q, x, top1(y), **QUIET),
        "Answers": kquant.why(q, x, top1(y), **QUIET),
        "BundleReport": kquant.bundle(q, folder / "firmware", data=x, golden=1),
        "ChannelGroups": kquant.channel_groups(model),
        "ByteLadder": budgeted.ladder,
        "CheckReport": kquant.check(model, "tflm"),
        "CompressResult": compressed,
        "Cost": kquant.cost(model),
        "DryRun": kquant.dry_run(q, ["equalize"], x, **QUIET),
        "Estimate": kquant.estimate(model, target="tflm"),
        "ExportReport": compressed.report,
        "FileBytes": kquant.layer_bytes(path),
        "FileModel": kquant.inspect(path),
        "ModelCard": replace(compressed.card, float_accuracy=0.9, file_accuracy=0.875, samples=64, runtime="tflm"),
        "Mixed": kquant.mixed_precision(model, x, target="tflm", **search),
        "Observations": kquant.observe(q, x, **QUIET),
        "Sparsity": kquant.sparsity(kquant.prune(model, 0.5)),
        "SparsityScan": kquant.scan_sparsity(model, x, sparsities=(0.5, 0.9), **QUIET),
        "Tuned": kquant.autotune(model, x, lambda m: float(np.mean(m.predict(x, verbose=0).argmax(1) == y)), **QUIET),
        "VerifyReport": kquant.verify(q, path, x, "litert-reference"),
        "View": kquant.view(path, folder=folder),
    }


NAMES = sorted(
    name for name in kquant.__all__ if inspect.isclass(cls := getattr(kquant, name)) and issubclass(cls, Result)
)


def test_every_public_result_is_here(made: dict[str, Any]) -> None:
    assert NAMES == sorted(made)
    returned = {
        str(inspect.signature(f).return_annotation)
        for name in kquant.__all__
        if inspect.isfunction(f := getattr(kquant, name))
    }
    # what a public verb returns of a class of kquant's own is a result, but for these
    own = {name for name in returned if inspect.isclass(getattr(kquant, name, None))}
    assert own - set(NAMES) == {"Distiller", "Recipe", "SplitModel", "Stream"}


@pytest.mark.parametrize("name", NAMES)
def test_a_repr_is_short_and_says_something(name: str, made: dict[str, Any]) -> None:
    said = repr(made[name])
    assert re.fullmatch(rf"{name}\(.+\)", said), said
    assert len(said) <= 260 and re.search(r"\d", said), said
    assert "array(" not in said and "=(" not in said, said


def test_recipes_and_parts_have_short_ones_too() -> None:
    said = repr(kquant.Recipe(name="mine", steps=[{"name": "calibrate"}]))
    assert said == "Recipe('mine', 8-bit weights, 8-bit activations, steps: calibrate)"
    model = keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(0.5, name="scale"), keras.layers.Dense(2)])
    assert "scale moved in front of it" in repr(kquant.split_preprocessing(model))


@pytest.mark.parametrize("name", NAMES)
def test_every_result_is_a_page_of_its_own(name: str, made: dict[str, Any], tmp_path: Path) -> None:
    path = report.html(made[name], tmp_path / "report.html")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    check(path.read_text())


def test_several_results_are_one_page(made: dict[str, Any], tmp_path: Path) -> None:
    tree = check(whole(made))
    order = [
        *("Size before and after", "By what is quantized"),
        *("Why is it not more accurate?", "Why is it not smaller?", "Why is it not faster?"),
        *("Layer by layer", "Weights and their grids", "Activations and their grids", "What could be had"),
        *("Zeros, codes and bytes of the weights", "Operators by type", "Memory over time", "Details"),
    ]
    places = [tree.text.index(title) for title in order]
    assert places == sorted(places)
    with pytest.raises(ValueError, match="empty list"):
        report.html([], tmp_path / "report.html")
    with pytest.raises(TypeError, match="Received: int"):
        report.html([made["Analysis"], 3], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def whole(made: dict[str, Any]) -> str:
    return render_html([made[name] for name in ("ExportReport", "Analysis", "Answers")])


def check(text: str) -> Tree:
    """What holds of every page."""
    assert text.startswith('<!doctype html>\n<html lang="en">')
    tree = Tree(text)
    # nothing from elsewhere, nothing that runs
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:|\ssrc=|\shref=|\son\w+=", text)
    tags = Counter(tag for tag, _ in tree.tags)
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(tags)
    assert tags["html"] == tags["head"] == tags["main"] == tags["h1"] == 1
    assert re.search(r"<head>.*<title>[^<]+: report by kquant</title>.*</head>", text, re.DOTALL)
    # headings in order, none left out
    steps = zip(tree.headings, tree.headings[1:], strict=False)
    assert tree.headings[0] == 1 and all(after <= before + 1 for before, after in steps), tree.headings
    assert tags["table"] == tags["caption"] and all(a.get("scope") in ("col", "row") for t, a in tree.tags if t == "th")
    pictures = [attrs for tag, attrs in tree.tags if tag == "svg"]
    assert all(a.get("aria-label") if a.get("role") == "img" else a.get("aria-hidden") for a in pictures)
    # what scrolls can be reached by keyboard, and has a name
    scrolled = [a for t, a in tree.tags if "scroll" in (a.get("class") or "").split() or t == "pre"]
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in scrolled)
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    return tree


def test_a_title_is_seen_once(made: dict[str, Any]) -> None:
    """What opens a table and its caption say the same: the caption is for who hears the page."""
    text = render_html(made["ExportReport"])
    titles = re.findall(r"<summary>([^<]+)</summary>", text)
    assert "Ports: real = scale * (code - zero point)" in titles and len(titles) == len(set(titles))
    assert all(f'<caption class="said">{title}</caption>' in text for title in titles)


def test_names_of_users_are_text(made: dict[str, Any]) -> None:
    a = made["Analysis"]
    odd = replace(a, model=ODD, layers=(replace(a.layers[0], name=ODD), *a.layers[1:]))
    text = render_html(odd)
    check(text)
    assert "<b>&" not in text and ODD in Tree(text).text


def test_notebooks_show_the_page(made: dict[str, Any]) -> None:
    for name in NAMES:
        shown = made[name]._repr_html_()
        assert shown == fragment(made[name]) and Tree(shown).tags[0] == ("div", {"class": "kquant"})
        # styles reach no further than the report
        style = re.search(r"<style>(.*?)</style>", shown, re.DOTALL)[1]
        selectors = re.findall(r"^\s*([^@{}/][^{}]*)\{", style, re.MULTILINE)
        assert selectors and all(".kquant" in one for s in selectors for one in s.split(","))


@pytest.mark.parametrize(("lost", "said"), [(0.0, ""), (0.004, ""), (0.125, "at 12.5 points of accuracy")])
def test_what_costs_accuracy_is_no_advice(lost: float, said: str) -> None:
    start = Trial("", 1000, None, 500, 0.9, 30.0)
    cheaper = Trial("bits = 4", 600, None, 500, 0.9 - lost, 25.0)
    answers = (Answer("smaller", "", (cheaper,), ()),)
    shown = render_html(Answers("net", "int8", "tflm", 64, "accuracy", 0.9, start, answers))
    assert "400 bytes less (40 %)" in shown and ('class="note dear"' in shown) is bool(said)
    assert (said in shown) and ("or training wins it back" in shown) is bool(said)


def test_what_costs_signal_is_no_advice() -> None:
    start = Trial("", 1000, None, 500, None, 30.0)
    for decibels, said in ((25.0, ""), (12.0, "at 18.0 dB")):
        assert price(Trial("bits = 4", 600, None, 500, None, decibels), start, "") == said


def test_a_plot_of_nothing_is_a_sentence(made: dict[str, Any]) -> None:
    a = made["Analysis"]
    lossless = tuple(
        row if row.sensitivity is None else replace(row, sensitivity=replace(row.sensitivity, only=a.float_value))
        for row in a.layers
    )
    titles = [p.title for p in plots(sheet(replace(a, layers=lossless)))]
    assert not any("Sensitivity" in title for title in titles)
    assert "No layer loses anything" in Tree(render_html(replace(a, layers=lossless))).text


def test_bytes_of_kernels_and_of_all_weights_are_told_apart(made: dict[str, Any]) -> None:
    exported = made["ExportReport"]
    [grid] = [g for s in sheet(exported).sections for g in s.grids if g.caption == "Bytes, before and after"]
    told = {row[0].text: row[1].text for row in grid.rows}
    assert told["kernels in this file"] == f"{exported.weights.totals['stored_bytes']:,}"
    assert told["weights in this file: kernels, biases, axes"] == f"{exported.weight_bytes:,}"


def test_figures_are_those_of_the_result(made: dict[str, Any]) -> None:
    exported, a, why = made["ExportReport"], made["Analysis"], made["Answers"]
    text = Tree(whole(made)).text
    assert f"{exported.file_bytes:,} bytes" in text and f"{exported.arena_bytes:,} bytes" in text
    assert f"{a.macs:,}" in text and f"{100 * a.float_value:.1f} %" in text and f"{100 * a.value:.1f} %" in text
    for row in a.layers:
        assert f"{row.macs:,}" in text and row.name in text
        if math.isfinite(row.sqnr_db):
            assert f"{row.sqnr_db:.1f}" in text and f"{100 * 10 ** (-row.sqnr_db / 20):.2g} %" in text
    for answer in why.answers:
        for trial in answer.trials:
            assert f"{trial.file_bytes:,}" in text and f"{trial.macs:,}" in text
    for row in exported.weights.layers:
        assert f"{100 * row.sparsity:.1f} %" in text and f"{row.stored_bytes:,}" in text
    plain = 4 * sum(math.prod(row.shape) for row in exported.weights.layers)
    assert f"{plain:,}" in text
    assert f"{memory_plan(made['FileModel']).size_bytes:,} bytes, as TensorFlow Lite Micro plans them" in text


def sheet(*results: Any) -> Sheet:
    return sheet_of(list(results))


def plots(made: Sheet) -> list[Any]:
    return [plot for section in made.sections for plot in section.plots]


def test_the_timeline_is_the_plan(made: dict[str, Any]) -> None:
    plan = memory_plan(made["FileModel"])
    [plot] = [p for p in plots(sheet(made["FileModel"])) if "arena" in p.title]
    blocks = [s for s in plot.shapes if s.kind.startswith("block")]
    steps = max(last for _, last in plan.spans) + 1
    assert len(blocks) == len(plan.tensors)
    for shape, t in zip(blocks, plan.tensors, strict=True):
        left, top, right, down = (float(n) for n in re.fullmatch(r"M(\S+) (\S+)h(\S+)v(\S+)H\S+z", shape.path).groups())
        assert left == pytest.approx(SIDE * t.first / steps, abs=0.1)
        assert right == pytest.approx(SIDE * (t.last + 1 - t.first) / steps, abs=0.1)
        assert top == pytest.approx(SIDE * (1 - t.end / plan.size_bytes), abs=0.1)
        assert down == pytest.approx(SIDE * t.bytes / plan.size_bytes, abs=0.1)
    full = {t.index for t in plan.tensors if t.is_alive(plan.spans[plan.peak][0])}
    assert {t.index for s, t in zip(blocks, plan.tensors, strict=True) if "full" in s.kind} == full


def test_what_lies_beyond_the_grid_is_red(made: dict[str, Any]) -> None:
    a = made["Analysis"]
    tensor = next(t for t in a.tensors if not t.is_fixed)
    wide = replace(tensor, low=-1.0, high=1.0, edges=(-2.0, -1.0, 0.0, 1.0, 2.0), counts=(5, 10, 100, 0))
    kinds = {}
    for t in (wide, replace(wide, low=-2.0, high=2.0)):
        found = [p for p in plots(sheet(replace(a, tensors=(t,)))) if p.title.startswith(f"{t.unit}:")]
        [plot] = [p for p in found if p.x_title == "value"]
        kinds[t.high] = {s.kind: s.path for s in plot.shapes}
    assert kinds[1.0]["area bad"].count("z") == 1 and kinds[2.0]["area bad"] == ""
    assert "limit" in kinds[1.0]


def test_weights_lie_on_their_grid(made: dict[str, Any]) -> None:
    for row in made["Analysis"].layers:
        if row.weights is not None:
            assert sum(row.weights.counts) == row.macs // positions(row.name)
            assert {-1.0, 1.0} <= set(row.weights.edges) and len(row.weights.edges) == len(row.weights.counts) + 1
            beyond = [n for n, e in zip(row.weights.counts, row.weights.edges, strict=False) if not -1.0 <= e < 1.0]
            assert bool(sum(beyond)) == (row.weights.clipped > 0.0)


def positions(name: str) -> int:
    return {"first": 36, "second": 16}.get(name, 1)


def test_floats_are_told_in_red_and_in_words(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="a"), keras.layers.Dense(2)])
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, "weight-only-int8"), x, **QUIET)
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    text = render_html(kquant.inspect(tmp_path / "m.tflite"))
    assert 'class="v bad">FLOAT32, not integer<' in text and "Operators in red compute in float" in text
    assert "Look at this" in check(text).text


def test_a_file_that_is_gone_is_left_out(made: dict[str, Any], tmp_path: Path) -> None:
    gone = render_html(replace(made["ExportReport"], path=str(tmp_path / "gone.tflite")))
    other = tmp_path / "other.tflite"
    other.write_bytes(b"x" * made["ExportReport"].file_bytes)
    for text in (gone, render_html(replace(made["ExportReport"], path=str(other)))):
        assert "Memory over time" not in check(text).text
    assert "Memory over time" in render_html(made["ExportReport"])


COLOURS = re.compile(r"--(\w+): (#[0-9a-f]{6})")


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_enough_in_both_forms() -> None:
    style = resources.files("kquant.report").joinpath("report.css").read_text()
    light, dark = (dict(COLOURS.findall(block)) for block in re.findall(r"\{[^{}]*--page[^{}]*--blue[^{}]*\}", style))
    assert set(light) == set(dark) and light["page"] != dark["page"]
    for colours in (light, dark):
        for ground in ("page", "card"):
            for words in ("text", "soft", "green", "red"):  # 4.5: level AA for text of any size
                assert contrast(colours[words], colours[ground]) >= 4.5, (words, ground)
        for badge in ("green", "red"):  # words in the page's colour
            assert contrast(colours["page"], colours[badge]) >= 4.5
        for mark in ("blue", "orange", "green", "red", "soft"):  # 3: level AA for graphics
            assert contrast(colours[mark], colours["page"]) >= 3.0, mark
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)


@pytest.mark.skipif(not browser.CHROMIUM, reason="no Chromium on this machine")
@pytest.mark.slow
def test_pages_fit_on_a_phone_with_everything_opened(made: dict[str, Any], tmp_path: Path) -> None:
    pages = {**{name: render_html(made[name]) for name in NAMES}, "all": whole(made)}
    wide = "<p style='width: 600px'>too wide</p>"
    seen = browser.laid_out({**pages, "wide": pages["Cost"].replace("</main>", f"{wide}</main>")}, tmp_path, 390)
    assert set(seen) == {*pages, "wide"}
    assert seen.pop("wide")["told"] == ["P: too wide"]
    assert {name: (page["needed"], page["told"]) for name, page in seen.items()} == dict.fromkeys(pages, (390, []))


def test_scales_put_round_numbers_where_they_are() -> None:
    scale = Scale(0.0, 50.0)
    assert [(label.text, label.at) for label in scale.labels(5)] == [("0", 0.0), ("20", 0.4), ("40", 0.8)]
    powers = Scale(0.5, 5000.0, log=True)
    assert [label.text for label in powers.labels(4)] == ["1", "10", "100", "1,000"]
    assert powers.at(0.0) == 0.0 and powers.at(5000.0) == 1.0
    assert Scale(3.0, 3.0).at(3.0) == 0.5


def test_each_number_of_samples_says_of_what_it_is(made: dict[str, Any]) -> None:
    """An analysis reads some of the samples, an accuracy is of others."""
    analysis = replace(made["Analysis"], samples=256)
    card = dict(sheet_of([made["ModelCard"], analysis]).card)
    assert {what: much for what, much in card.items() if "samples" in what} == {
        "samples of the accuracy": "64",
        "samples analyzed": "256",
    }

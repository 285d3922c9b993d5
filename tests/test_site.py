"""The site has every page and every public name; `make site` builds it, a warning is an error there."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PUBLIC = re.findall(r" import \w+ as (\w+)$", (ROOT / "kquant" / "__init__.pyi").read_text(), re.MULTILINE)


class Loader(yaml.SafeLoader):
    """Tags of Python's names (`!!python/name:...`), which some settings of the theme are, are not looked up."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
SETTINGS: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)  # noqa: S506  a safe loader


def pages(entry: Any) -> Iterator[str]:
    """The pages of a navigation, in order."""
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from pages(inner)


def test_every_page_is_two_clicks_away() -> None:
    held = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    held |= {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    held |= {"index.md", "contributing.md", "changelog.md"}
    listed = list(pages(SETTINGS["nav"]))
    assert sorted(listed) == sorted(held)
    depths = [len(list(section.values())) for section in SETTINGS["nav"]]
    assert max(depths) == 1, "a section's pages lie in no section of their own"


def test_a_page_that_is_three_clicks_away_stops_the_build(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site is built with the extra `site`")
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(hooks := importlib.util.module_from_spec(spec))
    (tmp_path / "api").mkdir()
    chain = ["index.html", "one.html", "api/two.html", "api/three.html"]
    to = ["one.html#top", "api/two.html", "three.html", "https://example.org/lost.html"]
    for name, link in zip(chain, to, strict=True):
        (tmp_path / name).write_text(f'<p><a class="md" href="{link}">on</a></p>')
    (tmp_path / "lost.html").write_text("")
    (tmp_path / "404.html").write_text("")
    assert hooks.far_pages(tmp_path) == ["api/three.html", "lost.html"]
    with pytest.raises(Exception, match="more than 2 clicks from the first page: api/three.html, lost.html"):
        hooks.on_post_build(SimpleNamespace(site_dir=str(tmp_path)))
    (tmp_path / "one.html").write_text('<a href="lost.html"></a><a href="api/three.html"></a><a href="api/two.html">')
    assert hooks.far_pages(tmp_path) == []


def test_every_public_name_is_on_one_page() -> None:
    text = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    told = re.findall(r"^::: kquant\.(\w+)$", text, re.MULTILINE)
    assert sorted(told) == sorted(PUBLIC)


@pytest.mark.parametrize("path", sorted((DOCS / "figures").glob("*.svg")), ids=lambda path: path.stem)
def test_a_figure_is_drawn_and_shown(path: Path) -> None:
    assert f"def {path.stem}()" in (DOCS / "figures" / "draw.py").read_text()
    assert f"](figures/{path.name})" in (DOCS / "concepts.md").read_text()
    assert len(path.read_text()) > 1000

"""The site has every page and every public name; `make site` builds it, a warning is an error there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
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


def test_every_public_name_is_on_one_page() -> None:
    text = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    told = re.findall(r"^::: kquant\.(\w+)$", text, re.MULTILINE)
    assert sorted(told) == sorted(PUBLIC)


@pytest.mark.parametrize("path", sorted((DOCS / "figures").glob("*.svg")), ids=lambda path: path.stem)
def test_a_figure_is_drawn_and_shown(path: Path) -> None:
    assert f"def {path.stem}()" in (DOCS / "figures" / "draw.py").read_text()
    assert f"](figures/{path.name})" in (DOCS / "concepts.md").read_text()
    assert len(path.read_text()) > 1000

"""What the site takes from outside docs/: README, CONTRIBUTING, CHANGELOG and notebooks, their links made to fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
MOST_CLICKS = 2  # from the first page to any other
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


@event_priority(100)  # before the plugin that turns notebooks into pages
def on_files(files: Files, config: Any) -> Files:
    """Add them."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File(f"notebooks/{notebook.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are on the site, where every page but the API's lies beside the index."""
    up = "../" * page.file.src_uri.count("/")
    for source, target in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{source}", f"]({up}{target}", markdown)
    markdown = re.sub(r"\]\((?:\.\./)?notebooks/", f"]({up}notebooks/", markdown)
    return re.sub(r"\]\(docs/", f"]({up}", markdown)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Links of notebooks, whose Markdown is HTML when they come here."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    html = re.sub(r'href="\.\./docs/(\w+)\.md', r'href="../\1.html', html)
    return re.sub(r'href="(\w+)\.ipynb', r'href="\1.html', html)


def on_post_build(config: Any) -> None:
    """A page that nobody comes to in two clicks is an error, as a link that leads nowhere is."""
    if far := far_pages(Path(config.site_dir)):
        raise PluginError(f"more than {MOST_CLICKS} clicks from the first page: {', '.join(far)}")


def far_pages(site: Path) -> list[str]:
    """Pages of a built site to which no chain of `MOST_CLICKS` links leads from its index.html.

    Args:
        site: its folder; links are followed as a browser does, those to other sites are not.
    """
    pages = {path.resolve(): path for path in site.rglob("*.html") if path.name != "404.html"}
    near = last = {(site / "index.html").resolve()}
    for _ in range(MOST_CLICKS):
        last = {to for path in last for to in _linked(path) if to in pages} - near
        near = near | last
    return sorted(str(pages[path].relative_to(site)) for path in pages.keys() - near)


def _linked(page: Path) -> list[Path]:
    given = [urlsplit(href) for href in re.findall(r'<a\b[^>]*?\bhref="([^"]+)"', page.read_text())]
    return [(page.parent / link.path).resolve() for link in given if link.path and not (link.scheme or link.netloc)]

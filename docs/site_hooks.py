"""What the site takes from outside docs/: README, CONTRIBUTING, CHANGELOG and notebooks, their links made to fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
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

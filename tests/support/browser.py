"""Pages as a browser lays them out: headless Chromium, with everything opened that opens."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), "")
SECONDS = 300

# What sticks out of the window, but for what lies in something that scrolls of itself.
ASKED = """<script>addEventListener('load', () => {
  for (const d of document.querySelectorAll('details')) d.open = true;
  const width = document.documentElement.clientWidth;
  const out = [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > width + 1 && !e.parentElement.closest('.scroll, pre');
  });
  const told = out.map(e => e.tagName + ': ' + (e.textContent || '').trim().slice(0, 60));
  const root = document.documentElement;
  parent.postMessage({name: NAME, seen: {width, needed: root.scrollWidth, height: root.scrollHeight, told}}, '*');
})</script>"""
LISTENS = """const all = {}; addEventListener('message', e => {
  all[e.data.name] = e.data.seen; p.textContent = JSON.stringify(all) })"""


def laid_out(pages: dict[str, str], folder: Path, width: int, dark: bool = False) -> dict[str, dict[str, Any]]:
    """name -> {"width": of the window, "needed": of what is in it, "height", "told": what sticks out}.

    Frames, because a window of Chromium is no narrower than 500 pixels.
    """
    frames = ""
    for number, (name, text) in enumerate(pages.items()):
        (folder / f"{number}.html").write_text(text + ASKED.replace("NAME", json.dumps(name)))
        frames += f'<iframe src="{number}.html" style="width: {width}px; height: 800px"></iframe>'
    outer = folder / "outer.html"
    outer.write_text(f"<pre id=p></pre><script>{LISTENS}</script>{frames}")
    options = [
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'profile'}",
    ]
    options += [f"--blink-settings=preferredColorScheme={int(not dark)}", "--virtual-time-budget=8000", "--dump-dom"]
    command = [CHROMIUM, "--headless", *options, outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    found = re.search(r'<pre id="p">(.*?)</pre>', done.stdout, re.DOTALL)
    return json.loads(html.unescape(found[1]))

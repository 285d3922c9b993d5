"""A section of a recipe is a file: found, read and refused like those that ship, before TensorFlow has loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kquant.masking.method import known
from kquant.recipe.section import sections

SECTION = '''"""The `[clipping]` section."""
from typing import ClassVar

from pydantic import Field

from kquant.recipe.section import Section


class Clipping(Section):
    """Weights between -reach and reach."""

    key: ClassVar[str] = "clipping"
    reach: float = Field(0.5, gt=0.0)
'''
READS = """
import sys
sys.modules["tensorflow"] = sys.modules["keras"] = None
import kquant.recipe
kquant.recipe.__path__.append(sys.argv[1])
from kquant.recipe.recipe import load, recipe_to_toml
from kquant.recipe.section import sections

rule = {"layer": "head*", "clipping": {"reach": 0.25}}
recipe = load({"name": "mine", "clipping": {"reach": 1.0}, "rules": [rule]})
Clipping = sections()["clipping"]
assert list(sections()) == ["pruning", "clustering", "clipping"]
assert [recipe.section_of(Clipping, [(name, "Dense")], None).reach for name in ("stem", "head")] == [1.0, 0.25]
assert recipe.clipping.reach == 1.0 and load("int8").section(Clipping) is None
assert "[clipping]" in recipe_to_toml(recipe)
for wrong in ({"clipping": {"reech": 1.0}}, {"cliping": {}}, {"rules": [{"layer": "a", "clipping": {"reech": 1}}]}):
    try:
        load({"name": "mine", **wrong})
    except ValueError as error:
        print(error)
"""


def test_a_file_is_a_section(tmp_path: Path) -> None:
    (tmp_path / "clipping_section.py").write_text(SECTION)
    done = subprocess.run([sys.executable, "-c", READS, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert "unknown key 'clipping.reech'. Did you mean 'reach'?" in first
    assert "unknown key 'cliping'. Did you mean 'clipping'?" in second
    assert "rules.0.clipping: unknown key 'reech'. Did you mean 'reach'?" in third


def test_every_section_is_carried_out() -> None:
    assert set(known()) == set(sections())
    assert [method.section for method in map(known().get, sections())] == list(sections().values())

"""Names and words of users in a project: legal, distinct, and in their places."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_project import X, compiled, small_bundle, small_model  # noqa: F401

import kquant
from kquant.projects.described import described
from kquant.projects.golden import golden_vectors
from kquant.projects.kinds import kinds
from kquant.projects.languages import LANGUAGES
from kquant.projects.names import LONGEST, distinct, identifier
from kquant.projects.rendering import c_comment, c_string, rendered
from kquant.runtime.running import available, quantize_input

pytestmark = [
    pytest.mark.skipif("tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)"),
    pytest.mark.filterwarnings("ignore:calibrate. .* carry hardly any signal"),
]


ODD = ["../x", "*/ int main(){}", "\U0001f600", "class", "a" * 300, 'say "hi"\\', "??/"]


def test_names_of_users_cannot_leave_their_places(made: kquant.BundleReport, tmp_path: Path) -> None:
    (tmp_path / "main.cc").write_text("int main() { return 0; }\n")
    content = (Path(made.folder) / "model.tflite").read_bytes()
    file = kquant.inspect(content)
    golden = golden_vectors(content, file, [quantize_input(X[:1], file.inputs[0])], "tflm")
    for n, name in enumerate(ODD):
        parts = {"arena": made.arena, "golden": golden, "normalization": None, "card": [("a", "b")]}
        about = described(content, file, title=name, labels=[name, name, "c"], **parts)
        files = rendered(kinds()["arduino"], about)
        for place, text in files.items():
            path = tmp_path / str(n) / place
            assert path.resolve().is_relative_to(tmp_path / str(n))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        source = tmp_path / str(n) / "src"
        compiled(source, "model.cpp", "golden.cpp", "io.c", tmp_path / "main.cc", program=tmp_path / "odd")


@given(st.lists(st.text(max_size=70), max_size=8))
@settings(max_examples=200, deadline=None)
def test_names_are_legal_and_distinct(names: list[str]) -> None:
    made = distinct(names)
    assert len(set(made)) == len(names)
    for name in made:
        assert re.fullmatch("[a-z][a-z0-9_]*", name)
        assert "__" not in name
        assert name not in LANGUAGES["c"].reserved
        assert len(name) <= LONGEST + 8
        assert len(name) > LONGEST or identifier(name) == name


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_words_stay_inside_comments_and_quotes(text: str) -> None:
    comment = c_comment(text)
    assert "*/" not in comment
    assert "\n" not in comment
    assert not comment.endswith("\\")
    quoted = c_string(text)
    assert quoted.isascii()
    assert re.fullmatch(r'(?:[^"\\?\n]|\\["\\?]|\\[0-7]{3})*', quoted)

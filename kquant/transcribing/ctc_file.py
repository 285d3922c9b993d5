"""`Ctc` as a TOML file, for commands."""

from __future__ import annotations

from pathlib import Path

from kquant.files.answer_file import read_answer
from kquant.transcribing.spec import Ctc


def read_ctc(path: str | Path) -> Ctc:
    r"""What the scores of a network trained with CTC mean, by the names of `Ctc`.

    Args:
        path: of a TOML file; `alphabet` is a text, a letter for each class, or a list of texts.

    Raises:
        ValueError: no such file, another key, or what `Ctc` refuses.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "ctc.toml").write_text('output = "letters"\nalphabet = "_abc"')
        ...     read_ctc(Path(folder) / "ctc.toml").alphabet
        ('_', 'a', 'b', 'c')
    """
    return read_answer(Ctc, path, f"--ctc {path}")

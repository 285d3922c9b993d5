"""Templates -> the files of a project; `kinds.toml` says which make up one of a kind."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict

from kquant.core.messages import check_known
from kquant.projects.described import Described, c_float

KINDS = "kinds.toml"


class Kind(BaseModel):
    """A kind of project.

    Attributes:
        title: for messages.
        target: for which its file must be.
        files: where a file lies in the project -> the template that it is made of. `{id}` is the model's name in C.
        debug: likewise, of the model whose outputs are those of every layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    title: str
    target: str
    files: Mapping[str, str]
    debug: Mapping[str, str]


@cache
def kinds() -> Mapping[str, Kind]:
    """All kinds of projects, by name."""
    text = (resources.files("kquant.projects") / KINDS).read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    shared: dict[str, dict[str, str]] = tables.pop("shared")
    return {name: Kind(**_with_shared(table, shared)) for name, table in tables.items()}


def _with_shared(table: dict[str, Any], shared: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Its own files, and those of the groups that it names, each group in a folder of the kind's choice."""
    files, debug = dict(table.get("files", {})), dict(table.get("debug", {}))
    for group, folder in table.pop("groups", {}).items():
        files |= {f"{folder}{name}": template for name, template in shared[group].items()}
        debug |= {f"{folder}debug/{name}": template for name, template in shared[group].items()}
    return {**table, "files": files, "debug": debug}


def kind_of(name: str) -> Kind:
    """A kind by its name.

    Raises:
        ValueError: no such kind, with the nearest.
    """
    check_known(f"bundle: kind '{name}' does not exist", name, kinds())
    return kinds()[name]


def rendered(kind: Kind, about: Described, debug: Described | None = None) -> dict[str, str]:
    """The text of every file of a project, by where it lies in it.

    Args:
        kind: of the project.
        about: what it is about.
        debug: the same of the model whose outputs are those of every layer, where that is to be among the files.
    """
    # an unknown name in a template is a mistake there, not an empty text
    environment = Environment(
        loader=PackageLoader("kquant.projects"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # C, CMake, Markdown
    )
    environment.filters["c_float"] = c_float
    environment.filters["c_comment"] = c_comment
    environment.filters["c_string"] = c_string
    sets = [(kind.files, about), *([] if debug is None else [(kind.debug, debug)])]
    return {
        place.format(id=one.id): environment.get_template(f"{template}.jinja").render(
            about=one, kind=kind, debug=debug if one is about else None
        )
        for files, one in sets
        for place, template in files.items()
    }


def c_comment(text: str) -> str:
    r"""A user's words inside a comment of C: they cannot end it, nor run on behind it.

    Example:
        >>> c_comment("a */ b \\"), c_comment("net\nwork")
        ('a * / b', 'net work')
    """
    return " ".join(text.replace("*/", "* /").replace("/*", "/ *").split()).rstrip("\\ ")


def c_string(text: str) -> str:
    r"""A user's words inside quotes of C; what is no ASCII as its bytes in UTF-8.

    Example:
        >>> print(c_string('say "a"'))
        say \"a\"
        >>> print(c_string("é"))
        \303\251
    """
    return "".join(_escaped(byte) for byte in text.encode())


def _escaped(byte: int) -> str:
    if chr(byte) in '"\\?':  # `??/` is a backslash in old C
        return f"\\{chr(byte)}"
    return chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"

"""Templates -> the files of a project of some kind."""

from __future__ import annotations

from itertools import chain
from pathlib import PurePosixPath

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from kquant.projects.described import Described, c_float
from kquant.projects.kinds import Kind


def rendered(kind: Kind, about: Described, debug: Described | None = None) -> dict[str, str]:
    """The text of every file of a project, by where it lies in it.

    Args:
        kind: of the project.
        about: what it is about.
        debug: the same of the model whose outputs are those of every layer, where that is to be among the files.
    """
    environment = templates()
    sets = [(kind.files, about), *([] if debug is None else [(kind.debug, debug)])]
    sets += [(kind.answers[asked], about) for asked in about.asked]
    return {
        placed(place, one, header_of(kind, one)): environment.get_template(f"{template}.jinja").render(
            about=one, kind=kind, debug=debug if one is about else None, header=header_of(kind, one)
        )
        for files, one in sets
        for place, template in files.items()
    }


def templates() -> Environment:
    """The templates of all kinds, with what they call."""
    # an unknown name in a template is a mistake there, not an empty text
    environment = Environment(
        loader=PackageLoader("kquant.projects"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # C, CMake, Kotlin, Swift, Markdown
    )
    for each in (c_float, c_comment, c_string, kotlin_string, swift_float, swift_string):
        environment.filters[each.__name__] = each
    return environment


def header_of(kind: Kind, about: Described) -> str:
    """The file that a program in C includes: called like the model, and like no other file of the kind.

    Args:
        kind: of the project.
        about: what it is about.
    """
    others = {PurePosixPath(place).name for place in (*kind.files, *chain.from_iterable(kind.answers.values()))}
    return f"{about.id}_model.h" if f"{about.id}.h" in others else f"{about.id}.h"


def placed(place: str, about: Described, header: str = "") -> str:
    """Where a file lies in a project.

    Args:
        place: as the kind says.
        about: what the project is about.
        header: what a program in C includes.
    """
    return place.format(id=about.id, type=about.class_name, header=header)


def c_comment(text: str) -> str:
    r"""A user's words inside a comment of C, Kotlin or Swift: they cannot end it, nor run on behind it.

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


def kotlin_string(text: str) -> str:
    r"""A user's words inside quotes of Kotlin, in ASCII.

    Example:
        >>> print(kotlin_string('say "a" for $1 or \u00e9'))
        say \"a\" for \$1 or \u00e9
    """
    units = text.encode("utf-16-be", "surrogatepass")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    return "".join(_plain(code, '"\\$') or f"\\u{code:04x}" for code in codes)


def swift_string(text: str) -> str:
    r"""A user's words inside quotes of Swift, in ASCII.

    Example:
        >>> print(swift_string('say "a" or \u00e9'))
        say \"a\" or \u{e9}
    """
    # half a surrogate pair is no character of Swift's
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "".join(_plain(ord(c), '"\\') or f"\\u{{{ord(c):x}}}" for c in whole)


def swift_float(value: float) -> str:
    """A Float of Swift with the same bits: a literal is rounded to a Double on its way.

    Example:
        >>> swift_float(0.1)
        'Float(bitPattern: 0x3dcccccd)'
    """
    return f"Float(bitPattern: 0x{int(np.float32(value).view(np.uint32)):08x})"


def _plain(code: int, special: str) -> str:
    """A character as it stands in a text, or behind a backslash; "" where it needs its number."""
    if not 32 <= code < 127:
        return ""
    return f"\\{chr(code)}" if chr(code) in special else chr(code)

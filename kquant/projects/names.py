"""Names of the user's -> names in C, C++, Kotlin and Swift."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kquant.projects.languages import LANGUAGES

LONGEST = 48  # of a name: C promises 31 to 63 characters that differ, and names get endings
MODEL = "Model"  # what classes end with


def identifier(name: str, language: str = "c") -> str:
    """A legal name in a language that is like a given one: lower case, no leading digit, no keyword, not too long.

    Args:
        name: anything; what C does not know becomes an underscore.
        language: of `LANGUAGES`.

    Example:
        >>> identifier("2-stage net.v1"), identifier("class"), identifier("../x"), identifier("\U0001f600")
        ('m_2_stage_net_v1', 'm_class', 'x', 'model')
    """
    # runs of underscores and those at the ends belong to the language (`__x`, `_X`)
    clean = re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")[:LONGEST].strip("_")
    if not clean:
        return "model"
    return f"m_{clean}" if clean[0].isdigit() or clean in LANGUAGES[language].reserved else clean


def value_name(name: str, language: str = "c") -> str:
    """A legal name of a value, in the manner of the language.

    Args:
        name: anything.
        language: of `LANGUAGES`.

    Example:
        >>> value_name("input image"), value_name("input image", "swift"), value_name("in", "kotlin")
        ('input_image', 'inputImage', 'mIn')
    """
    clean = identifier(name, language)
    return clean[0] + _capitals(clean)[1:] if LANGUAGES[language].camel else clean


def class_name(name: str, language: str) -> str:
    """A legal name of a class.

    Args:
        name: of the model, anything.
        language: of `LANGUAGES`.

    Example:
        >>> class_name("my net", "kotlin"), class_name("2 models", "swift"), class_name("big model", "swift")
        ('MyNetModel', 'M2ModelsModel', 'BigModel')
    """
    one = _capitals(identifier(name, language))
    if one == f"Compiled{MODEL}":  # LiteRT's own
        return f"M{one}"
    return one if one.endswith(MODEL) else one + MODEL


def distinct(names: Iterable[str], language: str = "c") -> list[str]:
    """Legal names of values, no two alike: a number is put behind a later one.

    Args:
        names: in order.
        language: of `LANGUAGES`.

    Example:
        >>> distinct(["a-b", "a b", "c"]), distinct(["a-b", "a b"], "swift")
        (['a_b', 'a_b_2', 'c'], ['aB', 'aB2'])
    """
    taken: list[str] = []
    between = "" if LANGUAGES[language].camel else "_"
    for name in names:
        wanted = one = value_name(name, language)
        number = 2
        while one in taken:
            one, number = f"{wanted}{between}{number}", number + 1
        taken.append(one)
    return taken


def _capitals(clean: str) -> str:
    return "".join(word[0].upper() + word[1:] for word in clean.split("_"))

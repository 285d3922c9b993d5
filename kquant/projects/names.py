"""Names of the user's -> names in C and C++."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 48  # of a name: C promises 31 to 63 characters that differ, and names get endings
# Words that C11, C++17 or the Arduino core keep for themselves.
RESERVED = frozenset(
    "alignas alignof and asm auto bitand bitor bool break case catch char class compl const constexpr continue "
    "decltype default delete do double else enum explicit export extern false final float for friend goto if "
    "import inline int long module mutable namespace new noexcept not nullptr operator or override private "
    "protected public register restrict return short signed sizeof static struct switch template this throw true "
    "try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor byte word boolean "
    "setup loop main errno stdin stdout stderr linux unix".split()
)


def identifier(name: str) -> str:
    """A legal name in C and C++ that is like a given one: lower case, no leading digit, no keyword, not too long.

    Args:
        name: anything; what C does not know becomes an underscore.

    Example:
        >>> identifier("2-stage net.v1"), identifier("class"), identifier("../x"), identifier("\U0001f600")
        ('m_2_stage_net_v1', 'm_class', 'x', 'model')
    """
    # runs of underscores and those at the ends belong to the language (`__x`, `_X`)
    clean = re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")[:LONGEST].strip("_")
    if not clean:
        return "model"
    return f"m_{clean}" if clean[0].isdigit() or clean in RESERVED else clean


def distinct(names: Iterable[str]) -> list[str]:
    """Legal names, no two alike: a number is put behind a later one.

    Args:
        names: in order.

    Example:
        >>> distinct(["a-b", "a b", "c"])
        ['a_b', 'a_b_2', 'c']
    """
    taken: list[str] = []
    for name in names:
        wanted = one = identifier(name)
        number = 2
        while one in taken:
            one, number = f"{wanted}_{number}", number + 1
        taken.append(one)
    return taken

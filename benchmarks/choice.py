"""What a benchmark takes on its command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """The `type` of an argument that takes some of these: argparse's `choices` refuses a default of several."""

    def known(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}. Received: {name!r}")
        return name

    return known

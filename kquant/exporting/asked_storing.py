"""What the arguments of `export` ask for about the storage of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kquant.core.checks import whole_budget
from kquant.tflite.storage import Storage, Storing, storages

AUTO = "auto"  # every storage, each tensor in the one that suits it
# The argument of `kquant.export`: "auto", a key of `STORAGES`, a storage with its options, or several.
Compression = str | Storage | Sequence[str | Storage] | None


def storing_of(compression: Compression, decode_budget: int | None = None) -> Storing:
    """What the arguments `compression` and `decode_budget` of `export` ask for.

    Raises:
        ValueError: an unknown value, or a budget of what is not decoded or that is none.
    """
    if compression is None:
        if decode_budget is not None:
            raise ValueError(
                f"export: decode_budget is for weights that are decoded; give compression='{AUTO}' with it. "
                f"Received: decode_budget={decode_budget!r}, compression=None."
            )
        return Storing()
    if decode_budget is not None:
        decode_budget = whole_budget("export", "decode_budget", decode_budget, "bytes of arena", least=0)
    known = storages()
    if isinstance(compression, str) and compression == AUTO:
        return Storing(tuple(cls() for cls in known.values()), free=True, budget_bytes=decode_budget)
    several: list[Any] = list(compression) if isinstance(compression, list | tuple) else [compression]
    for one in several or [None]:
        if not isinstance(one, Storage) and not (isinstance(one, str) and one in known):
            names = ", ".join(f"'{name}'" for name in (AUTO, *known))
            made = ", ".join(f"kquant.{cls.__name__}(...)" for cls in known.values())
            raise ValueError(f"export: compression must be None, {names} or {made}. Received: {compression!r}.")
    chosen = tuple(one if isinstance(one, Storage) else known[one]() for one in several)
    return Storing(chosen, budget_bytes=decode_budget)

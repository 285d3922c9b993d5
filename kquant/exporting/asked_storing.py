"""What the arguments of `export` ask for about the storage of weights."""

from __future__ import annotations

from collections.abc import Sequence

from kquant.tflite.storage import Storage, Storing, storages

AUTO = "auto"  # every storage, each tensor in the one that suits it
# The argument of `kquant.export`: "auto", a key of `STORAGES`, a storage with its options, or several.
Compression = str | Storage | Sequence[str | Storage] | None


def storing_of(compression: Compression, decode_budget: int | None = None) -> Storing:
    """What the arguments `compression` and `decode_budget` of `export` ask for.

    Raises:
        ValueError: an unknown value, or a budget of what is not decoded.
    """
    if compression is None:
        if decode_budget is not None:
            raise ValueError(
                f"export: decode_budget is for weights that are decoded; give compression='{AUTO}' with it. "
                f"Received: decode_budget={decode_budget!r}, compression=None."
            )
        return Storing()
    if decode_budget is not None and (isinstance(decode_budget, bool) or decode_budget < 0):
        raise ValueError(f"export: decode_budget must be 0 bytes or more. Received: {decode_budget!r}.")
    known = storages()
    if compression == AUTO:
        return Storing(tuple(cls() for cls in known.values()), free=True, budget_bytes=decode_budget)
    several = [compression] if isinstance(compression, str | Storage) else list(compression)
    for one in several:
        if not isinstance(one, Storage) and one not in known:
            names = ", ".join(f"'{name}'" for name in (AUTO, *known))
            made = ", ".join(f"kquant.{cls.__name__}(...)" for cls in known.values())
            raise ValueError(f"export: compression must be None, {names} or {made}. Received: {compression!r}.")
    chosen = tuple(one if isinstance(one, Storage) else known[one]() for one in several)
    return Storing(chosen, budget_bytes=decode_budget)

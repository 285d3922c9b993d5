"""What the tests of this folder share."""

from __future__ import annotations

import pytest

from kquant.core import joined
from kquant.graph import held_constants


@pytest.fixture(autouse=True)
def own_share_of_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process may have compiled is for one test, whatever the tests before it had compiled."""
    monkeypatch.setattr(held_constants, "MOST", joined.so_far() + held_constants.MOST)

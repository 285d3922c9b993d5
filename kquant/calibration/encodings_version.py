"""Versions of AIMET's JSON, apart from what reads and writes it, which few ask for and every export would wait for."""

from __future__ import annotations

from typing import Literal

Version = Literal["0.6.1", "1.0.0"]

"""What the bits of a fit depend on besides its request, as the ledger keeps it: JSON, a few texts for any number of jobs."""

from __future__ import annotations

import json
from functools import lru_cache


@lru_cache
def with_precision(environment: str, precision: str) -> str:
    told = json.loads(environment)
    if precision == "auto":
        precision = "bf16" if told.get("bf16") else "fp32"
    return json.dumps({**told, "precision": precision}, sort_keys=True)


@lru_cache
def with_tiling(environment: str, tiling: str) -> tuple[str, str]:
    """The environment with the tiling that it was begun with, and that."""
    told = json.loads(environment)
    begun = told.setdefault("tiling", tiling)
    return json.dumps(told, sort_keys=True), begun


@lru_cache
def same_place(begun: str, here: str) -> bool:
    return {**json.loads(begun), "tiling": None} == {**json.loads(here), "tiling": None}

"""A step of the acceptance: the least that is kept when a call is cut off; and what its result says."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acceptance import gpu

ROOT = Path(__file__).resolve().parent.parent.parent

# Every result has a "status", one of these.
PASSED = "passed"  # a check
FAILED = "failed"  # a check; or what was to be measured does not run
MEASURED = "measured"
NO_MEMORY = "out of memory"  # a result of what was measured, not an error
LEFT_OUT = "left out"  # cannot be done here; "reason" says why
CUT_OFF = "cut off"  # took longer than its limit
CRASHED = "crashed"  # took its process with it
BAD = (FAILED, CRASHED)


@contextmanager
def without_overlap() -> Iterator[None]:
    """Launches that are recorded within wait for the end of the one before them, as they do on devices before compute capability 9.0."""
    before = os.environ.get("DIPENGINE_CUDA_OVERLAP")
    os.environ["DIPENGINE_CUDA_OVERLAP"] = "0"
    try:
        yield
    finally:
        os.environ.pop("DIPENGINE_CUDA_OVERLAP")
        if before is not None:
            os.environ["DIPENGINE_CUDA_OVERLAP"] = before


@dataclass(frozen=True)
class Context:
    """Where a step works: a folder of its own for builds and caches, kept from call to call."""

    folder: Path
    # The result of a step that is done, by part and name; None where it is not.
    result: Callable[[str, str], dict[str, Any] | None]

    def __post_init__(self) -> None:
        """Where fits were found to be right without overlap alone, nothing else is done with it (testing.smoke_fit)."""
        if (self.result("smoke", "fit") or {}).get("overlap") is False:
            os.environ["DIPENGINE_CUDA_OVERLAP"] = "0"

    @property
    def build(self) -> Path:
        return self.folder / "build"

    @property
    def package(self) -> Path:
        """The folder that the built Python package lies in."""
        return self.folder / "package"

    def environment(self) -> dict[str, str]:
        """For processes: the built package is found before any that is installed, compilers' caches are kept here."""
        path = os.pathsep.join([str(self.package), str(ROOT / "bench"), *filter(None, [os.environ.get("PYTHONPATH")])])
        # An environment's own tools come last, as in setup.py.
        search = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
        return os.environ | gpu.ORDER | {"PATH": search, "PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
                             "TRITON_CACHE_DIR": str(self.folder / "triton"), "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Step:
    """expected: seconds; it is begun only where a call has that many left (or has done nothing else). limit: seconds after which it
    is given up, which is its result. run raises what it likes: the driver makes a result of it. peer: what it measures is not ours, so
    that its failure fails nothing. there: whether what it made is still there; else it is done again (results may have come from another
    machine). needed: where it fails, nothing else is begun."""

    name: str
    run: Callable[[Context], dict[str, Any]]
    expected: float
    limit: float
    peer: bool = False
    there: Callable[[Context], bool] | None = None
    needed: bool = False


Parts = dict[str, list[Step]]

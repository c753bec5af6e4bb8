"""The acceptance of the engine on this machine's GPU, in parts of at most nine minutes: `make gpu-acceptance`, again and again.

    python bench/gpu_acceptance.py [--part NAME] [--seconds 540] [--again] [--out DIR] [--resume FILE] [--list]

A call does as many steps as it has seconds for, and the next one goes on: results lie in build/gpu-acceptance, for as long as the
sources stay as they are. After every call bench/results/GPU.json and GPU.md hold what there is. --part: that one alone (and what it
needs to be built). --again: what failed is done again, with --part all of that part. Exit status: 0 nothing failed so far, 1
something did, 2 wrong use. What is measured, and how: bench/README.md.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from acceptance import driver
from acceptance.step import ROOT
from acceptance.store import Busy

NEEDED = ("numpy", "torch", "pybind11", "pytest")


def usable() -> str:
    """What this interpreter lacks, in words; empty where it has all that is needed, with a PyTorch for CUDA."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        return f"it has no {', '.join(missing)}"
    # Read, not imported: that takes seconds.
    version = Path(find_spec("torch").origin).with_name("version.py").read_text()
    return "" if re.search(r"^cuda: .* = '", version, re.MULTILINE) else "its PyTorch is built without CUDA"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--list", action="store_true", help="the parts and their steps")
    parser.add_argument("--usable", action="store_true", help="exit status 0 where this interpreter has what is needed")
    parser.add_argument("--out", type=Path, help="a folder for the results, the table and an archive of everything, behind every step")
    parser.add_argument("--resume", type=Path, help="begin with the results of such an archive, of the same sources and GPU")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/gpu-acceptance")
    parser.add_argument("--parts", default="acceptance.parts", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--steps", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.usable:
        if lacks := usable():
            print(f"{sys.executable} cannot be taken: {lacks}.", file=sys.stderr)
        return 1 if lacks else 0
    if given.work:
        return driver.work(given.parts, given.work, tuple(given.steps.split(",")), given.folder, given.deadline)
    if given.list:
        for part, steps in driver.load(given.parts).items():
            print(f"{part}: {', '.join(step.name for step in steps)}")
        return 0
    if given.out is not None:
        os.environ["ACCEPTANCE_OUT"] = str(given.out.resolve())
    try:
        if given.resume is not None:
            driver.resume(given.folder, given.resume)
        return driver.accept(driver.Call(given.parts, given.folder, given.seconds, given.part, given.again,
                                         lambda text: print(text, flush=True)))
    except Busy as error:
        print(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())

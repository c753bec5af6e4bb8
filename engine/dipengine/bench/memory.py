"""Peak memory of one side above the process after its imports: each in a fresh process of its own, a few iterations long.

    python -m dipengine.bench.memory SIDE SETTING     (SETTING as JSON; prints the bytes)

Linux keeps the high-water mark that getrusage reports across exec: a child would start at its parent's. So the mark of the
process's own memory (VmHWM) is read, and set back after the imports, where the system has it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dipengine.bench.setting import OURS, Setting
from dipengine.bench.turns import Side
from dipengine.errors import FitError
from dipengine.fitting.record import peak_memory_bytes

ITERATIONS = 3
_STATUS = Path("/proc/self/status")


def peak_memory(side: str, setting: Setting) -> int | None:
    """Bytes that building `side` ("ours" or one of the peers) and running it takes at most; None where no system tells.

    Raises FitError where the side does not run.
    """
    package = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "dipengine.bench.memory", side, json.dumps(setting.to_dict())]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    if result.returncode != 0:
        said = (result.stderr.strip().splitlines() or [f"status {result.returncode}; was memory short?"])[-1]
        raise FitError(f"The memory of {side} could not be measured ({said[:160]}).")
    return json.loads(result.stdout)


def high_water_mark() -> int | None:
    """Most memory held so far by this process, bytes; None where the system does not tell."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    except OSError:
        found = None
    return 1024 * int(found.group(1)) if found else peak_memory_bytes("cpu")


def _lower_the_mark() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the mark then stays at the peak of the imports, which is hardly above what they leave


def _measure(side: str, setting: Setting) -> int | None:
    make = _imported(side, setting)
    _lower_the_mark()
    before = high_water_mark()
    make(setting).run(ITERATIONS)
    after = high_water_mark()
    return None if after is None else after - before


def _imported(side: str, setting: Setting) -> Callable[[Setting], Side]:
    """What makes the side, with everything imported that it needs."""
    if side == OURS:
        from dipengine.bench import ours

        ours.import_everything()
        return ours.make_ours
    import torch
    import torch._dynamo  # noqa: F401  PyTorch's optimizers import it when the first one is made

    from dipengine.bench import peers

    torch.set_num_threads(setting.threads)
    return lambda setting: peers.PyTorchFit(peers.CONFIGURATIONS[side], setting)


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], Setting.from_dict(json.loads(sys.argv[2])))))

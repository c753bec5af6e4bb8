"""Runs the parts step by step, within the seconds of a call, and goes on where the last call stopped.

Steps of a part run in one process, each once the results before it are safe. What takes its process with it (a device that gives up, a
system that ends who takes too much memory) costs itself alone: a new process goes on behind it, and behind any step that failed, whose
process may have lost its device. The results file is written anew behind every step. The driver itself imports nothing that takes time.

Parts are done in their order, or, where the module of parts has an ORDER, in stages of that first: (part, names of steps). What is in
its NEEDS waits while another step has failed: that time is better spent once it works.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acceptance import bringing
from acceptance import step as steps
from acceptance.step import ROOT, Context, Parts, Step
from acceptance.store import Store

POLL = 0.1  # seconds between two looks at a worker
_ENOUGH = 120  # lines of a log that a result keeps the end of
FIRST = "build"  # the part without which there is no other


@dataclass(frozen=True)
class Call:
    """One call of the command."""

    parts_module: str
    folder: Path
    seconds: float
    only: str | None = None
    again: bool = False
    say: Callable[[str], None] = print


Stage = tuple[str, tuple[str, ...] | None]  # a part, and which of its steps; None: all that are open


def stages_of(call: Call, store: Store, parts: Parts) -> list[Stage]:
    """What the call is to do, in turn."""
    if call.only is not None:
        needs = call.only != FIRST and FIRST in parts and _open(store, parts, FIRST)
        return [*([(FIRST, None)] if needs else []), (call.only, None)]
    return [*getattr(importlib.import_module(call.parts_module), "ORDER", []), *((part, None) for part in parts)]


def load(module: str) -> Parts:
    return importlib.import_module(module).PARTS


def accept(call: Call) -> int:
    """Do as much as the call has time for. 0: nothing that was done so far failed; 1: something did; the rest by calling again."""
    parts = load(call.parts_module)
    if call.only is not None and call.only not in parts:
        call.say(f"There is no part {call.only!r}; choose {', '.join(parts)}.")
        return 2
    store = Store(call.folder)
    held = store.lock()
    try:
        deadline = time.time() + call.seconds
        if store.begin(importlib.import_module(call.parts_module).fingerprint()):
            call.say("The sources, the GPU or the software have changed since the last call: everything begins anew.")
        _lost(store, call.say)
        context = Context(call.folder, store.result)
        for part, listed in parts.items():
            store.forget(part, [s.name for s in listed if s.there is not None and not s.there(context)])
        if call.again:
            for part in parts if call.only is None else [call.only]:
                store.forget(part, [s.name for s in parts[part] if part == call.only or _bad(store, part, s)])
        fresh = True
        for part, names in stages_of(call, store, parts):
            fresh, more = _run_stage(call, store, parts, (part, names), deadline, held, fresh)
            if any(s.needed and _bad(store, part, s) for s in parts[part]):
                call.say(f"The part {part!r} failed: nothing else can be done ({store.log(part)}).")
                break
            if more or (part == FIRST and _open(store, parts, part)):
                break
        return _conclude(call, store, parts)
    finally:
        os.close(held)


def resume(folder: Path, archive: Path) -> None:
    """Put the results of an archive into the folder. Raises Busy."""
    store = Store(folder)
    held = store.lock()
    try:
        bringing.unpack(store, archive)
    finally:
        os.close(held)


def _run_stage(call: Call, store: Store, parts: Parts, stage: Stage, deadline: float, held: int, fresh: bool) -> tuple[bool, bool]:
    """(whether the call has begun nothing yet, whether time ran out). What the call has no time for is left to the next."""
    while pending := [s for s in _open(store, parts, *stage) if (fresh or time.time() + s.expected <= deadline)
                      and not _waits(call, store, parts, stage[0], s)]:
        ended = _worker(call, store, parts, stage[0], [s.name for s in pending], deadline, held)
        fresh = False
        if ended == "time":
            return fresh, True
        if any(s.needed and _bad(store, stage[0], s) for s in parts[stage[0]]):
            break
        if all(store.result(stage[0], s.name) is None for s in pending):  # no process got as far as a step
            raise SystemExit(f"Nothing could be done in {stage[0]!r}; see {store.log(stage[0])}.")
    return fresh, False


def _worker(call: Call, store: Store, parts: Parts, part: str, names: list[str], deadline: float, held: int) -> str:
    """One process for steps of a part, of which it begins the first: "done" (with what there was time for), "time" (that is over), or
    "crashed" with a result for the step that it was in."""
    context = Context(call.folder, store.result)
    command = [sys.executable, str(ROOT / "bench/gpu_acceptance.py"), "--work", part, "--parts", call.parts_module, "--folder",
               str(call.folder), "--deadline", str(deadline), "--steps", ",".join(names)]
    with store.log(part).open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=context.environment(), pass_fds=[held],
                                   start_new_session=True)
    limits = {s.name: s.limit for s in parts[part]}
    waited_for = list(names)
    try:
        while process.poll() is None:
            time.sleep(POLL)
            _tell(call, store, parts, part, waited_for)
            now, at = time.time(), store.under_way()
            if at is not None and now - at["began"] > limits[at["name"]]:
                _end(process)
                _finish_for(store, at, {"status": steps.CUT_OFF, "reason": f"took more than {limits[at['name']]:.0f} s"})
                return "crashed"
            if now > deadline:
                _end(process)
                if at is not None:
                    call.say(f"[{part}] {at['name']}: not finished in this call")
                    store.under_way_file.unlink(missing_ok=True)
                return "time"
        if (at := store.under_way()) is None:
            return "done"
        _finish_for(store, at, {"status": steps.CRASHED, "reason": _status(process.returncode), "log": _tail(store.log(part))})
        return "crashed"
    finally:
        _end(process)
        _tell(call, store, parts, part, waited_for)


def _tell(call: Call, store: Store, parts: Parts, part: str, waited_for: list[str]) -> None:
    """Says what has come to an end, once, and writes it into the results file."""
    ended = [(name, result) for name in waited_for if (result := store.result(part, name)) is not None]
    for name, result in ended:
        call.say(f"[{part}] {name}: {said(result)}")
        waited_for.remove(name)
    if not ended:
        return
    try:
        importlib.import_module(call.parts_module).report(store, parts, lambda text: None)
    except OSError as error:  # at the end it is said; until then steps count
        call.say(f"The results cannot be written now: {error}")


def _finish_for(store: Store, at: dict[str, Any], result: dict[str, Any]) -> None:
    """The result of a step whose worker has ended, unless it came to write one itself."""
    if store.result(at["part"], at["name"]) is None:
        store.finish(at["part"], at["name"], result, time.time() - at["began"])
    store.under_way_file.unlink(missing_ok=True)


def work(parts_module: str, part: str, names: tuple[str, ...], folder: Path, deadline: float) -> int:
    """What a worker does: these steps of a part in turn, the first and those that there is time for, until one fails."""
    store, driver = Store(folder), os.getppid()
    parts = load(parts_module)
    context = Context(folder, store.result)
    for number, step in enumerate(_open(store, parts, part, names)):
        if os.getppid() != driver:
            return 1  # nobody waits for it any more
        if number and time.time() + step.expected > deadline:
            continue
        print(f"---- {step.name}", flush=True)
        store.start(part, step.name)
        began = time.time()
        try:
            result = step.run(context)
        except Exception as error:
            result = _failure(error)
        store.finish(part, step.name, result, time.time() - began)
        if result["status"] in steps.BAD:
            sys.stdout.flush()
            os._exit(0)  # without the ends of libraries, which may wait for a device that is gone
    return 0


def _failure(error: Exception) -> dict[str, Any]:
    traceback.print_exc()
    reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}".rstrip(": ")
    out_of_memory = "OutOfMemory" in type(error).__name__ or "out of memory" in str(error).lower()
    return {"status": steps.NO_MEMORY if out_of_memory else steps.FAILED, "reason": reason[:300]}


def _lost(store: Store, say: Callable[[str], None]) -> None:
    at = store.under_way()
    if at is not None:
        say(f"[{at['part']}] {at['name']} was under way when the last call ended; it begins again.")
        store.under_way_file.unlink()


def _open(store: Store, parts: Parts, part: str, names: tuple[str, ...] | None = None) -> list[Step]:
    """In the order of the names, where there are some."""
    found = {s.name: s for s in parts[part] if store.result(part, s.name) is None}
    return [found[name] for name in (found if names is None else names) if name in found]


def _bad(store: Store, part: str, step: Step) -> bool:
    result = store.result(part, step.name)
    return result is not None and not step.peer and result["status"] in (*steps.BAD, steps.CUT_OFF)


def _waits(call: Call, store: Store, parts: Parts, part: str, step: Step) -> bool:
    """Whether a step that this one needs has failed: by NEEDS of the module of parts, "part/step" by "part/step" or by "part". Who asks
    for a part gets it."""
    needs = getattr(importlib.import_module(call.parts_module), "NEEDS", {})
    needed = needs.get(f"{part}/{step.name}", needs.get(part))
    if needed is None or call.only is not None:
        return False
    other, name = needed.split("/")
    return any(s.name == name and _bad(store, other, s) for s in parts[other])


def _conclude(call: Call, store: Store, parts: Parts) -> int:
    importlib.import_module(call.parts_module).report(store, parts, call.say)
    left = [f"{part}/{s.name}" for part in parts for s in _open(store, parts, part)]
    bad = [f"{part}/{s.name}" for part in parts for s in parts[part] if _bad(store, part, s)]
    total = sum(map(len, parts.values()))
    if left:
        call.say(f"{total - len(left)} of {total} steps are done; run it again for the others, next {left[0]}.")
    waits = {part: [s for s in _open(store, parts, part) if _waits(call, store, parts, part, s)] for part in parts}
    if any(waits.values()):
        counts = ", ".join(f"{part} ({len(steps_)})" for part, steps_ in waits.items() if steps_)
        call.say(f"Not before what failed works: {counts}; --part does one all the same.")
    if bad:
        call.say(f"Failed: {', '.join(bad)} (logs in {call.folder / 'logs'}; AGAIN=1 does them again).")
    elif not left:
        call.say(f"All {total} steps are done, and none failed.")
    return 1 if bad else 0


def said(result: dict[str, Any]) -> str:
    """A result in some words."""
    reason = f" ({result['reason']})" if "reason" in result else ""
    return f"{result['status']}{reason}, {result['took']:.1f} s"


def _status(code: int) -> str:
    return f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def _tail(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-_ENOUGH:]


def _end(process: subprocess.Popen) -> None:
    """With all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()

"""Entry point of the command line: parse, dispatch, turn errors into one sentence and an exit status.

Exit status: 0 done, 1 the fit failed, 2 wrong use or unusable input, 130 interrupted (what there was is written).
What takes time to load is loaded inside `main`, where Ctrl-C is answered.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from dipengine._version import __version__
from dipengine.cli.reports import say
from dipengine.errors import DipEngineError

INTERRUPTED = 130


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The whole command line; task verbs and their options come from `dipengine.tasks`.

    words: what is going to be parsed: the options of `batch` are those of the task that they name.
    """
    from dipengine.cli import batch, bench, doctor, export, render, restore
    from dipengine.tasks import TASKS

    parser = argparse.ArgumentParser(
        prog="dipengine",
        description="Deep image prior: restore an image with no training data, by fitting a network to it alone.",
    )
    parser.add_argument("--version", action="version", version=f"dipengine {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for task in TASKS.values():
        if task.python_only:
            continue
        restore.add_parser(verbs, task)
    batch.add_parser(verbs, words)
    export.add_parser(verbs)
    render.add_parser(verbs)
    doctor.add_parser(verbs)
    bench.add_parser(verbs)
    return parser


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--range -5,5` as `--range=-5,5`, `--offset -1e3` as `--offset=-1e3`: argparse takes them for options."""
    words = list(arguments)
    for place in range(len(words) - 1, 0, -1):
        if words[place - 1] in ("--range", "--offset") and re.match(r"-[\d.]", words[place]):
            words[place - 1 : place + 1] = [f"{words[place - 1]}={words[place]}"]
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = _joined(sys.argv[1:] if arguments is None else arguments)
    try:
        parsed = build_parser(words).parse_args(words)
        parsed.words = words  # for reports
        return parsed.run(parsed)
    except DipEngineError as error:
        say(f"dipengine: {error}")
        return error.exit_status
    except KeyboardInterrupt as interrupt:
        say(f"dipengine: interrupted{f': {interrupt}' if interrupt.args else ' before there was anything to write'}.")
        return INTERRUPTED
    except MemoryError:
        say("dipengine: out of memory; try fewer --channels or a smaller image.")
        return 1

"""What a command says on standard output and standard error, which may be closed, a pipe that nobody reads any more, or a full disk."""

import os
import signal
import sys
from contextlib import suppress

from dipengine.errors import OutputError


def tell(text: str) -> None:
    """Print `text`. Ends the process as SIGPIPE would where nobody reads any more; raises OutputError where it cannot be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or what is left is tried, and told of, once more at the end
        if isinstance(error, BrokenPipeError):
            raise SystemExit(128 + signal.SIGPIPE) from None
        raise OutputError(f"Standard output cannot be written ({error.strerror}); send it elsewhere.") from error


def say(text: object) -> None:
    """On standard error, where anybody listens: files are written all the same, and the exit status says what went wrong."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)

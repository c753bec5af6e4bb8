"""What a command says on standard output, which may be a pipe that nobody reads any more, or a full disk."""

import os
import signal
import sys

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

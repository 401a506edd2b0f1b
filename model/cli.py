"""What every command does about errors: the user's are one line and exit code 2, ours keep their
traceback."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

from model.errors import InputError, Stopped

BAD_INPUT = 2
PIPE_CLOSED = 128 + signal.SIGPIPE
INTERRUPTED = 128 + signal.SIGINT


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line too."""

    def error(self, message: str) -> None:
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")


def run(main: Callable[..., None], argv: Sequence[str] | None = None) -> int:
    """Call main(argv); return the exit code. For `sys.exit(run(main))`."""
    rank = os.environ.get("RANK", "0")  # as torchrun numbers its processes
    who = f"rank {rank}: " if rank != "0" else ""
    try:
        main(argv)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # Who read our output went away, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except InputError as error:
        if not error.elsewhere:
            _complain(f"{who}{' '.join(str(error).split())}")
        return BAD_INPUT
    except OSError as error:
        place = error.filename or "input or output"
        _complain(f"{who}{place}: {error.strerror or error}")
        return BAD_INPUT
    except Stopped as stop:
        if "RANK" in os.environ:
            # torchrun signals the others as soon as one is gone; each ends with this code.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not stop.elsewhere:
            print(stop, flush=True)
        return 128 + stop.number
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _complain(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)

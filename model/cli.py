"""What every command does about errors: the user's are one line and exit code 2.

Our own keep their traceback.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from model.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line too."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError in place of printing the usage."""
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")


def run(main: Callable, argv: Sequence[str] | None = None) -> int:
    """Call main(argv); return the exit code. For `sys.exit(run(main))`."""
    rank = os.environ.get("RANK", "0")  # as torchrun numbers its processes
    who = f"rank {rank}: " if rank != "0" else ""
    try:
        main(argv)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # who read our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except InputError as error:
        if not error.elsewhere:
            say(f"{who}{error}")
        return 2
    except OSError as error:
        say(f"{who}{error.filename or 'input or output'}: {error.strerror or error}")
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def say(message: str) -> None:
    """An error on stderr, whatever is in it, as one line."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)

"""What every command does about errors: the user's are one line and exit code 2, ours keep their traceback."""

import argparse
import os
import sys

from model.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line too."""

    def error(self, message):
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")


def run(main, argv=None):
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
            print(f"error: {who}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: {who}{error.filename or 'input or output'}: {error.strerror or error}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130

"""What every command does about errors: the user's are one line and exit code 2, ours keep their traceback."""

import sys

from model.errors import InputError


def run(main, argv=None):
    """Call main(argv); return the exit code. For `sys.exit(run(main))`."""
    try:
        main(argv)
        return 0
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130

"""The one exception for what a user can mend: files, settings, data."""


class InputError(ValueError):
    """Bad input. The message is one line: what, where, what was expected, what to do.

    Commands print it and exit with 2.
    """

    elsewhere = False  # another process of the same run prints it

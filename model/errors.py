"""The two exceptions that a command turns into an exit code: bad input, and an orderly stop."""

import signal


class InputError(ValueError):
    """Bad input, which the user can mend: files, settings, data. Commands print it and exit 2.

    The message is one line: what, where, what was expected, what to do. elsewhere: another process
    of the same run prints it.
    """

    def __init__(self, message: str, elsewhere: bool = False):
        super().__init__(message)
        self.elsewhere = elsewhere


class Stopped(Exception):
    """A signal ended the work in order; what was done is kept. Commands exit 128 + its number.

    The message is one line: what was stopped, where it stands, how to go on. elsewhere: another
    process of the same run prints it.
    """

    def __init__(self, number: int, message: str, elsewhere: bool = False):
        super().__init__(message)
        self.number = number
        self.elsewhere = elsewhere

    @property
    def signal_name(self) -> str:
        return signal.Signals(self.number).name

"""Every error that a user can meet, grouped by who can fix it.

A message says what was given, what is allowed, and what to do. The command line prints it and exits with
`exit_code`: 2 for wrong usage or input, 1 for the rest.
"""

import errno


class GgufroundError(Exception):
    """Root of all errors that ggufround raises on purpose."""

    exit_code = 1


class UsageError(GgufroundError):
    """The call itself is wrong: an unknown type, a bad flag, OUT equal to MODEL."""

    exit_code = 2


class InputError(GgufroundError):
    """A file that was given is damaged, hostile, incomplete, or of a kind that is not supported."""

    exit_code = 2


class UnsupportedError(InputError):
    """The input is sound, but nothing here can convert it: an unknown architecture or pre-tokenizer."""


class MissingExtraError(UsageError):
    """An optional package is needed; the message says what to install."""


class WeightError(InputError):
    """A weight cannot be stored: NaN or infinity. The message names the tensor and the row."""

    exit_code = 1


class OutputError(GgufroundError):
    """The output could not be written: disk full, no permission. The partial file and journal are kept."""


def not_written(error: OSError, what: str) -> OutputError:
    """The OutputError for what the system refused to do; a full disk has a way out of its own."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{what}: the disk is full; free some space and run the same command again to go on")
    return OutputError(f"{what}: {error.strerror or error}")

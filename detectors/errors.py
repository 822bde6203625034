"""The errors a person can mend; everything else is a bug and keeps its traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input; the message is one line that names the thing and the way out (exit code 2).

    Raised for whatever a person handed over: folders, images, masks, study files, archives, addresses.
    """


class NumericalError(ArithmeticError):
    """A computation left the finite numbers (NaN or infinite features, scores or parameters)."""

"""The exceptions that are told to the user in one line."""


class UserError(ValueError):
    """Wrong input that the user can put right.

    The message is one line: what was wrong, and what to do. :func:`src.cli.run` prints it without a traceback
    and exits with 2. Anything else that goes wrong is ours and keeps its traceback.
    """


class Diverged(RuntimeError):
    """The loss is no longer finite. No mistake of the call's, so the exit code is 1."""

"""The one exception that stands for a mistake of the user's."""


class UserError(ValueError):
    """Wrong input that the user can put right.

    The message is one line: what was wrong, and what to do. :func:`src.cli.run` prints it without a traceback
    and exits with 2. Anything else that goes wrong is ours and keeps its traceback.
    """

"""The exceptions that are told to the user in one line."""


class UserError(ValueError):
    """Wrong input that the user can put right.

    The message is one line: what was wrong, and what to do. :func:`src.cli.run` prints it without a traceback
    and exits with 2. Anything else that goes wrong is ours and keeps its traceback. Characters that would end the line
    or move the cursor, in a file's name or an argument, are shown as escapes.
    """

    def __init__(self, message: str) -> None:
        escaped = (c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in message)
        super().__init__("".join(escaped))


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line; its type where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class Diverged(RuntimeError):
    """The loss is no longer finite. No mistake of the call's, so the exit code is 1."""

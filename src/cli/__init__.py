"""The command line: flags made of typed settings, words of published programs, one-line errors, exit codes."""

from .parser import Call, Script, boolean, command_line, note, whole
from .run import run

__all__ = ["Call", "Script", "boolean", "command_line", "note", "run", "whole"]

"""Run as a program: it imports detectron2 once, and each program that it is asked for runs in a fork of it.

A request is a line of JSON on its input: the words of a command line, the folder to run it in, and files for what it
prints. The answer is a line with the exit code.
"""

import json
import os
import sys
from pathlib import Path

from tests.helpers import become_the_script

import detectron2.engine
import detectron2.evaluation
import detectron2.modeling  # noqa: F401
import torch


def serve() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            files = [os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("out", "err")]
            become_the_script(request["words"], *files, folder=Path(request["folder"]))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()

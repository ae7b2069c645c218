"""The old name of convert_to_detectron2.py."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("convert_to_detectron2.py")), run_name="__main__")

"""Lets the Python files of detectron2 0.6 run without their C++ part, on current numpy and Pillow; for tests alone.

Python imports a module of this name by itself when its folder is on PYTHONPATH. RoIAlign and NMS are torchvision's;
rotated boxes, deformable convolutions and the fast COCO evaluation are missing.
"""

import sys
import types

import numpy as np
from PIL import Image

for _name, _type in (("int", int), ("float", float), ("object", object), ("str", str), ("bool", bool)):
    if _name not in np.__dict__:
        setattr(np, _name, _type)
for _name, _filter in (("LINEAR", "BILINEAR"), ("CUBIC", "BICUBIC"), ("ANTIALIAS", "LANCZOS")):
    if not hasattr(Image, _name):
        setattr(Image, _name, getattr(Image.Resampling, _filter))
_compiled = types.ModuleType("detectron2._C")
_compiled.get_compiler_version = lambda: "none"
_compiled.get_cuda_version = lambda: "none"
_compiled.has_cuda = lambda: False
sys.modules.setdefault("detectron2._C", _compiled)

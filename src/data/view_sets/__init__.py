"""The papers' sets of views, one family a file: what is drawn, and the flags that change it."""

from .cwrgp import CWRGPViewSettings
from .intl import IntlViewSettings, intl
from .moco import MoCoViewSettings, moco
from .multi_crop import MultiCropSettings, multi_crop
from .twist import TwistViewSettings, twist
from .w2ssl import GRIDS, W2SSLViewSettings, w2ssl

__all__ = [
    "GRIDS",
    "CWRGPViewSettings",
    "IntlViewSettings",
    "MoCoViewSettings",
    "MultiCropSettings",
    "TwistViewSettings",
    "W2SSLViewSettings",
    "intl",
    "moco",
    "multi_crop",
    "twist",
    "w2ssl",
]

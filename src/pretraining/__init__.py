"""What the main_*.py scripts share: the settings that all have, and everything from the images to the run itself."""

from .echo import crops_in_words, echo_data, echo_model
from .online import validation_images
from .run import Pretraining, place, start
from .running import train
from .settings import Plan, PretrainingSettings, RunSettings, SpeedSettings

__all__ = [
    "Plan",
    "Pretraining",
    "PretrainingSettings",
    "RunSettings",
    "SpeedSettings",
    "crops_in_words",
    "echo_data",
    "echo_model",
    "place",
    "start",
    "train",
    "validation_images",
]

"""Scores a backbone's features without labels, on any folder of images; and says how far each score can be trusted.

python eval_scores.py --data_path /my/images --pretrained runs/mine/checkpoint.pth.tar
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src import cli
from src.checkpoints.files import write_json
from src.data.datasets import EvaluationDataSettings
from src.data.source import evenly_spread
from src.engine.monitor import finite_or_none, number
from src.errors import UserError
from src.evaluation.score_trust import MEASURED, in_words
from src.evaluation.scores import SCORES, VIEWS, features_of_views, scores_of
from src.evaluation.subject import EvaluationSettings, open_weights
from src.evaluation.unlabelled import LookedDataSettings, open_looked
from src.parallel import collectives, launch
from src.settings import setting

LEAST = 50  # images: fewer have no clusters worth the name


@dataclass(frozen=True)
class ScoreSettings:
    """Scores"""

    images: int = setting(1000, "images that are scored, evenly spread over the folder", at_least=LEAST, at_most=1e6)
    batch_size: int = setting(32, "number of images of each process in a batch", at_least=1, at_most=1e7)


@dataclass(frozen=True)
class Settings(EvaluationSettings):
    """What eval_scores.py has."""

    data: EvaluationDataSettings = LookedDataSettings()
    scores: ScoreSettings = ScoreSettings()


SCRIPT = cli.Script("Scores of frozen features without labels.", Settings(), positionals=("data_path", "pretrained"))


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings = call.settings
    own = settings.scores
    world = launch.start(settings.device.device, settings.device.dist_url)
    looked = open_looked(settings, open_weights(settings), world)
    images = evenly_spread(looked.images, own.images)
    if len(images) < LEAST:
        raise UserError(f"{looked.path} has {len(images)} images, and scores need {LEAST}")
    features = features_of_views(
        looked.backbone,
        images,
        looked.view,
        looked.prepare,
        batch_size=own.batch_size,
        workers=settings.data.workers,
        what="images",
    )
    if world.is_main:
        scores = scores_of(features, settings.judged.seed)
        print(f"{looked.description}; {len(features)} images, the centre and {VIEWS} random views of each")
        print("trust: the rank correlation with 10-NN accuracy over the methods of a study, and its 95 % interval")
        print(f"{'score':<20}{'value':>9}  {'better':<7}", *(f"  trust on {data}" for data in MEASURED), sep="")
        for score in SCORES:
            value = scores[score.name]
            shown = number(value) if math.isfinite(value) else "none"
            trusts = (
                f"  {in_words(one[score.name].across):<{len(f'trust on {data}')}}" for data, one in MEASURED.items()
            )
            print(f"{score.title:<20}{shown:>9}  {score.better:<7}", *trusts, sep="")
        content = {
            "what": looked.description,
            "data_path": settings.data.data_path,
            "images": len(features),
            "scores": finite_or_none(scores),
        }
        write_json(Path(settings.judged.dump_path) / "scores.json", content)
    call.tell_unread()
    collectives.barrier()
    return 0


if __name__ == "__main__":
    cli.run(main)

"""Features of any folder of images, labelled or not, as files; and one page of pictures to judge a network by.

    python embed.py /my/images runs/mine/checkpoint.pth.tar
    torchrun --nproc_per_node=8 embed.py /my/images runs/mine/checkpoint.pth.tar --dump_path embeddings/mine

Writes features.npy, features.parquet (path, label, class, vector), rows.npy (which image of the list each row is),
unreadable.txt where there are such images, and index.html with the pictures it is made of. Started again after a kill,
it goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src import cli
from src.data.datasets import EvaluationDataSettings
from src.data.fingerprint import agreed_fingerprint
from src.data.splits import name_of_data
from src.embedding.chunks import FEATURES, PAGE, extract, open_parts
from src.embedding.files import (
    finish,
    has_table,
    open_finished,
    require_pyarrow,
    unreadable_names,
    write_table,
)
from src.embedding.look import PageSettings, look, require_page
from src.engine.alone import alone_in
from src.evaluation.features import warn_unreadable
from src.evaluation.subject import EvaluationSettings, JudgedSettings, open_weights
from src.evaluation.unlabelled import Looked, LookedDataSettings, open_looked
from src.models.pretrained import fingerprint
from src.parallel import collectives, launch
from src.plots import require_umap
from src.settings import setting


@dataclass(frozen=True)
class FeatureSettings:
    """Features"""

    batch_size: int = setting(64, "number of images of each process in a batch", at_least=1, at_most=1e7)
    half: bool = setting(False, "write features with 16 bits, in half the space", switch=True)
    parquet: bool = setting(True, "also write features.parquet, which needs pyarrow")
    overwrite: bool = setting(
        False, "throw away finished features, or those of something else, that --dump_path holds", switch=True
    )


@dataclass(frozen=True)
class EmbeddedSettings(JudgedSettings):
    """What is judged"""

    dump_path: str = setting("", "folder of the results; default: embeddings/WEIGHTS-on-DATA", flags=["--output_dir"])


@dataclass(frozen=True)
class Settings(EvaluationSettings):
    """What embed.py has."""

    data: EvaluationDataSettings = LookedDataSettings()
    judged: JudgedSettings = EmbeddedSettings()
    features: FeatureSettings = FeatureSettings()
    shown: PageSettings = PageSettings()

    def default_folder(self) -> str:
        return f"embeddings/{self.judged_name()}-on-{name_of_data(self.data.data_path)}"


SCRIPT = cli.Script(
    "Features of a folder of images, and a page of pictures to judge a network by; no labels are needed.",
    Settings(),
    positionals=("data_path", "pretrained"),
)


def identity_of(looked: Looked, half: bool) -> Mapping[str, Any]:
    """What features depend on."""
    decoding = looked.images.decoding
    return {
        "backbone_sha256": fingerprint(looked.backbone.state_dict()),
        **{name: getattr(looked.spec, name) for name in ("arch", "width", "stem", "channels")},
        "images": agreed_fingerprint(looked.images, looked.path),
        "crop_size": looked.view.size,
        "resize": looked.view.resize,
        "bicubic": looked.view.bicubic,
        "mean": list(looked.prepare.mean),
        "std": list(looked.prepare.std),
        "exif_orientation": decoding.exif_orientation,
        "value_range": list(decoding.value_range) if decoding.value_range else None,
        "half": half,
    }


def write_all(looked: Looked, settings: Settings, folder: Path) -> None:
    """Everything that is made of finished features, in one process."""
    own, shown = settings.features, settings.shown
    embedding = open_finished(folder, len(looked.images))
    warn_unreadable(unreadable_names(folder))
    if own.parquet and not has_table(folder, len(embedding)):
        write_table(folder, embedding, looked.images)
    print(looked.description)
    count = f"{len(embedding)} of {len(looked.images)}" if len(embedding) < len(looked.images) else len(embedding)
    print(f"{count} images, {embedding.features.shape[1]} values each: {folder / FEATURES}")
    if not shown.page:
        return
    batch_size, workers = own.batch_size, settings.data.workers
    title = f"{name_of_data(looked.path)}, as seen by {settings.judged_name()}"
    seed = settings.judged.seed
    facts = look(looked, embedding, shown, folder, title=title, seed=seed, batch_size=batch_size, workers=workers)
    for name, value in facts.items():
        print(f"  {name}: {value}")
    print(f"look at {folder / PAGE}")


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings = call.settings
    own = settings.features
    if own.parquet:
        require_pyarrow()
    if settings.shown.page and settings.shown.projection == "umap":
        require_umap()
    world = launch.start(settings.device.device, settings.device.dist_url)
    looked = open_looked(settings, open_weights(settings), world)
    if settings.shown.page:
        require_page(looked.images, settings.shown.queries)
    folder = Path(settings.judged.dump_path)
    with alone_in(folder):
        parts = open_parts(folder, len(looked.images), identity_of(looked, own.half), own.overwrite)
        if parts is not None:
            extract(looked, parts, batch_size=own.batch_size, workers=settings.data.workers, half=own.half)
            if world.is_main:
                finish(folder, parts)
        if world.is_main:  # the others are done
            with collectives.alone():
                write_all(looked, settings, folder)
            call.tell_unread()
    return 0


if __name__ == "__main__":
    cli.run(main)

"""Whether a run may go on from a checkpoint: whatever its numbers depend on must be the same."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import UserError

# Settings that say how, where or how long a run goes, and not what it computes. Files are compared by what is in them
# (``train_images``, ``backbone_sha256``, ...), so their paths may change.
NEUTRAL_SETTINGS = (
    *("data_path", "more_data", "path_column", "label_column", "dataset", "download", "val_path"),
    *(
        "index_cache",
        "run_pipes",
        "shard_cache_gb",
        "shuffle_window",
        "workers",
        "dump_path",
        "dry_run",
        "resume",
        "accept_changes",
        "env_name",
    ),
    *("track", "project", "tensorboard", "wandb"),
    *("device", "dist_url", "max_steps", "log_every", "save_every", "keep_last", "checkpoint_freq"),
    *("knn_freq", "knn_k", "knn_rule", "knn_train_images", "eval_freq", "eval_size", "eval_resize", "enable_watch"),
    *("compile", "checkpoint_activations", "shard", "augment_on", "cache_images", "deterministic"),
    *("probe_freq", "scores_freq", "scores_images"),
    *("virtual_ranks", "ranks"),
    *("pretrained", "key", "teacher", "teacher_arch", "teacher_stem", "subset_file", "classifier_file"),
    *("init", "init_key"),
    *("evaluate", "eval_only", "information_every", "information_images", "information_batch"),
)
# What settings were before there were flags for them
_BEFORE: dict[str, Any] = {
    "shuffle": "torch",
    "init_sha256": "",
    "lr_backbone_scale": 1.0,
    "layer_decay": 1.0,
    "freeze_backbone_epochs": 0,
}
# ... of some methods only
_COLOURS = {"jitter_strength": 1.0, "grayscale": 0.2}
_BEFORE_OF: dict[str, dict[str, Any]] = {
    "twist": {**_COLOURS, "blur": None, "solarize": 0.2},
    "dino": {**_COLOURS, "blur": None, "solarize": 0.2},
    "w2ssl": {"solarize": 0.2},
    **{
        name: {"blur": None}
        for name in (
            *("cwrgp", "wmse", "pca", "bn", "plain", "contrastive", "byol", "simsiam", "barlowtwins", "vicreg"),
            "zero_icl",
        )
    },
    "intl": _COLOURS,
    "intl_m": _COLOURS,
}
# They change what is computed from here on, and may: a run says so and goes on. With them the number of processes.
MAY_CHANGE = ("epochs", "iterations", "batch_size", "accumulate", "precision", "use_fp16")


class Difference(NamedTuple):
    """A setting that is not what it was."""

    name: str
    text: str


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """What differs among the settings that both have or had, but for NEUTRAL_SETTINGS.

    A checkpoint from before the images were noted has no ``train_images``: of it the path of the data is compared.
    """
    found = []
    neutral = set(NEUTRAL_SETTINGS)
    if "train_images" in new and "train_images" not in old:
        neutral -= {"data_path", "dataset"}
    old = {**_BEFORE, **_BEFORE_OF.get(str(old.get("method")), {}), **old}
    for name, value in new.items():
        if name not in old or name in neutral:
            continue
        before, now = _plain(old[name]), _plain(value)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            parts = [_change(key, before.get(key), now[key]) for key in now if before.get(key) != now[key]]
            found.append(Difference(name, f"{name} ({', '.join(parts)})"))
        else:
            found.append(Difference(name, f"{name} {_shown(before)} -> {_shown(now)}"))
    return found


def compare(old: Mapping[str, Any], new: Mapping[str, Any], path: object, accepted: Iterable[str] = ()) -> str:
    """One line about what changed and may; "" where nothing did.

    Args:
        old, new: settings of the checkpoint and of this run.
        path: of the checkpoint, for the message.
        accepted: names that may differ because the user says so.

    Raises UserError with the names and values of what must not differ.
    """
    accepted = set(accepted)
    unknown = accepted - set(new)
    if unknown:
        raise UserError(f"--accept_changes {' '.join(sorted(unknown))}: there is no such setting")
    found = differences(old, new)
    refused = [one for one in found if one.name not in accepted and one.name not in MAY_CHANGE]
    if refused:
        raise UserError(
            f"{path} was made with other settings: {', '.join(one.text for one in refused)}; choose another "
            f"--dump_path, or go on in spite of it with --accept_changes {' '.join(one.name for one in refused)}"
        )
    return ", ".join(one.text for one in found)


def _change(key: str, before: Any, now: Any) -> str:
    digests = all(isinstance(value, str) and len(value) >= 16 and value.isalnum() for value in (before, now))
    return f"other {key.replace('_', ' ')}" if digests else f"{key} {before} -> {now}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text or "nothing"

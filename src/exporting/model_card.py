"""A model card: what a network was trained on, how, and what it reached, from the files of its run."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints.files import read_json, write_atomically
from ..checkpoints.identity import NEUTRAL_SETTINGS
from ..data.splits import name_of_data
from ..engine.monitor import number, read_log
from ..errors import UserError
from ..models.pretrained import Pretrained

_PAPERS = {
    "swav": ("SwAV", "2006.09882"),
    "deepcluster-v2": ("DeepCluster-v2", "2006.09882"),
    "sela-v2": ("SeLa-v2", "2006.09882"),
    "twist": ("TWIST", "2110.07402"),
    "intl": ("INTL", "2305.16789"),
    "intl_m": ("INTL", "2305.16789"),
    "cwrgp": ("CW-RGP", "2210.03586"),
    "moco": ("MoCo-v2", "2003.04297"),
    "disco": ("DisCo", "2104.09124"),
    "w2ssl": ("W2SSL", ""),
    "dino": ("DINO", "2104.14294"),
}


class Result(NamedTuple):
    """A number that was reached: what was measured, on which images, its value in percent or alone."""

    what: str
    data: str
    value: float


def write_card(path: Path, loaded: Pretrained, checkpoint: str, licence: str, size: int, name: str) -> None:
    """Writes a ``README.md`` whose head the Hugging Face Hub reads.

    Folders of the machine are not named; settings that only say how or where the run went are left out.

    Args:
        path: of the card.
        loaded: the network.
        checkpoint: the file that it came from; a run's files beside it are read, too.
        licence: of the weights; "" says that none is stated.
        size: side of the images.
        name: of the model.
    """
    from huggingface_hub import ModelCardData

    run = Path(checkpoint).absolute().parent
    settings, method = loaded.settings, loaded.family
    title, paper = _PAPERS.get(method, (method, ""))
    learnt = f" whose weights were learnt from images without labels by {title}" if title else ", feature extractor"
    learnt += f" ([arXiv {paper}](https://arxiv.org/abs/{paper}))." if paper else "."
    results = list(_results(run, Path(checkpoint), settings)) if Path(checkpoint).is_file() else []
    head = ModelCardData(
        model_name=name,
        license=licence or "unknown",
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["timm", "self-supervised-learning", *([f"arxiv:{paper}"] if paper else [])],
        eval_results=[_reached(one) for one in results if "accuracy" in one.what] or None,
    )
    lines = [
        *("---", head.to_yaml(), "---", "", f"# {name}", ""),
        f"A {loaded.spec.name}{learnt}",
        *(
            "",
            "## Use",
            "",
            "```python",
            _USE.format(place=f"hf-hub:{name}" if "/" in name else f"local-dir:{name}"),
            "```",
            "",
        ),
        f"Images: {size} x {size} pixels, {loaded.spec.channels} channels; `config.json` holds their mean and standard "
        "deviation.",
        *("", "## Training", "", *_training(run, settings)),
        *("", "## Results", "", *_table(results)),
        *("", "## Licence", "", licence or "None is stated: ask whoever published these weights."),
        "",
    ]
    text = "\n".join(lines).encode(errors="backslashreplace")
    write_atomically(path, lambda file: file.write(text))


def _reached(result: Result) -> Any:
    """As the Hub's tables of results want it."""
    from huggingface_hub import EvalResult

    word = re.sub(r"[^a-z0-9_-]+", "-", result.data.lower()).strip("-") or "images"
    value = round(result.value, 2)
    return EvalResult("image-classification", word, result.data, "accuracy", value, metric_name=result.what)


_USE = """import timm
import torch

model = timm.create_model("{place}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.no_grad():
    features = model(transform(image)[None])  # of a PIL image: (1, model.num_features)"""


def _training(run: Path, settings: Mapping[str, Any]) -> list[str]:
    """Data, settings, and with what it was done; of a file that tells nothing, that."""
    if "train_images" not in settings:
        return ["The file that these weights came from does not say how they were made."]
    data = settings["train_images"]
    lines = [f"* Images: {data['images']:,}, of `{name_of_data(str(settings['data_path']))}`, without their labels"]
    about = _read(run / "settings.json")
    given = about.get("given") or {}
    chosen = {name: value for name, value in given.items() if name not in NEUTRAL_SETTINGS}
    shown = {
        "method": settings["method"],
        "epochs": settings.get("epochs"),
        "batch of a process": settings.get("batch"),
    }
    lines += [f"* {name}: {_words(value)}" for name, value in shown.items() if value is not None]
    if chosen:
        lines.append("* settings: " + ", ".join(f"`{name} {_words(value)}`" for name, value in sorted(chosen.items())))
    if about:
        lines.append(f"* processes: {about.get('world_size', '?')}")
        versions = about.get("versions") or {}
        lines += [f"* with {', '.join(f'{name} {value}' for name, value in versions.items())}"] if versions else []
        lines += [f"* code: commit {about['commit']}"] if about.get("commit") else []
    return lines


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _table(results: list[Result]) -> list[str]:
    if not results:
        return ["No evaluation was found beside the weights."]
    rows = [f"| {one.what} | {one.data} | {number(one.value)} |" for one in results]
    return ["| measure | images | value |", "|---|---|---|", *rows]


def _results(run: Path, checkpoint: Path, settings: Mapping[str, Any]) -> Iterator[Result]:
    """What the run's log says last, and what evaluations below its folder say of this very file."""
    log = run / "log.jsonl"
    records = read_log(log, "evaluation") if log.exists() else []
    data = name_of_data(str(settings.get("val_path") or settings.get("data_path", "images")))
    for name, value in (records[-1] if records else {}).items():
        if name not in ("kind", "epoch", "step") and isinstance(value, (int, float)):
            what = {"knn_top1": "kNN accuracy, % (while training)"}.get(name, f"{name} (while training)")
            yield Result(what, data, float(value))
    for path in sorted([*run.rglob("knn.json"), *run.rglob("linear.json")]):
        content = _read(path)
        if not _is_about(content, checkpoint):
            continue
        images = name_of_data(str(content.get("data_path", "images")))
        for k, values in (content.get("knn") or {}).items():
            yield Result(f"{k}-NN accuracy, %", images, values["top1"])
        rates = content.get("lr") or {}
        if rates:
            best = max(values["top1"] for values in rates.values())
            yield Result(f"linear accuracy, % ({content.get('protocol', '')})", images, best)


def _is_about(content: Mapping[str, Any], checkpoint: Path) -> bool:
    found = re.search(r" from (.+?): \d+ entries", str(content.get("what", "")))
    return found is not None and Path(found[1]).exists() and Path(found[1]).samefile(checkpoint)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; nothing where there is none that can be read."""
    try:
        content = read_json(path)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}

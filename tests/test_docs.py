"""The pages that a reader meets first: short, linked, and true to the code."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import main_cwrgp
import main_dino
import main_disco
import main_intl
import main_swav
import main_twist
import main_w2ssl
from benchmarks import publish_study, score_trust
from src.evaluation.score_trust import BY_LOT, MEASURED, most_trusted
from src.evaluation.scores import SCORES
from src.settings import leaves
from tests.helpers import ROOT

import pytest

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md", ROOT / "data" / "README.md"]
)
SCRIPTS = {f"{m.__name__}.py": m for m in
           (main_swav, main_twist, main_intl, main_cwrgp, main_disco, main_w2ssl, main_dino)}  # fmt: skip


def anchors(text: str) -> set[str]:
    """Of the headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """To files and headings of the repository."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if not link.startswith("http")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place.read_text()), target


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1500


def test_every_page_is_linked_from_the_front_page():
    front = (ROOT / "README.md").read_text()
    pages = [str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in front] == []


def test_nothing_that_is_linked_is_left_out_of_the_repository():
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    linked = {(page.parent / target.partition("#")[0]).resolve() for page in PAGES for target in links(page)}
    names = "\n".join(map(str, linked))
    ignored = subprocess.run(["git", "check-ignore", "--stdin"], cwd=ROOT, input=names, capture_output=True, text=True)
    assert (ignored.returncode, ignored.stdout) == (1, "")  # 1: none is


def test_tables_of_studies_say_what_the_studies_found():
    for path, text in publish_study.pages(publish_study.published()).items():
        assert path.read_text() == text, "python benchmarks/publish_study.py writes it"


def test_the_trust_in_scores_is_that_of_the_published_studies():
    assert {name: score_trust.trust_of(folder) for name, folder in score_trust.PUBLISHED.items()} == {
        name: (trusts, BY_LOT[name]) for name, trusts in MEASURED.items()
    }, "python benchmarks/score_trust.py --write writes it"
    title = next(score.title for score in SCORES if score.name == most_trusted())
    assert f"at present {title}" in (ROOT / "docs" / "study.md").read_text()


def commands() -> list[tuple[str, list[str]]]:
    """Every command line of a pre-training script on the pages: script, words after it."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            variables = dict(re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE))
            for line in block.replace("\\\n", " ").splitlines():
                for name, value in variables.items():
                    line = line.replace(f"${name}", value)
                words = shlex.split(line, comments=True)
                script = next((i for i, word in enumerate(words) if word in SCRIPTS), None)
                skipped = "..." in words or "--config" in words or "--help" in words or "$" in line
                if script is not None and not skipped:
                    found.append((words[script], words[script + 1 :]))
    return found


@pytest.mark.parametrize(("script", "words"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_on_the_pages_is_understood(script, words):
    main_is_cwrgp = script == "main_intl.py" and main_intl.is_cwrgp(words)
    module = main_cwrgp if main_is_cwrgp else SCRIPTS[script]
    assert module.SCRIPT.parse(words).settings.data.data_path


def test_the_architecture_has_no_circles_and_methods_stand_above_the_loop():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import draw_architecture
    finally:
        sys.path.pop(0)
    graph = draw_architecture.imports()
    level = draw_architecture.floors(graph)  # raises for a circle
    assert level["methods"] > level["engine"] > level["parallel"] > level["errors"]
    assert not graph["engine"] & {"methods", "evaluation", "models"}
    assert not graph["data"] & {"models", "methods", "engine", "evaluation"}
    assert not graph["losses"] & {"models", "methods", "engine", "cli", "settings"}
    graph["errors"] = {"methods"}
    with pytest.raises(ValueError, match="in a circle"):
        draw_architecture.floors(graph)


def test_files_have_one_topic_and_functions_fit_on_a_screen():
    """At most 350 lines a file and 60 a function; the table of protocols is a table."""
    import ast

    files = [*ROOT.glob("*.py"), *(ROOT / "src").rglob("*.py")]
    assert [path.name for path in files if len(path.read_text().splitlines()) > 350] == []
    long = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 60:
                long.append(f"{path.relative_to(ROOT)}:{node.name} {node.end_lineno - node.lineno + 1}")
    assert long == []


def test_every_script_names_its_settings_uniquely():
    for module in SCRIPTS.values():
        names = [leaf.name for leaf in leaves(module.SCRIPT.settings)]
        assert len(names) == len(set(names))
        flags = [flag for leaf in leaves(module.SCRIPT.settings) for flag in leaf.flags]
        assert len(flags) == len(set(flags))

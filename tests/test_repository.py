"""What the repository says about itself: links, paths, names of code and fields, versions, templates, file sizes."""

import ast
import re
import subprocess
import tomllib
import unicodedata
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import pytest
import yaml
from pydantic import BaseModel

from launch.config import RunConfig
from pipeline.train.config import FlowTrainConfig

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")),
]
DOCUMENTS = [*GUIDES, "CHANGELOG.md", "SECURITY.md"]
TEMPLATES = sorted(path.name for path in ROOT.glob(".github/ISSUE_TEMPLATE/*.y*ml") if path.stem != "config")
ROOMS = ("data", "models", "pipeline", "launch", "tests", "benchmarks", "docs", "testing", "recipes")

MAX_BYTES = 200 * 1024  # as check-added-large-files --maxkb=200 counts
LARGE_FILES: set[str] = set()  # images that may be larger, by name

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*$")
CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'(][^)]*)?\s*\)")  # [text](target "title"), images too
REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?(?:\s|$)", re.MULTILINE)
HTML_LINK = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)=[\"']([^\"']+)[\"']", re.IGNORECASE)
HTML_ANCHOR = re.compile(r"<[a-z][^>]*?\b(?:id|name)=[\"']([^\"']+)[\"']", re.IGNORECASE)
SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)
PATH = re.compile(rf"^(?:{'|'.join(ROOMS)})/[\w./*-]*$")
SECTIONS = ("data", "autoencoder", "encode", "dit", "sample", "evaluate", "cluster", "train")
FIELD = re.compile(rf"^(?:{'|'.join(SECTIONS)})(?:\.[a-z][a-z_]*)+$")
FILE_SUFFIXES = ("py", "json", "jsonl", "yaml", "yml", "md", "safetensors", "tar", "parquet", "html", "lock", "txt")
THEORY = ROOT / "docs" / "reference" / "theory.md"


def prose_of(markdown: str) -> str:
    """The text without fenced blocks, line by line."""
    lines, fence = [], ""
    for line in markdown.splitlines():
        mark = FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line.strip(" `~"):
                fence = ""
        elif mark:
            fence = mark[1]
        else:
            lines.append(line)
    return "\n".join(lines)


def links_of(markdown: str) -> list[str]:
    """Targets of links and images, but for those that are shown as code."""
    text = CODE.sub("`", prose_of(markdown))
    return [target for pattern in (LINK, REFERENCE, HTML_LINK) for target in pattern.findall(text)]


def slug_of(heading: str) -> str:
    """The anchor GitHub gives a heading: lower case, only letters, marks, digits, _ and -, and - for each space."""
    shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"<[^>]+>", "", heading)).strip().lower()
    kept = (
        c for c in shown if c in " -" or unicodedata.category(c)[0] in "LM" or unicodedata.category(c) in ("Nd", "Pc")
    )
    return "".join(kept).replace(" ", "-")


def anchors_of(markdown: str) -> set[str]:
    """Every anchor of a document; a heading that comes again gets -1, -2, ..."""
    prose = prose_of(markdown)
    anchors, times = set(HTML_ANCHOR.findall(CODE.sub("`", prose))), {}
    for line in prose.splitlines():
        if heading := HEADING.match(line):
            slug = slug_of(heading[1])
            times[slug] = times.get(slug, -1) + 1
            anchors.add(f"{slug}-{times[slug]}" if times[slug] else slug)
    return anchors


def broken_links(document: Path, root: Path) -> list[str]:
    """Links of a document that lead nowhere within the repository."""
    markdown, broken = document.read_text(encoding="utf-8"), []
    for link in links_of(markdown):
        if SCHEME.match(link):
            continue
        name, _, anchor = (unquote(part) for part in link.partition("#"))
        target = document
        if name:
            target = (root / name.lstrip("/") if name.startswith("/") else document.parent / name).resolve()
        if not target.is_relative_to(root) or not target.exists():
            broken.append(f"{link}: there is no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors_of(target.read_text(encoding="utf-8")):
            broken.append(f"{link}: there is no such heading")
    return broken


def missing_paths(markdown: str, root: Path) -> list[str]:
    """Paths in backticks that begin with a room of the repository and name nothing in it."""
    words = [word for _, code in CODE.findall(prose_of(markdown)) for word in code.split()]
    paths = {word.partition("::")[0] for word in words if PATH.match(word.partition("::")[0])}
    return sorted(path for path in paths if not any(any(root.glob(name.rstrip("/"))) for name in (path, f"{path}.py")))


def cells_of(markdown: str, column: str) -> list[str]:
    """The cells of a column, from every table that has a column of that name."""
    cells, index = [], None
    for line in prose_of(markdown).splitlines():
        row = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not row:
            index = None
        elif index is None:
            index = row.index(column) if column in row else -1
        elif index >= 0 and not set(row[index]) <= set("-: "):
            cells.append(row[index])
    return cells


def codes_of(markdown: str) -> list[str]:
    """What stands in backticks."""
    return [code for _, code in CODE.findall(prose_of(markdown))]


def names_of_tests() -> set[str]:
    """The names of all test functions."""
    sources = (path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    return {name for source in sources for name in re.findall(r"^ *def (test_\w+)\(", source, re.MULTILINE)}


def defines(body: list[ast.stmt], names: list[str]) -> bool:
    """Whether a module or class body defines a function, class or field of this name, such as ["Path", "sample"]."""
    for statement in body:
        name = getattr(statement, "name", None) or getattr(getattr(statement, "target", None), "id", None)
        if name == names[0]:
            return len(names) == 1 or defines(getattr(statement, "body", []), names[1:])
    return False


def is_code(name: str) -> bool:
    """Whether a name of the theory's tables exists: `module.function` in `models.flow`, or with its full package."""
    parts = name.split(".")
    full = parts if parts[0] in ROOMS else ["models", "flow", *parts]
    modules = ((ROOT.joinpath(*full[:length]).with_suffix(".py"), full[length:]) for length in range(1, len(full)))
    return any(
        path.is_file() and defines(ast.parse(path.read_text(encoding="utf-8")).body, names) for path, names in modules
    )


def records_in(annotation: Any) -> list[type[BaseModel]]:
    """The records that occur in a type expression."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for part in get_args(annotation) for record in records_in(part)]


def is_field(name: str) -> bool:
    """Whether a configuration has this field; `train.x` is meant for both trainings."""
    first, *parts = name.split(".")
    owners = [FlowTrainConfig] if first == "train" else records_in(RunConfig.model_fields[first].annotation)
    for part in parts:
        fields = [owner.model_fields[part] for owner in owners if part in owner.model_fields]
        if not fields:
            return False
        owners = [record for field in fields for record in records_in(field.annotation)]
    return True


@pytest.mark.parametrize(
    ("heading", "slug"),
    [
        ("Long clips: several workers for one sample", "long-clips-several-workers-for-one-sample"),
        ("samples/step_NNNNNNN/*.mp4", "samplesstep_nnnnnnnmp4"),
        ("Fine-tuning, and `lora` & co", "fine-tuning-and-lora--co"),
        ("See [the run](README.md#the-run)", "see-the-run"),
        ("[0.1.0] - 2026-11-22", "010---2026-11-22"),
        ("Größe in ²", "größe-in-"),
    ],
)
def test_slugs_are_githubs(heading, slug):
    assert slug_of(heading) == slug


def test_broken_links_and_paths_are_found(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "clip.py").touch()
    (tmp_path / "b.md").write_text("# One\n# One\n```\n# Two\n```\n", encoding="utf-8")
    good = "[1](b.md#one) [2](b.md#one-1) [3](/b.md 'title') ![4](data/clip.py) [5](#top) `[6](gone.md)` [7](https://a.b/c)"
    bad = "[1](gone.md) [2](b.md#two) [3](b.md#one-2) [4](../b.md) [5](#bottom)\n\n[6]: gone.png\n<img src='gone.svg'>"
    document = tmp_path / "a.md"
    document.write_text(f"# Top\n{good}\n{bad}\n```\n[8](gone.md)\n```\n", encoding="utf-8")
    found = [broken.partition(":")[0] for broken in broken_links(document, tmp_path)]
    assert found == ["gone.md", "b.md#two", "b.md#one-2", "../b.md", "#bottom", "gone.png", "gone.svg"]
    text = (
        "`data/clip` `data/clip.py::test` `data/` `data/*.py` `run data/no.py` `data/gone` other `runs/data` data/bare"
    )
    assert missing_paths(text, tmp_path) == ["data/gone", "data/no.py"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file_and_a_heading(name):
    assert broken_links(ROOT / name, ROOT) == []


@pytest.mark.parametrize("name", GUIDES)
def test_every_path_in_backticks_exists(name):
    assert missing_paths((ROOT / name).read_text(encoding="utf-8"), ROOT) == []


def test_tables_of_the_theory_name_code_and_tests_that_exist():
    theory, tests = THEORY.read_text(encoding="utf-8"), names_of_tests()
    code = [name for cell in cells_of(theory, "code") for name in codes_of(cell)]
    assert len(code) > 30
    assert [name for name in code if not is_code(name)] == []
    named = [name for cell in cells_of(theory, "test") for name in codes_of(cell) if not PATH.match(name)]
    assert len(named) > 30
    assert [name for name in named if name not in tests] == []
    assert all(codes_of(cell) or cell.startswith("the same test") for cell in cells_of(theory, "test"))


def numbers_in(text: str) -> set[int]:
    """Equations of the text called L in a cell such as "L 4, 27-33 and 37; H algorithm 3"."""
    lists = re.findall(r"\bL ((?:\d+(?:-\d+)?(?:, and |, | and )?)+)", text)
    ranges = re.findall(r"(\d+)(?:-(\d+))?", " ".join(lists))
    return {number for first, last in ranges for number in range(int(first), int(last or first) + 1)}


# Statements of the text called H that have a name, as the page calls them.
STATEMENTS = (
    "flows and ODEs",
    "existence and uniqueness of flows",
    "algorithm 1",
    "existence and uniqueness of SDE solutions",
    "algorithm 2",
    "Uhlenbeck process",
    "marginalisation trick",
    "continuity equation",
    "SDE extension trick",
    "Planck equation",
    "Langevin dynamics",
    "flow matching loss",
    "algorithm 3",
    "score matching loss",
    "algorithm 4",
    "conversion formulas",
    "forward process",
    "time reversal",
    "algorithm of classifier-free guidance",
    "U-Nets",
)


def test_every_numbered_equation_and_every_named_statement_of_the_texts_has_a_row():
    rows = cells_of(THEORY.read_text(encoding="utf-8"), "equation")
    assert numbers_in("L 4, 27-29 and 37; H algorithm 3; Chen et al. 2023, 5") == {4, 27, 28, 29, 37}
    assert set().union(*map(numbers_in, rows)) == set(range(1, 48))
    of_h = [row[row.index("H ") :] for row in rows if "H " in row]
    assert [name for name in STATEMENTS if not any(name in row for row in of_h)] == []


def test_names_that_do_not_exist_are_found():
    assert cells_of("| a | b |\n|---|---|\n| 1 | `2` |\n\n| b |\n|---|\n| 3 |\n", "b") == ["`2`", "3"]
    assert [is_code(name) for name in ("solver.heun", "path.Path.sample", "spec.FlowSpec.path")] == [True] * 3
    assert [is_code(name) for name in ("solver.gone", "path.Path.gone", "gone.heun", "models.gone.DiT")] == [False] * 4
    assert [is_field(name) for name in ("dit.train.ema", "train.start_from", "data.gone")] == [True, True, False]


@pytest.mark.parametrize("name", [*GUIDES, "SECURITY.md"])
def test_every_test_in_backticks_exists(name):
    codes = {code for code in codes_of((ROOT / name).read_text(encoding="utf-8")) if re.fullmatch(r"test_\w+", code)}
    assert codes - names_of_tests() == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_field_of_the_configuration_in_backticks_exists(name):
    words = (word for code in codes_of((ROOT / name).read_text(encoding="utf-8")) for word in re.split(r"[=:\s]", code))
    fields = {word for word in words if FIELD.match(word) and not word.endswith(FILE_SUFFIXES)}
    assert sorted(field for field in fields if not is_field(field)) == []


def test_the_documents_are_found():
    assert any(name.startswith("docs/") for name in GUIDES)
    assert sum(len(links_of((ROOT / name).read_text(encoding="utf-8"))) for name in GUIDES) > 20


def test_every_document_is_reachable_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        document = waiting.pop()
        reached.add(document)
        for link in links_of(document.read_text(encoding="utf-8")):
            target = (document.parent / unquote(link.partition("#")[0])).resolve()
            if target.suffix == ".md" and target.is_file() and target not in reached:
                waiting.append(target)
    assert {ROOT / name for name in GUIDES} - reached == set()


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == project()["name"]
    assert citation["version"] == project()["version"]
    assert citation["license"] == project()["license"]
    assert all("name" in author or "family-names" in author for author in citation["authors"])


def test_the_citation_names_the_texts_of_the_theory():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    cited = {identifier["value"] for text in citation["references"] for identifier in text["identifiers"]}
    (theory,) = ROOT.glob("docs/**/theory.md")
    introduction = theory.read_text(encoding="utf-8").partition("\n## ")[0]
    assert cited == {f"arXiv:{number}" for number in re.findall(r"arXiv (\d{4}\.\d{5})", introduction)}
    assert len(cited) == 2


def test_the_changelog_has_this_version_below_what_is_unreleased():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert project()["version"] == sections[1]
    groups = set(re.findall(r"^### (.+)$", changelog, re.MULTILINE))
    assert groups <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_there_are_issue_templates():
    assert {"bug_report.yml", "feature_request.yml"} <= set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_issue_template_is_a_form_that_github_takes(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / name).read_text(encoding="utf-8"))
    assert form["name"].strip()
    assert form["description"].strip()
    assert form.keys() <= {"name", "description", "title", "labels", "assignees", "projects", "type", "body"}
    assert {field["type"] for field in form["body"]} <= {"markdown", "input", "textarea", "dropdown", "checkboxes"}
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert asked
    assert all(field["attributes"]["label"].strip() for field in asked)
    assert len({field["id"] for field in asked}) == len(asked)
    assert len({field["attributes"]["label"] for field in asked}) == len(asked)


def test_the_configuration_of_issues_is_what_github_takes():
    config = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml").read_text(encoding="utf-8"))
    assert config.keys() <= {"blank_issues_enabled", "contact_links"}
    assert isinstance(config["blank_issues_enabled"], bool)
    assert all(link.keys() == {"name", "url", "about"} for link in config.get("contact_links", []))


def test_no_tracked_file_is_large():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in listed.split("\0") if (ROOT / name).is_file()}
    assert len(sizes) > 100
    assert {name for name, size in sizes.items() if size > MAX_BYTES} == LARGE_FILES

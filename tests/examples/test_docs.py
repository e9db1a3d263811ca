"""The pages: links, navigation, the length of README, commands, the reference, and the texts of troubleshooting."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import yaml

import nag
import nag.corrections
from nag.cli.main import COMMANDS
from tests.house import sources

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and the site name them."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_in_the_navigation_once():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for one in (entry.values() if isinstance(entry, dict) else entry) for page in pages(one)]

    listed = pages(yaml.safe_load(text_of(ROOT / "mkdocs.yml"))["nav"])
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_readme_is_one_screen_with_one_measured_table():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 90
    assert len(re.findall(r"^\| ---", text_of(ROOT / "README.md"), re.MULTILINE)) == 1


def test_the_reference_has_every_public_name():
    shown = re.findall(r"^::: nag\.([\w.]+)$", text_of(DOCS / "reference.md"), re.MULTILINE)
    names = {name.removeprefix("corrections.").removeprefix("seams.attach.") for name in shown}
    assert names == set(nag.__all__) | set(nag.corrections.__all__) - {"HIDDEN"}
    assert len(shown) == len(set(shown))


def commands(page: Path) -> list[list[str]]:
    """The lines of a page's shell blocks that call `nag`, as words."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text_of(page), re.DOTALL)).replace("\\\n", " ")
    lines = [
        shlex.split(line, comments=True) for line in blocks.splitlines() if line.strip().startswith("nag ")
    ]
    return [words[1:] for words in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_have_flags_that_exist(page):
    for words in commands(page):
        place = COMMANDS[words.pop(0)]
        place = place[words.pop(0)] if isinstance(place, dict) else place
        options = getattr(importlib.import_module(place[0]), place[1])
        known = {field.name for field in fields(options)} | {"scheduler"}
        flags = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
        assert {flag.removeprefix("no_") for flag in flags} <= known, words


@cache
def texts() -> list[str]:
    """The strings of the source, values as NUL."""
    found = []
    for path in sources("nag", "pipelines", "finetune"):
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%(s|\.\d+f)", "\0", node.value).replace("%%", "%"))
    return found


def is_said(quoted: str) -> bool:
    """Whether each clause of a quoted text is one of the source; `...` stands for a value."""
    clauses = [part.strip(" .,:()") for part in re.split(r"\.\.\.|[,.:;] ", quoted)]
    return all(any(clause in text for text in texts()) for clause in clauses)


QUOTED = re.findall(r"```text\n(.*?)\n```", text_of(DOCS / "troubleshooting.md"), re.DOTALL)


@pytest.mark.parametrize("quoted", QUOTED, ids=lambda quoted: quoted.split(",")[0][:50])
def test_texts_of_troubleshooting_are_in_the_source(quoted):
    assert is_said(quoted)


def test_a_text_that_nobody_says_is_noticed():
    assert len(QUOTED) >= 12
    assert not is_said(QUOTED[0].replace("cannot be reached", "is closed"))


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    """Strictly: a broken link or name is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = text_of(tmp_path / "reference.html")
    assert all(f"{name}</span>" in page or f"{name}</code>" in page for name in nag.__all__)

"""What the documents tell people to type, read and set exists."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE_FOLDERS = ("src", "components", "pipelines")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
REPOSITORY_PATH = re.compile(r"`((?:src|components|pipelines|docs|tests|benchmarks|helm|docker)/[\w./-]+)`")
SEPARATORS = {"|", "||", "&&", ";", "&", ">", ">>", "2>", "<"}


def shell_lines(text: str) -> Iterator[str]:
    for language, block in FENCE.findall(text):
        if language in ("sh", "bash", "console"):
            yield from block.replace("\\\n", " ").splitlines()


def commands(program: str) -> list[tuple[str, str]]:
    """(document, arguments of ``program``) for each use in a shell block, up to a pipe or redirection."""
    found = []
    for document in DOCUMENTS:
        for line in shell_lines(document.read_text()):
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            words = list(lexer)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                del words[0]
            if words and words[0] == program:
                end = next((i for i, word in enumerate(words) if word in SEPARATORS), len(words))
                found.append((document.name, shlex.join(words[1:end])))
    return sorted(set(found))


@pytest.mark.parametrize(("document", "arguments"), commands("make"))
def test_make_target_exists(document, arguments):
    words = shlex.split(arguments)
    targets = [word for word in words if not word.startswith("-") and "=" not in word]
    done = subprocess.run(["make", "-C", ROOT, "-n", *words], capture_output=True, text=True, check=False)
    assert targets and done.returncode == 0, f"{document}: make {arguments}: {done.stderr}"
    variables = {word.split("=")[0] for word in words if "=" in word}
    assert variables <= set(re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize(("document", "arguments"), commands("intern"))
def test_intern_command_and_its_options_exist(document, arguments):
    import typer.main
    from typer.testing import CliRunner

    from intern_vision.cli import app

    command = typer.main.get_command(app)
    path, options = [], {"--help": True}
    words = iter(shlex.split(arguments))
    for word in words:
        for parameter in command.params:
            names = parameter.opts + parameter.secondary_opts
            options |= dict.fromkeys(names, getattr(parameter, "is_flag", False))
        if word.startswith("-"):
            name, has_value, _ = word.partition("=")
            assert name in options, f"{document}: intern {arguments}: {word}, known: {sorted(options)}"
            if not (options[name] or has_value):
                next(words)
        elif hasattr(command, "commands"):
            assert word in command.commands, f"{document}: intern {arguments}: known: {sorted(command.commands)}"
            command = command.commands[word]
            path.append(word)
    shown = CliRunner().invoke(app, [*path, "--help"])
    assert shown.exit_code == 0, f"{document}: intern {arguments}: {shown.output}"


def test_the_readme_shows_how_to_start():
    shown = {arguments.split()[0] for document, arguments in commands("make") if document == "README.md"}
    assert {"run", "test"} <= shown
    assert {"adapt", "compile"} <= {a.split()[0] for document, a in commands("intern") if document == "README.md"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(document):
    text = document.read_text()
    dead = []
    for target in (first or second for first, second in LINK.findall(text)):
        target, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        path = document.parent / target if target else document
        if not path.exists():
            dead.append(target)
        elif anchor and path.suffix == ".md" and anchor not in anchors(path):
            dead.append(f"{target}#{anchor}")
    dead += [path for path in REPOSITORY_PATH.findall(text) if not (ROOT / path).exists()]
    assert dead == []


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_environment_variables_named_are_read_by_the_code(document):
    named = set(re.findall(r"\b(?:INTERN|MLFLOW)_[A-Z0-9_]+\b", document.read_text()))
    code = "\n".join(path.read_text() for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py"))
    assert sorted(name for name in named if name not in code) == []

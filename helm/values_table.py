"""Writes the table of values in the chart's README from the comments in ``values.yaml``.

Usage: ``python helm/values_table.py`` rewrites it, ``--check`` says with exit code 1 that it is not current.
"""

import sys
from pathlib import Path

import yaml

CHART = Path(__file__).parent / "intern-vision"
START, END = "<!-- values: made by helm/values_table.py -->", "<!-- end of values -->"


def rows(text: str) -> list[tuple[str, str, str]]:
    """(path, default as JSON-like YAML, comment) of every value that has a comment.

    A value is a line ``key: ...`` right below comment lines of its own indentation; what is nested below a commented
    key belongs to it.

    Raises:
        ValueError: a value is neither commented nor part of one that is.
    """
    found: list[tuple[str, str, str]] = []
    stack: list[tuple[int, str]] = []
    comment: list[str] = []
    covered: int | None = None  # indentation of a commented value whose lines are being skipped
    defaults = yaml.safe_load(text)
    for number, line in enumerate(text.splitlines(), 1):
        bare, indent = line.strip(), len(line) - len(line.lstrip())
        if not bare:
            comment = []
            continue
        if covered is not None and indent > covered:
            continue
        covered = None
        if bare.startswith("#"):
            comment.append(bare.lstrip("# "))
            continue
        key = bare.partition(":")[0]
        stack = [item for item in stack if item[0] < indent] + [(indent, key)]
        path = [name for _, name in stack]
        if comment:
            found.append((".".join(path), _shown(_at(defaults, path)), " ".join(comment)))
            comment, covered = [], indent
        elif bare.partition(":")[2].strip():
            raise ValueError(f"values.yaml:{number}: {'.'.join(path)} has no comment")
    return found


def table(text: str) -> str:
    """The rows as a Markdown table."""
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for path, default, comment in rows(text):
        lines.append(f"| `{path}` | `{default}` | {comment} |".replace("``", "` `"))
    return "\n".join(lines)


def readme_with_table(readme: str, text: str) -> str:
    """The README with the table between its two marks replaced."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table(text)}\n\n{END}{after}"


def _at(values: object, path: list[str]) -> object:
    for name in path:
        values = values[name]
    return values


def _shown(value: object) -> str:
    shown = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("...\n").strip()
    return '""' if value == "" else shown


def main() -> int:
    """Rewrites the README, or checks it."""
    path = CHART / "README.md"
    readme, text = path.read_text(), (CHART / "values.yaml").read_text()
    wanted = readme_with_table(readme, text)
    if "--check" in sys.argv[1:]:
        if wanted != readme:
            print(f"{path}: its table is not current; run python helm/values_table.py", file=sys.stderr)
        return int(wanted != readme)
    path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The rules that the whole repository keeps; each failure names the file and what to change."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import intern_vision
from intern_vision.stages.base import STAGE_NAMES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"intern_vision": "src/intern_vision", "intern_components": "components", "intern_pipelines": "pipelines"}
CODE_FOLDERS = (*PACKAGES.values(), "tests", "benchmarks")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# A distribution that another one brings along as its other half.
COMES_WITH = {"botocore": "boto3", "kfp-server-api": "kfp", "protobuf": "kfp", "urllib3": "requests"}


def python_files(*folders: str) -> list[Path]:
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert files, f"no Python file below {folders}"
    return files


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield node.module


def importers(path: Path, roots: set[str]) -> list[str]:
    found = sorted({name.split(".")[0] for name in imported_names(path)} & roots)
    return [f"{path.relative_to(ROOT)} imports {name}" for name in found]


def requirements(*extras: str) -> dict[str, Requirement]:
    lines = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        lines += PROJECT["project"]["optional-dependencies"][extra]
    return {plain(r.name): r for r in map(Requirement, lines)}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("src/intern_vision", {"kfp", "kubernetes", "intern_components", "intern_pipelines", "torchvision", "timm"}),
        ("components", {"intern_pipelines", "torchvision", "timm"}),
        ("pipelines", {"kubernetes", "torchvision", "timm"}),
    ],
)
def test_dependencies_point_one_way(folder, forbidden):
    assert [line for path in python_files(folder) for line in importers(path, forbidden)] == []


def test_only_one_file_knows_kfp_kubernetes():
    users = [
        path.relative_to(ROOT).as_posix()
        for path in python_files(*PACKAGES.values())
        if any(name == "kfp.kubernetes" or name.startswith("kfp.kubernetes.") for name in imported_names(path))
        or re.search(r"from kfp import .*\bkubernetes\b", path.read_text())
    ]
    assert set(users) <= {"pipelines/platform.py"}


def test_every_import_is_a_declared_dependency():
    declared = set(requirements("onnx"))
    providers = importlib.metadata.packages_distributions()
    undeclared = set()
    for path in python_files(*PACKAGES.values()):
        for name in imported_names(path):
            root = name.split(".")[0]
            if root in sys.stdlib_module_names or root in PACKAGES:
                continue
            names = {COMES_WITH.get(plain(p), plain(p)) for p in providers.get(root, [root])}
            if not names & declared:
                undeclared.add(f"{path.relative_to(ROOT)}: {root} ({', '.join(sorted(names))})")
    assert sorted(undeclared) == [], "add them to dependencies in pyproject.toml"


def test_every_dependency_has_bounds_and_constraints_fulfil_them():
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            assert "+" not in version, f"{line}: a local version shuts out other machines"
            pinned[plain(name)] = Version(version)
    for name, requirement in requirements("dev", "onnx").items():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert {">=", "<"} <= operators, f"{requirement}: needs a lower and an upper bound"
        assert name in pinned, f"{name}: not in constraints.txt; run make lock"
        assert requirement.specifier.contains(pinned[name]), f"constraints.txt: {name} {pinned[name]}; run make lock"


def test_constraints_are_sorted():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == sorted(lines, key=str.upper), "constraints.txt is written by make lock"


def test_versions_agree():
    assert PROJECT["project"]["version"] == intern_vision.__version__
    assert f"{intern_vision.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_package_and_its_data_files_are_installed():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    found = set()
    for name, folder in PACKAGES.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join((name, *init.parent.relative_to(ROOT / folder).parts)))
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert any(path.match(p) for p in patterns), f"{path}: no pattern of package-data installs it"
    assert listed == found


def test_licence_is_the_apache_licence():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability" in text and "END OF TERMS AND CONDITIONS" in text


def component_functions(path: Path) -> list[ast.FunctionDef]:
    return [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and any("component" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]


def test_components_are_thin():
    num_components = 0
    for path in python_files("components"):
        functions = component_functions(path)
        num_components += len(functions)
        name = path.relative_to(ROOT)
        if functions:
            assert len(functions) == 1, f"{name}: one component a file"
            assert len(path.read_text().splitlines()) <= 40, f"{name}: more than 40 lines; move code into src"
        for function in functions:
            body = function.body[1:] if ast.get_docstring(function) is not None else function.body
            num_lines = body[-1].end_lineno - body[0].lineno + 1
            assert num_lines <= 15, f"{name}: body of {num_lines} lines, more than 15; move code into src"
    assert num_components


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_stage_has_one_config_and_one_run(stage):
    body = ast.parse((ROOT / f"src/intern_vision/stages/{stage}.py").read_text()).body
    assert [node.name for node in body if isinstance(node, ast.ClassDef) and node.name == "Config"] == ["Config"]
    (run,) = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    assert [argument.arg for argument in run.args.args] == ["config", "inputs", "context"]
    assert run.returns is not None and ast.unparse(run.returns) == "Ref"


def test_no_path_of_one_machine():
    machine_path = re.compile(r"""(?:^|[\s"'`(=])/(?:root|work|Users|home/(?!intern\b))[/\w]*""", re.MULTILINE)
    texts = [*python_files(*CODE_FOLDERS), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    texts += [ROOT / name for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/run")]
    found = [
        f"{path.relative_to(ROOT)}: {match.group().strip()}"
        for path in texts
        if path.name != Path(__file__).name
        for match in machine_path.finditer(path.read_text())
    ]
    assert found == []


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE)) - {"freeze"}
    shown = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    assert {"run", "test", "lint", "format", "bench", "lock", "smoke", "clean", "help"} <= targets
    assert targets == set(re.findall(r"^  make ([a-z]+) ", shown, re.MULTILINE))


def test_continuous_integration_runs_lint_and_test():
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111, f"{script}: not executable"
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert text.rstrip().splitlines()[-1].endswith("lint test"), "nothing may follow pytest's closing line"

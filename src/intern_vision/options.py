"""Command-line options that every command shares."""

from pathlib import Path
from typing import Annotated, Literal

import typer

StateDir = Annotated[Path, typer.Option("--state-dir", envvar="INTERN_STATE", help="Folder for everything local.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Where = Annotated[
    Literal["process", "docker"],
    typer.Option("--where", help="process: as processes of this machine; docker: in containers, see docs/docker.md."),
]
DEFAULT_STATE = Path(".intern")

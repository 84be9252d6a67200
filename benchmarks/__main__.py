"""Runs every script in a process of its own and prints one table; a miss is shown, not an error."""

import json
import subprocess
import sys

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Figure, hardware

SCRIPTS = ("d1_trainer_step", "d3_loader", "d10_pipeline_step", "d13_tracking", "d14_search_cost")
COLUMNS = ("figure", "measured", "target", "", "reference", "limit")


def main(options: list[str]) -> int:
    """Runs the scripts with the given options, for example ``--rounds 9``; 0 where each gave its figures."""
    table = Table(*COLUMNS, title="Benchmarks", caption=hardware(), show_lines=True)
    num_failed = 0
    for script in SCRIPTS:
        print(f"measuring {script} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"benchmarks.{script}", "--json", *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            num_failed += 1
            table.add_row(script, f"failed with code {done.returncode}")
            continue
        # Libraries may print on standard output; the figures are its last line.
        for values in json.loads(done.stdout.strip().splitlines()[-1]):
            table.add_row(*Figure(**values).cells())
    # A pipe has no width of its own, and the table is made for reading.
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""CPU seconds and memory of the label system at several sizes: build, write, read, merge into, roll up.

The graph is made: a concept's first parent lies among those before it, every fifth has a second one, and the depth is
some 25. Labels are uniform, which is the dearest case for rolling up.
"""

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import hardware
from intern_vision.data.labels.concept import Concept, LabelSystem
from intern_vision.data.labels.merge import merge
from intern_vision.data.labels.public import label_system_json, read_label_system
from intern_vision.data.labels.vocabulary import shipped_names, shipped_vocabulary

SIZES = (30_000, 120_000)
IMAGES_PER_CONCEPT = 8


def made_system(num_concepts: int) -> tuple[list[Concept], dict[str, list[str]]]:
    """Concepts and their parents."""
    draw = random.Random(0)
    ids = [f"n{number:08d}" for number in range(num_concepts)]
    concepts = [Concept(id=id, names={"en": (f"name {id}", f"other {id}")}) for id in ids]
    parents = {
        ids[number]: [ids[draw.randrange(number // 8, number)] for _ in range(2 if number % 5 == 0 else 1)]
        for number in range(1, num_concepts)
    }
    return concepts, parents


def measure(num_concepts: int) -> dict[str, float]:
    """CPU seconds by what was done."""
    taken: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        taken[name] = time.process_time() - started
        return result

    concepts, parents = made_system(num_concepts)
    system = timed("build", lambda: LabelSystem(concepts, parents))
    text = timed("write JSON", lambda: label_system_json(system))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.json"
        path.write_text(text, encoding="utf-8")
        timed("read JSON", lambda: read_label_system(path))
    lists = [shipped_vocabulary(name) for name in shipped_names()]
    timed("merge the shipped lists into it", lambda: merge(lists, base=system))
    draw = random.Random(1)
    images = [(draw.choice(concepts).id,) for _ in range(IMAGES_PER_CONCEPT * num_concepts)]
    timed(f"roll up {IMAGES_PER_CONCEPT} images a concept", lambda: system.rolled_up_counts(images))
    return taken


def main(options: Sequence[str] | None = None) -> None:
    """Prints a line a size and thing done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-concepts", type=int, nargs="+", default=SIZES, help="sizes")
    for num_concepts in parser.parse_args(options).num_concepts:
        for name, seconds in measure(num_concepts).items():
            each_us = 1e6 * seconds / num_concepts
            print(f"{num_concepts:>8} concepts  {name:34} {seconds:8.2f} CPU-s  {each_us:6.1f} us each")
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory {peak_bytes / 1e6:.0f} MB; {hardware()}")


if __name__ == "__main__":
    main()

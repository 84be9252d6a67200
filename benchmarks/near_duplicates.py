"""Near-duplicate search among random hashes with planted pairs: time against brute force in numpy, and recall.

Random hashes spread evenly, so candidates are as few as they can be; the planted ones lie at every distance up to the
limit. Brute force is timed on some queries against all hashes and scaled to all queries, as its time is linear in them.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import hardware
from intern_vision.data.duplicates.search import HashIndex

SIZES = (10_000, 100_000, 1_000_000)
NUM_BRUTE_QUERIES = 50
NUM_PLANTED = 2_000
MAX_DISTANCE = 5
"""Bits up to which one changed bit of a part of a hash finds everything."""


def planted_hashes(
    num_hashes: int, max_distance: int, seed: int = 0
) -> tuple[NDArray[np.uint64], set[tuple[int, int]]]:
    """Random hashes, some of which are another one with a few bits changed; and these pairs, the later one first."""
    rng = np.random.default_rng(seed)
    hashes_N = rng.integers(0, 2**64, num_hashes, np.uint64, endpoint=False)
    num_planted = min(NUM_PLANTED, num_hashes // 4)
    rows = rng.permutation(num_hashes)[: 2 * num_planted].reshape(num_planted, 2)
    for number, (first, second) in enumerate(rows.tolist()):
        bits = rng.choice(64, number % (max_distance + 1), replace=False).astype(np.uint64)
        hashes_N[second] = hashes_N[first] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0))
    return hashes_N, {(max(pair), min(pair)) for pair in rows.tolist()}


def main(options: Sequence[str] | None = None) -> None:
    """Prints a line a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-hashes", type=int, nargs="+", default=SIZES, help="sizes")
    parser.add_argument("--max-distance", type=int, default=MAX_DISTANCE, help="bits")
    parser.add_argument("--max-flips", type=int, help="changed bits of a part that are tried; all needed without it")
    given = parser.parse_args(options)
    for num_hashes in given.num_hashes:
        hashes_N, planted = planted_hashes(num_hashes, given.max_distance)
        started = time.process_time()
        index = HashIndex(hashes_N)
        built_s = time.process_time() - started
        hits = index.search(hashes_N, given.max_distance, max_flips=given.max_flips)
        taken_s = time.process_time() - started
        found = set(zip(hits.queries.tolist(), hits.rows.tolist(), strict=True))
        recall = sum(pair in found for pair in planted) / len(planted)
        started = time.process_time()
        for query in hashes_N[:NUM_BRUTE_QUERIES]:
            np.flatnonzero(np.bitwise_count(hashes_N ^ query) <= given.max_distance)
        brute_s = (time.process_time() - started) / NUM_BRUTE_QUERIES * num_hashes
        print(
            f"{num_hashes:>9} hashes, <= {given.max_distance} bits: {taken_s:8.2f} CPU-s "
            f"({1e6 * taken_s / num_hashes:5.2f} us a row, {built_s:.2f} to build), brute force {brute_s:10.1f} CPU-s "
            f"(scaled), {brute_s / taken_s:6.1f} x; recall of {len(planted)} planted pairs {recall:.4f}",
            flush=True,
        )
    print(hardware())


if __name__ == "__main__":
    main()

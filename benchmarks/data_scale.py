"""CPU seconds a row and peak memory of the data steps on made manifests of several sizes, each in a fresh process.

Rows are made as Arrow columns: keys, digests (1 % twice), labels of 1,000 classes by Zipf's law, boxes, captions. There
are no images: what opens them costs the same for each. Steps are run as their stages where these open none. Duplicates
are searched among made thumbnails with the spectrum of photographs (D. Field, Relations between the statistics of
natural images, 1987): all frequencies, with amplitudes that fall as 1 over frequency to the power of 0.8 to 1.2, and a
contrast of 15 to 60 grey values; 1 % are copies of another one with noise of one grey value. They are not photographs:
they have neither plain skies nor pages of text.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import hardware

SIZES = (10_000, 100_000, 1_000_000)
STEPS = ("write", "exact duplicates", "near duplicates", "label", "balance", "shard index", "summary")
MAX_RATIO, MAX_PEAK_BYTES = 1.3, 4e9
NUM_CLASSES = 1_000
SOURCES = ("web", "camera", "archive", "catalogue")
ROWS_AT_ONCE = 2**16
NUM_WARM_ROWS = 1_000
"""Done once before, unmeasured: what is imported and compiled once is no cost of a row."""
TWIN_EVERY = 100
"""Each such row has the digest of the row before it."""
COPY_AT = TWIN_EVERY // 2
"""Rows this far behind those are noisy copies of the row before them."""
SLOPES, CONTRASTS, COPY_NOISE = (0.8, 1.2), (15.0, 60.0), 1.0
_WORDS = ("red", "old", "small", "street", "garden", "night", "two", "open")


def class_name(number: int) -> str:
    """A name that no other class's name is a part of."""
    return f"thing{number:04d}x"


def made_table(start: int, num_rows: int) -> Any:
    """Rows ``start`` to ``start + num_rows`` of a made manifest, as an Arrow table."""
    import numpy as np
    import pyarrow as pa

    from intern_vision.data.manifest import manifest_schema

    rng = np.random.default_rng(start)
    numbers = np.arange(start, start + num_rows)
    digests = np.where(numbers % TWIN_EVERY, numbers, np.maximum(numbers - 1, 0))
    classes = rng.zipf(1.3, num_rows) % NUM_CLASSES
    names = pa.array([class_name(number) for number in range(NUM_CLASSES)])
    labels = names.take(pa.array(classes))
    boxed = names.take(pa.array(rng.integers(0, NUM_CLASSES, 2 * num_rows)))
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32))
    corners = {name: pa.array(rng.uniform(low, low + 90, 2 * num_rows).astype(np.float32)) for name, low in _CORNERS}
    no = pa.array(np.zeros(2 * num_rows, bool))
    boxes = pa.StructArray.from_arrays(
        [boxed, *corners.values(), no, no], names=["label", *corners, "difficult", "ignored"]
    )
    words = rng.integers(0, len(_WORDS), (num_rows, 2))
    captions = [
        f"a {_WORDS[a]} {_WORDS[b]} with {class_name(c)}, {n}"
        for (a, b), c, n in zip(words, classes, numbers, strict=True)
    ]
    columns = {
        "key": [f"row-{number:08d}" for number in numbers],
        "uri": [f"s3://made/images/{number:08d}.jpg" for number in numbers],
        "digest": [f"{(int(number) + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:064x}" for number in digests],
        "width_px": rng.integers(200, 2000, num_rows),
        "height_px": rng.integers(200, 2000, num_rows),
        "num_bytes": rng.integers(10**4, 10**6, num_rows),
        "source": pa.array(SOURCES).take(pa.array(numbers % len(SOURCES))),
        "licence": ["CC0-1.0"] * num_rows,
        "split": [""] * num_rows,
        "caption": captions,
        "labels": pa.ListArray.from_arrays(offsets, labels),
        "boxes": pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * num_rows + 1, 2, dtype=np.int32)), boxes),
        "mask": pa.nulls(num_rows, pa.string()),
        "depth": pa.nulls(num_rows, pa.string()),
        "depth_scale": np.zeros(num_rows),
        "concepts": pa.nulls(num_rows, pa.list_(pa.string())),
        "status": ["ok"] * num_rows,
        "reason": [""] * num_rows,
    }
    return pa.table(columns).cast(manifest_schema())


_CORNERS = (("x0", 0.0), ("y0", 0.0), ("x1", 100.0), ("y1", 100.0))


def write_made(path: Path, num_rows: int) -> None:
    """Writes a made manifest."""
    from intern_vision.data.manifest import manifest_writer

    with manifest_writer(path) as writer:
        for start in range(0, num_rows, ROWS_AT_ONCE):
            writer.add_table(made_table(start, min(ROWS_AT_ONCE, num_rows - start)))


def commit_made(folder: Path, store_root: str, num_rows: int) -> Any:
    """Commits the manifest of a folder as ingest would; gives its Ref."""
    from intern_vision.data.manifest import MANIFEST_INFO_NAME, MANIFEST_NAME, ManifestInfo, SourceInfo
    from intern_vision.ref import Ref
    from intern_vision.stages.base import COMMIT_MARKER, Record
    from intern_vision.store import digest_of_files, file_sha256, join_uri, open_store
    from intern_vision.task import Task

    names = tuple(class_name(number) for number in range(NUM_CLASSES))
    tasks = {family: Task(family=family, class_names=names) for family in ("classify", "detect")}
    info = ManifestInfo(
        name="made",
        sources=tuple(SourceInfo(name=name, uri=f"s3://made/{name}", tasks=tasks) for name in SOURCES),
        num_rows=num_rows,
        num_ok=num_rows,
        sha256=file_sha256(folder / MANIFEST_NAME),
    )
    (folder / MANIFEST_INFO_NAME).write_text(info.to_json(), encoding="utf-8")
    files = {name: file_sha256(folder / name) for name in (MANIFEST_NAME, MANIFEST_INFO_NAME)}
    uri, store = join_uri(store_root, "ingest", "made"), open_store(store_root)
    for name in files:
        store.put(folder / name, join_uri(uri, name))
    ref = Ref(kind="manifest", name="made", uri=uri, digest=digest_of_files(files), num_bytes=1, parents=())
    empty: dict[str, Any] = {"key": "", "code": "", "config": {}, "inputs": {}, "facts": {}}
    times = {"started_unix_s": 0.0, "wall_s": 0.0, "cpu_s": 0.0}
    record = Record(ref=ref, stage="ingest", files=files, **empty, **times)
    store.put(record.to_json().encode(), join_uri(uri, COMMIT_MARKER))
    return ref


def measure(num_rows: int, folder: Path, steps: Sequence[str]) -> tuple[dict[str, float], dict[str, int]]:
    """CPU seconds of each step on a made manifest of so many rows, and what ``planted_found`` says of duplicates."""
    from intern_vision.data.manifest import MANIFEST_NAME
    from intern_vision.data.manifest_dataset import ManifestDataset
    from intern_vision.data.manifest_store import load_manifest
    from intern_vision.data.summary import rows_by_group, summarise
    from intern_vision.stages import filter as filter_stage
    from intern_vision.stages import label
    from intern_vision.stages.base import Inputs, run_stage
    from intern_vision.store import open_store

    store_root = f"file://{folder}/store"
    taken: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        if name not in steps:
            return None
        started = time.process_time()
        result = work()
        taken[name] = time.process_time() - started
        return result

    path = folder / MANIFEST_NAME
    if "write" not in steps:
        write_made(path, num_rows)
    timed("write", lambda: write_made(path, num_rows))
    ref = commit_made(folder, store_root, num_rows)
    if {"exact duplicates", "near duplicates"} & set(steps):
        prints = made_prints(path, folder, num_rows)
        for name, perceptual in (("exact duplicates", False), ("near duplicates", True)):
            timed(name, lambda p=perceptual: take_out_duplicates(path, folder / f"{p}", prints, p))
        del prints
    near = planted_found(folder / "True", num_rows) if "near duplicates" in taken else {}
    labelled = timed("label", lambda: run_stage("label", label.Config(), Inputs(manifest=(ref,)))) or ref
    rules = filter_stage.Config.from_dict({"rules": [{"rule": "cap", "per_concept": max(10, num_rows // 2_000)}]})
    inputs = Inputs(manifest=(labelled,)) | ({"labels": (labelled,)} if labelled is not ref else {})
    timed("balance", lambda: run_stage("filter", rules, Inputs(inputs)))
    info, own = load_manifest(open_store(store_root), ref, folder / "copy")
    timed("shard index", lambda: ManifestDataset(own, info))
    timed("summary", lambda: (summarise(own), rows_by_group(own, "source", SOURCES, 6)))
    return taken, near


def made_thumbnails(path: Path, num_rows: int) -> Any:
    """Grey pictures with a spectrum as photographs have, ``(num_rows,)`` of thumbnails in a mapped file."""
    import numpy as np

    from intern_vision.data.duplicates.thumbnail import THUMBNAIL, THUMBNAIL_PX

    rng = np.random.default_rng(0)
    each = np.arange(THUMBNAIL_PX)
    waves = np.cos(np.pi / THUMBNAIL_PX * np.outer(each, each + 0.5)).astype(np.float32)
    frequency = np.hypot(each[:, None], each).astype(np.float32)
    frequency[0, 0] = np.inf  # the mean
    thumbnails = np.lib.format.open_memmap(path, "w+", THUMBNAIL, (num_rows,))
    for start in range(0, num_rows, 2**13):
        numbers = np.arange(start, min(start + 2**13, num_rows))
        slopes, contrasts = (rng.uniform(*limits, (len(numbers), 1, 1)) for limits in (SLOPES, CONTRASTS))
        amplitudes = rng.standard_normal((len(numbers), *frequency.shape), np.float32)
        pictures = waves.T @ (amplitudes * frequency ** -slopes.astype(np.float32)) @ waves
        pictures *= contrasts.astype(np.float32) / pictures.std((1, 2), keepdims=True)
        copies = np.flatnonzero(numbers % TWIN_EVERY == COPY_AT)
        pictures[copies] = pictures[copies - 1] + rng.normal(0, COPY_NOISE, pictures[copies].shape)
        block = np.zeros(len(numbers), THUMBNAIL)
        block["grey"], block["colour"] = np.clip(np.rint(128 + pictures), 0, 255), 128
        thumbnails[numbers[0] : numbers[-1] + 1] = block
    return thumbnails


def take_out_duplicates(path: Path, folder: Path, prints: Any, perceptual: bool) -> None:
    """Takes the planted duplicates out of a made manifest; what is left is written to ``folder``."""
    from intern_vision.data.duplicates.find import FindConfig, ImageSet
    from intern_vision.data.duplicates.removal import Removal

    folder.mkdir()
    images = ImageSet(prints, FindConfig(perceptual=perceptual))
    Removal(path, images, ("test", "val")).write(folder)


def planted_found(folder: Path, num_rows: int) -> dict[str, int]:
    """How many copies were planted, how many are found, and how many other rows were taken for copies."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from intern_vision.data.manifest import MANIFEST_NAME

    status = pq.read_table(folder / MANIFEST_NAME, columns=["status"])["status"]
    is_gone_N = pc.equal(status, "removed").to_numpy()
    copies = np.arange(COPY_AT, num_rows, TWIN_EVERY)
    twins = np.arange(TWIN_EVERY, num_rows, TWIN_EVERY)
    # Which of two is kept depends on their sizes; of files of the same bytes it is the same.
    found = sum(int((is_gone_N[second] ^ is_gone_N[second - 1]).sum()) for second in (copies, twins))
    planted = len(copies) + len(twins)
    return {"planted": planted, "found": found, "others": int(is_gone_N.sum()) - found}


def made_prints(path: Path, folder: Path, num_rows: int) -> Any:
    """What the search for duplicates keeps of images, made for the rows of a made manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from intern_vision.data.duplicates.prints import Prints

    rows = pq.read_table(path, columns=["key", "uri", "split", "digest"])
    rows = rows.append_column("fault", pa.array([""] * num_rows))
    return Prints(rows, made_thumbnails(folder / "thumbnails.npy", num_rows), None)


def run_size(num_rows: int, steps: Sequence[str]) -> dict[str, Any]:
    """Measures a size in a process of its own: CPU seconds by step and peak memory."""
    command = [sys.executable, "-m", "benchmarks.data_scale", "--one", str(num_rows), "--steps", *steps]
    # Threads of a matrix product wait for each other in a loop, whose CPU seconds are nobody's work.
    own = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=own)
    return json.loads(done.stdout.splitlines()[-1])


def main(options: Sequence[str] | None = None) -> None:
    """Prints a line a step with the time a row at each size, and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-rows", type=int, nargs="+", default=SIZES, help="sizes")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, help="steps to measure")
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(options)
    if given.one:
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as name:
            os.environ |= {"INTERN_STORE": f"file://{name}/store", "INTERN_STATE": f"{name}/state"}
            measure(NUM_WARM_ROWS, Path(first), given.steps)
            taken, near = measure(given.one, Path(name), given.steps)
        peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"taken": taken, "near": near, "peak_bytes": peak_bytes}))
        return
    found = {num_rows: run_size(num_rows, given.steps) for num_rows in given.num_rows}
    for line in lines(found):
        print(line)
    print(hardware())


def lines(found: dict[int, dict[str, Any]]) -> list[str]:
    """A line a step: microseconds a row at each size, and the largest ratio of a size to the one before it."""
    sizes = sorted(found)
    texts = [f"{'CPU us a row':18}" + "".join(f"{size:>12,}" for size in sizes) + "   worst step up"]
    taken = {size: found[size]["taken"] | {"together": sum(found[size]["taken"].values())} for size in sizes}
    for step in taken[sizes[0]]:
        each = [1e6 * taken[size][step] / size for size in sizes]
        ratios = [after / before for before, after in zip(each[:-1], each[1:], strict=True)]
        worst = max(ratios, default=0.0)
        verdict = f"{worst:8.2f} x (<= {MAX_RATIO}: {'pass' if worst <= MAX_RATIO else 'MISS'})"
        texts.append(f"{step:18}" + "".join(f"{value:12.2f}" for value in each) + (f"   {verdict}" if ratios else ""))
    peaks = [found[size]["peak_bytes"] for size in sizes]
    verdict = f"(<= {MAX_PEAK_BYTES / 1e9:g} GB: {'pass' if max(peaks) <= MAX_PEAK_BYTES else 'MISS'})"
    texts.append(f"{'peak GB':18}" + "".join(f"{peak / 1e9:12.2f}" for peak in peaks) + f"   {verdict}")
    for size in sizes:
        if near := found[size]["near"]:
            share = near["found"] / max(near["planted"], 1)
            texts.append(f"of {near['planted']:,} planted in {size:,} found {share:.4f}; {near['others']} others")
    return texts


if __name__ == "__main__":
    main()

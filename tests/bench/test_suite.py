from collections import Counter
from pathlib import Path

import pytest

from intern_vision.bench.metrics import make_metric
from intern_vision.bench.suite import SUITE, find_row, suite_table
from intern_vision.errors import ConfigError
from intern_vision.task import Task

ROOT = Path(__file__).resolve().parents[2]


def test_the_suite_is_that_of_the_paper():
    assert Counter(row.family for row in SUITE) == {"classify": 20, "detect": 3, "segment": 1, "depth": 2}
    assert len({row.name for row in SUITE}) == len({row.title for row in SUITE}) == 26
    by_class = {row.name for row in SUITE if row.metric == "mean_per_class"}
    assert by_class == {"oxford_pets", "flowers102", "caltech101", "fgvc_aircraft"}


@pytest.mark.parametrize("row", SUITE, ids=lambda row: row.name)
def test_a_row_is_complete_and_its_numbers_fit(row):
    classes = tuple(f"class {index}" for index in range(row.num_classes))
    task = Task(family=row.family, class_names=classes, max_depth_m=10.0 if row.family == "depth" else 0.0)
    # A name that does not fit the family is refused.
    assert make_metric(task, row.metric) is not None
    assert (row.num_classes > 0) == (row.family != "depth")
    assert row.num_train > 0 and row.num_test > 0 and row.num_val >= 0
    # Rounding class by class moves the total by half an image a class at most.
    assert abs(row.ten_percent - row.num_train / 10) <= max(1, row.num_classes / 2)
    assert row.source_url.startswith(("https://", "http://"))
    assert all((row.licence, row.certainty, row.split_note, row.official_format)) and "|" not in row.official_format


def test_known_draws_of_ten_percent():
    assert (find_row("flowers102").ten_percent, find_row("caltech101").ten_percent) == (204, 306)
    assert find_row("cifar10").ten_percent == 5000


def test_an_unknown_set_is_named_beside_the_known_ones():
    with pytest.raises(ConfigError, match="'cifar' is not in the suite; known: cifar10, .*nyu_v2"):
        find_row("cifar")


def test_the_document_is_current():
    text = (ROOT / "docs/suite.md").read_text()
    assert suite_table() in text, "docs/suite.md: put in what suite_table() gives"
    assert all(f"`{row.name}`" in text for row in SUITE)

from intern_vision.bench.data_pictures import make_cards, row_lines
from intern_vision.bench.data_report import annotator_rows, flat_facts, funnel_rows, licence_rows, size_text
from intern_vision.data.manifest import StepInfo
from intern_vision.data.summary import ManifestSummary, SourceSummary


def test_numbers_are_told_in_words():
    assert [size_text(size) for size in (999, 12_345_678, 2_500_000_000)] == ["1 kB", "12.3 MB", "2.5 GB"]
    assert flat_facts({"num_items": 1200, "kappa": 0.83333, "per_class": {"cat": 1}}) == {
        "items": "1,200",
        "kappa": "0.8333",
    }
    named = {"annotators": {"anna": {"num_votes": 4}, "ben": {"num_votes": 3}}}
    listed = {"annotators": [{"annotator": "anna", "num_votes": 4}, {"annotator": "ben", "num_votes": 3}]}
    assert (
        annotator_rows(named)
        == annotator_rows(listed)
        == [
            {"annotator": "anna", "votes": "4"},
            {"annotator": "ben", "votes": "3"},
        ]
    )
    assert annotator_rows({}) == []


def test_licences_are_joined_over_the_sources():
    sources = (
        SourceSummary(name="a", licences={"CC0": 3, "none stated": 1}),
        SourceSummary(name="b", licences={"none stated": 5}),
    )
    assert licence_rows(ManifestSummary(sources=sources)) == [("none stated", 6, ["a", "b"]), ("CC0", 3, ["a"])]


def test_a_funnel_row_knows_its_share():
    (row,) = funnel_rows([StepInfo(name="dedup", num_in=10, num_out=5, settings={"b": 1, "a": 2})])
    assert row.share(20) == 25.0 and row.share(0) == 500.0 and row.settings == '{"a": 2, "b": 1}'


def test_a_row_in_words():
    boxes = [{"label": label} for label in ("cat", "dog", "cat")]
    row = {"labels": ["a", "b", "c", "d", "e"], "boxes": boxes, "caption": "x" * 95, "width_px": 4, "height_px": 3}
    assert row_lines(row) == ["a, b, c, d and 1 more", "boxes: 2 cat, 1 dog", f"“{'x' * 90}…”", "4 × 3 px"]
    assert row_lines({"boxes": []}) == ["boxes: none"]


def test_what_cannot_be_read_is_told_and_the_order_kept(tmp_path):
    rows = [{"key": "a", "uri": f"file://{tmp_path}/none.jpg"}, {"key": "b", "uri": "", "image": "has no shard"}]
    first, second = make_cards(rows)
    assert first.lines[-1].startswith("cannot be shown: ") and second.lines == ("cannot be shown: has no shard",)
    assert (first.key, second.key, second.panels) == ("a", "b", ())

import numpy as np
import pytest

from intern_vision.bench.comparisons import wilson_interval
from intern_vision.bench.learning_curve import extrapolate
from intern_vision.bench.report import ReportContent, build_report
from intern_vision.bench.review import ClassReview, Mistake, Review
from intern_vision.bench.scores import ProtocolScore, Scores
from intern_vision.bench.table import build_table
from intern_vision.bench.task_report import MAX_CLASS_ROWS, TaskReport, curve_svg, method_text, promise, task_view
from intern_vision.data.check import Findings
from intern_vision.data.codec import encode_png

NAMES = ("ant", "bee <b>", "cat")


def score(error, num_train, interval=None, **metrics):
    return ProtocolScore(
        error=error,
        metrics={"error": error} | metrics,
        num_train=num_train,
        num_test=50,
        method="frozen",
        interval=interval,
    )


def report(family="classify", metric="", protocols=None, **fields):
    protocols = protocols or {
        "25": score(0.4, 10),
        "50": score(0.3, 20),
        "100": score(0.2, 40, top1=0.8),
        "100+ft": score(0.1, 40),
    }
    review = Review(
        family=family,
        num_images=50,
        num_faulty=10,
        classes=tuple(
            ClassReview(name=name, num_true=10, num_said=10, num_right=right)
            for name, right in zip(NAMES, (9, 5, 0), strict=True)
        ),
        confusion=((9, 1, 0), (0, 5, 5), (10, 0, 0)),
        pairs=(("cat", "ant", 10), ("bee <b>", "cat", 5)),
        mistakes=(Mistake(key="k", text="is ant, said cat 0.90", badness=0.9),),
    )
    scores = Scores(dataset="pets", model="intern", family=family, protocols=protocols, metric=metric)
    return TaskReport(**{"scores": scores, "review": review, "protocol": "100"} | fields)


def test_the_interval_is_wilsons_for_shares_of_images_and_the_scorers_elsewhere():
    assert report().interval("100") == wilson_interval(0.2, 50)
    assert report().headline() == ("20.0 %", "11.2 to 33.0")
    dense = report("segment", protocols={"100": score(0.25, 40, (0.2, 0.31))})
    assert dense.headline() == ("25.0 %", "20.0 to 31.0")
    metres = report("depth", "nyu_rmse", protocols={"100": score(0.41, 40, (0.3, 0.5))})
    assert metres.headline() == ("0.4 m", "0.3 to 0.5")


def test_the_curve_is_of_the_registered_recipe_alone():
    assert [point.num_train for point in report().curve()] == [10, 20, 40]
    assert [point.error for point in report(protocol="100+ft").curve()] == [0.1]
    draws = {"4shot.0": score(0.5, 12), "100": score(0.2, 40)}
    assert len(report(protocols=draws).curve()) == 1


def test_the_promise_says_what_the_law_says():
    points = report().curve()
    law = extrapolate(points)
    text = promise(points[-1], law, 100, "%")
    assert text.startswith(
        f"With 80 labelled images, 2 times as many, the law gives an error of {100 * law.error:.1f} %"
    )
    svg = curve_svg(points, law, 100, "%")
    assert svg.count("<circle") == 4 and all(f">{size}<" in svg for size in (10, 20, 40, 80))


def test_the_page_shows_the_task_first_and_escapes_names():
    findings = Findings(families=("classify",), num_images={"train": 40, "val": 5, "test": 50}, warnings=("grey <i>",))
    picture = encode_png(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    task = report(findings=findings, worst_png=picture, method="frozen (few labels)", choices={"l2": 0.25})
    table = build_table([task.scores], baseline="", candidate="intern")
    page = build_report(ReportContent(title="pets", table=table, summary={}, tasks=[task]))
    for text in (
        "20.0 %",
        "95 % interval 11.2 to 33.0",
        "Worst mistakes",
        "cat taken for ant (10)",
        "frozen (few labels)",
        "l2 0.25",
    ):
        assert text in page, text
    assert "bee &lt;b&gt;" in page and "<b>bee" not in page and "grey &lt;i&gt;" in page
    assert page.index("Worst mistakes") < page.index("<h2>Summary</h2>") and page.count("data:image/jpeg") == 1
    # The same few numbers are not shown again as a comparison of one arm with none.
    assert "Error by family" not in page and "Data efficiency" not in page
    assert "pets: classify" not in build_report(ReportContent(title="pets", table=table, summary={}))


def test_method_names_recipe_probe_and_reasons():
    details = {"method": "fine_tuned", "probe": "ridge", "reason": "many labels", "probe_reason": "", "num_train": 3}
    assert method_text(details) == "fine-tuned, ridge (many labels)"
    assert method_text({"method": "zero_shot", "num_train": 0}) == "zero-shot"


def test_many_classes_are_cut_to_the_weakest():
    classes = tuple(ClassReview(name=f"c{i}", num_true=10, num_said=10, num_right=i % 10) for i in range(100))
    task = report(review=Review(family="classify", num_images=9, num_faulty=1, classes=classes))
    assert len(task.class_rows()) == MAX_CLASS_ROWS and task.class_rows()[0].recall == 0
    assert task_view(task)["confusion"] == []


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_perfect_and_hopeless_models_have_a_curve_too(error):
    task = report(protocols={"50": score(error, 20), "100": score(error, 40)})
    view = task_view(task)
    assert "nan" not in view["curve_svg"] and view["promise"]

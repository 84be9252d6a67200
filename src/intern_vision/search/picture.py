"""The picture of a search: quality against cost of every trial."""

import io
from collections.abc import Sequence

from intern_vision.search.driver import Search
from intern_vision.search.reward import pareto_front

SIZE_INCHES = (6.4, 4.2)
RESOLUTION_DPI = 130


def draw_trials(search: Search, chosen: int, finalists: Sequence[int] = ()) -> bytes:
    """PNG bytes of all trials, the front of those that no other is cheaper and better than, template and choice.

    Colours are Okabe and Ito's, told apart by shape as well.

    Args:
        search: with all its trials.
        chosen: place of the trial whose genotype is the result.
        finalists: places of the trials that were trained again.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trials = search.trials
    macs = [trial["num_macs"] / 1e6 for trial in trials]
    quality = [trial["quality"] for trial in trials]
    front = pareto_front(list(zip(macs, quality, strict=True)))
    figure = Figure(figsize=SIZE_INCHES, dpi=RESOLUTION_DPI, layout="constrained")
    axes = figure.subplots()
    marks = axes.scatter(macs, quality, c=range(1, len(trials) + 1), cmap="cividis", s=22, label="trial", zorder=2)
    if len(trials) > 1:
        figure.colorbar(marks, ax=axes, label="number of the trial", pad=0.01)
    axes.step([macs[i] for i in front], [quality[i] for i in front], where="post", color="#56B4E9", label="front")
    target = search.reward.target_macs / 1e6
    cap = target * search.reward.max_ratio
    axes.axvline(cap, color="grey", linestyle="--", linewidth=1, label=f"cap, {cap:.1f} M")
    template = next((i for i, trial in enumerate(trials) if _is_template(search, trial)), None)
    if template is not None:
        axes.scatter(
            macs[template], quality[template], marker="s", s=70, c="none", edgecolors="black", label="template"
        )
    if finalists:
        axes.scatter(
            [macs[i] for i in finalists],
            [quality[i] for i in finalists],
            s=90,
            c="none",
            edgecolors="#009E73",
            label="finalist",
        )
    axes.scatter(
        macs[chosen], quality[chosen], marker="*", s=150, c="#D55E00", edgecolors="black", label="chosen", zorder=3
    )
    axes.set_xlabel("multiply-adds an image, millions")
    axes.set_ylabel("quality (1 - validation error)")
    decided = f"{len(finalists)} finalists decide" if finalists else f"best reward {trials[chosen]['reward']:.3f}"
    axes.set_title(f"{len(trials)} trials, {decided}", fontsize=10)
    axes.legend(fontsize=8, loc="best")
    axes.grid(alpha=0.25)
    target_file = io.BytesIO()
    # Without metadata equal trials give equal bytes, and so equal keys downstream.
    FigureCanvasAgg(figure).print_png(target_file, metadata={"Software": None})
    return target_file.getvalue()


def _is_template(search: Search, trial: dict) -> bool:
    return trial["genotype"] == search.space.template.to_dict()

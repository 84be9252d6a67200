"""The data pipeline: from raw sources to a dataset of shards, without duplicates and leaks, and a page about it."""

from kfp import dsl
from kfp.dsl import HTML

from intern_components.annotate import annotate
from intern_components.data_report import data_report
from intern_components.dedup import dedup
from intern_components.filter import filter as filter_component
from intern_components.ingest import ingest
from intern_components.label import label
from intern_components.shard import shard
from intern_pipelines.platform import step


@dsl.pipeline(name="intern-data", display_name="INTERN data")
def data(
    sources: str,
    against: str = "",
    rules: str = "",
    model: str = "",
    amateur: str = "",
    question: str = "",
    settings: str = "",
) -> HTML:
    """Makes a dataset of sources: ingest, duplicates and leaks out, labels, filters, questions, shards, report.

    Args:
        sources: JSON array of sources, each an object with at least ``uri``.
        against: JSON array of the addresses of benchmark datasets; no image of theirs stays. Empty for none.
        rules: JSON array of the filter's rules; empty for none.
        model: Weights for embeddings, image-text scores and proposals, ``models:/NAME@ALIAS`` or an address.
        amateur: Amateur whose text tower proposes matches of class names, likewise; empty for none.
        question: What people are to verify of images without labels: label or box; empty asks nothing.
        settings: JSON object of the stages' configs by name; empty for their defaults.
    """
    taken_up = step(ingest(sources=sources, settings=settings), "ingest")
    unique = dedup(against=against, model=model, settings=settings, manifest=taken_up.outputs["result"])
    step(unique, "duplicates and leaks")
    labelled = step(label(amateur=amateur, settings=settings, manifest=unique.outputs["result"]), "label")
    concepts = labelled.outputs["result"]
    filtered = filter_component(rules=rules, model=model, settings=settings, manifest=concepts, labels=concepts)
    step(filtered, "filter")
    left = filtered.outputs["result"]
    asked = annotate(question=question, model=model, settings=settings, manifest=left, labels=concepts)
    chosen = step(asked, "questions").outputs["result"]
    written = step(shard(settings=settings, manifest=chosen, labels=concepts), "shard")
    described = data_report(settings=settings, manifest=chosen, data=written.outputs["result"])
    step(described, "report")
    return described.outputs["page"]

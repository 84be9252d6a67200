"""The data pipeline: from raw sources to a dataset of shards, without duplicates and leaks, and a page about it."""

from kfp import dsl
from kfp.dsl import HTML

from intern_components.data_report import data_report
from intern_components.dedup import dedup
from intern_components.filter import filter as filter_component
from intern_components.ingest import ingest
from intern_components.label import label
from intern_components.shard import shard
from intern_pipelines.platform import step


@dsl.pipeline(name="intern-data", display_name="INTERN data")
def data(sources: str, against: str = "", rules: str = "", model: str = "", settings: str = "") -> HTML:
    """Makes a dataset of sources: ingest, duplicates and leaks out, filters, labels, shards, report.

    Args:
        sources: JSON array of sources, each an object with at least ``uri``.
        against: JSON array of the addresses of benchmark datasets; no image of theirs stays. Empty for none.
        rules: JSON array of the filter's rules; empty for none.
        model: Weights for embeddings and image-text scores, ``models:/NAME@ALIAS`` or an address; empty for none.
        settings: JSON object of the stages' configs by name; empty for their defaults.
    """
    taken_up = step(ingest(sources=sources, settings=settings), "ingest")
    unique = dedup(against=against, model=model, settings=settings, manifest=taken_up.outputs["result"])
    step(unique, "duplicates and leaks")
    filtered = filter_component(rules=rules, model=model, settings=settings, manifest=unique.outputs["result"])
    step(filtered, "filter")
    labelled = step(label(settings=settings, manifest=filtered.outputs["result"]), "label")
    concepts = labelled.outputs["result"]
    written = step(shard(settings=settings, manifest=concepts, labels=concepts), "shard")
    described = data_report(settings=settings, manifest=concepts, data=written.outputs["result"])
    step(described, "report")
    return described.outputs["page"]

"""Steps of the data pipeline: files with Refs and addresses in, one stage, a file with its Ref out."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intern_vision.ref import Ref
from intern_vision.steps import copy_page, guarded, paths, read_inputs, write_ref

if TYPE_CHECKING:
    from intern_vision.stages.base import Inputs


def data_step(
    stage: str,
    settings: str,
    output: str,
    *,
    given: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    addresses: Mapping[str, str] | None = None,
    weights: Mapping[str, str] | None = None,
    unless_empty: str = "",
) -> Ref:
    """Runs one stage of the data pipeline as a step; exits with the error's code where it fails.

    Args:
        stage: its name.
        settings: JSON object of the configs of all stages, by name; the stage's own part is taken.
        output: file for the result's Ref.
        given: further fields of the config as JSON text, by name; empty text leaves a field out.
        texts: fields of the config as they are, by name; an empty one is left out.
        inputs: artifacts with Refs, by input name; ``labels`` may be a step that had no classes to merge.
        addresses: JSON arrays of addresses of committed outputs, by input name; empty text for none.
        weights: ``models:/NAME@ALIAS`` or an address of weights, by input name; empty for none.
        unless_empty: a field of the config: where that is empty there is nothing to do, and the result is the input
            ``manifest`` as it is.
    """

    def work() -> Ref:
        from intern_vision.data.labels.output import LABELS_FILE
        from intern_vision.stages.base import Inputs, load_stage, run_stage

        refs = read_inputs({name: paths(artifacts) for name, artifacts in (inputs or {}).items()})
        given_texts = {name: json.dumps(text) for name, text in (texts or {}).items() if text}
        values = stage_settings(stage, settings, {**(given or {}), **given_texts})
        if stage == "filter":
            values["rules"] = [_rule(rule) for rule in values.get("rules", [])]
        if unless_empty and not values.get(unless_empty):
            return refs.one("manifest")
        refs |= {name: found for name, text in (addresses or {}).items() if (found := committed_refs(text, name))}
        refs |= {name: (_weights(model),) for name, model in (weights or {}).items() if model}
        _drop_empty_labels(refs, LABELS_FILE)
        config = load_stage(stage).Config.from_dict(values, at=stage)
        return run_stage(stage, config, Inputs(refs), name=stage)

    ref = guarded(stage, work)
    write_ref(ref, output, stage)
    return ref


def shard_step(settings: str, manifest: Any, labels: Any, output: str) -> None:
    """Runs the stage ``shard`` and writes a Ref; with ``by_source`` in its settings once a source, and a list of Refs.

    Args:
        settings: JSON object of the configs of all stages, by name.
        manifest: artifact with the manifest's Ref.
        labels: artifact with the Ref of the label step, or None.
        output: file for the result.
    """

    def work() -> list[Ref]:
        from intern_vision.data.labels.output import UNIONS_FILE
        from intern_vision.data.manifest_store import load_manifest
        from intern_vision.stages.base import Inputs, run_stage
        from intern_vision.stages.shard import Config
        from intern_vision.store import open_store

        refs = read_inputs({"manifest": paths(manifest), "labels": paths(labels)})
        _drop_empty_labels(refs, UNIONS_FILE)
        values = stage_settings("shard", settings, {})
        if not values.pop("by_source", False):
            return [run_stage("shard", Config.from_dict(values, at="shard"), refs, name="shard")]
        ref = refs.one("manifest")
        with tempfile.TemporaryDirectory() as folder:
            info, _ = load_manifest(open_store(ref.uri), ref, Path(folder))
        found = []
        for source in info.sources:
            config = Config.from_dict(values | {"name": source.name, "source": source.name}, at="shard")
            # Alone it keeps its own class names; a training joins the sets by the label step's output.
            found.append(run_stage("shard", config, Inputs({"manifest": (ref,)}), name=f"shard-{source.name}"))
        return found

    found = guarded("shard", work)
    write_ref(found[0] if len(found) == 1 else found, output, "shard")


def report_step(settings: str, manifest: Any, data: Any, output: str, page: str) -> None:
    """Runs the stage ``data_report`` and copies its page to the file ``page``.

    Args:
        settings: JSON object of the configs of all stages, by name.
        manifest: artifact with the Ref of a manifest or dataset.
        data: artifact with the Refs of the datasets made of it, or None.
        output: file for the report's Ref.
        page: file for the page.
    """
    copy_page(data_step("data_report", settings, output, inputs={"manifest": manifest, "data": data}), page)


def stage_settings(stage: str, settings: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The config of a stage as plain values: its part of the settings under what is given beside them.

    Raises:
        ConfigError: text that is no JSON, settings that are no object of objects, or a name that is no stage.
    """
    from intern_vision.config import parse_json_object
    from intern_vision.errors import ConfigError
    from intern_vision.stages.base import STAGE_NAMES

    every = parse_json_object(settings, "settings") if settings.strip() else {}
    unknown = sorted(set(every) - set(STAGE_NAMES))
    if unknown:
        raise ConfigError(f"settings: {unknown[0]!r} is no stage; expected names such as ingest, dedup or shard")
    values = every.get(stage, {})
    if not isinstance(values, dict):
        raise ConfigError(f"settings.{stage}: expected an object, got {json.dumps(values)}")
    return values | {name: _parsed(text, name) for name, text in given.items() if text.strip()}


def committed_refs(addresses: str, at: str) -> tuple[Ref, ...]:
    """The Refs of committed outputs at addresses, a JSON array of texts; empty text for none.

    Raises:
        ConfigError: it is no such array.
        MissingObjectError: nothing is committed at an address.
    """
    from intern_vision.errors import ConfigError
    from intern_vision.stages.base import read_record
    from intern_vision.store import open_store

    values = _parsed(addresses, at) if addresses.strip() else []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ConfigError(f"{at}: expected a JSON array of addresses, got {addresses[:80]}")
    return tuple(read_record(open_store(uri), uri).ref for uri in values)


def _drop_empty_labels(refs: "Inputs", name: str) -> None:
    """Takes the input ``labels`` away where it has no such file: its sources had no classes to merge."""
    from intern_vision.stages.base import read_record
    from intern_vision.store import open_store

    ref = refs.optional("labels")
    if ref and name not in read_record(open_store(ref.uri), ref.uri).files:
        refs.pop("labels")


def _rule(rule: Any) -> Any:
    """A rule as an object, where it was given in short."""
    from intern_vision.data.filters.rules import parse_rule

    return parse_rule(rule).to_dict() if isinstance(rule, str) else rule


def _parsed(text: str, at: str) -> Any:
    from intern_vision.errors import ConfigError

    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{at}: expected JSON, got {text[:80]!r} ({error})") from None


def _weights(model: str) -> Ref:
    from intern_vision.registry import weights_uri
    from intern_vision.stages.base import read_record
    from intern_vision.store import open_store

    uri = weights_uri(model)
    return read_record(open_store(uri), uri).ref

"""What each head may learn from each dataset. B batch, K head's classes, L dataset's classes, N boxes, S datasets.

A batch's labels are in the numbering of the sample's own dataset. A head has its own numbering, which follows
from the class names.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from intern_vision.data.sample import IGNORE_LABEL
from intern_vision.data.shard import DatasetInfo
from intern_vision.errors import DataError
from intern_vision.heads.base import Batch
from intern_vision.models.vision import HeadSpec

UNKNOWN_LABEL = -1


class LabelSpace(nn.Module):
    """One head's view of batches whose samples come from several datasets.

    Labels are renumbered to the head's classes. A sample of a dataset that the head does not learn from, and a
    label that the head does not have, become unknown: label and box label -1, mask 255, depth 0, concept absent. Where
    a class of the head is not annotated in some dataset, the view holds ``known_BK``.

    Args:
        name: the head's name, for errors.
        spec: its task and ``sources``; without sources it learns from every dataset that has its family, and all of
            these must have its classes.
        infos: the datasets by number, as ``source_B`` counts them.

    Raises:
        DataError: the head's classes do not fit the datasets, or it learns from none of them.
    """

    def __init__(self, name: str, spec: HeadSpec, infos: Sequence[DatasetInfo]) -> None:
        super().__init__()
        self.task = spec.task
        annotated = _annotated(name, spec, infos)
        head_index = {class_name: index for index, class_name in enumerate(spec.task.class_names)}
        unknown = IGNORE_LABEL if spec.task.family == "segment" else UNKNOWN_LABEL
        # Unknown labels, 255 and -1, stay what they are: the last column is reached by either.
        num_columns = IGNORE_LABEL + 1
        if spec.task.family != "segment":
            num_columns = 1 + max(max(len(_own_names(info, spec)), len(info.concept_names)) for info in infos)
        index_SL = torch.full((len(infos), num_columns), unknown)
        known_SK = torch.zeros(len(infos), len(head_index), dtype=torch.bool)
        for source, info in enumerate(infos):
            for own_index, class_name in enumerate(_own_names(info, spec)):
                if class_name in annotated.get(info.name, ()):
                    index_SL[source, own_index] = head_index[class_name]
                    known_SK[source, head_index[class_name]] = True
        takes_part_S = torch.tensor([info.name in annotated for info in infos])
        self.all_known = bool(known_SK.all() and takes_part_S.all())
        self.register_buffer("index_SL", index_SL, persistent=False)
        self.register_buffer("known_SK", known_SK, persistent=False)
        self.register_buffer("takes_part_S", takes_part_S, persistent=False)

    def view(self, batch: Batch) -> dict[str, Any]:
        """The batch as this head sees it; the tensors given are not changed.

        Raises:
            DataError: the batch does not say where its samples come from.
        """
        source_B = self._source(batch)
        changed: dict[str, Any] = {}
        family = self.task.family
        if family == "classify" and "label_B" in batch:
            changed["label_B"] = self.index_SL[source_B, batch["label_B"]]
        if family == "multilabel" and "concepts_BK" in batch:
            changed["concepts_BK"] = self._concepts(source_B, batch["concepts_BK"])
        if family == "detect" and "box_labels_BN" in batch:
            changed["box_labels_BN"] = self.index_SL[source_B[:, None], batch["box_labels_BN"]]
        if family == "segment" and "mask_BHW" in batch:
            mask_BHW = self.index_SL[source_B[:, None, None], batch["mask_BHW"].long()]
            changed["mask_BHW"] = mask_BHW.to(torch.uint8)
        if family == "depth" and "depth_BHW" in batch:
            changed["depth_BHW"] = batch["depth_BHW"] * self.takes_part_S[source_B][:, None, None]
        elif family != "depth" and not self.all_known:
            changed["known_BK"] = self.known_SK[source_B]
        return {**batch, **changed}

    def num_samples(self, batch: Batch) -> Tensor:
        """How many samples of the batch teach this head, a float32 scalar."""
        return self.takes_part_S[self._source(batch)].sum().float()

    def _source(self, batch: Batch) -> Tensor:
        if "source_B" in batch:
            return batch["source_B"]
        if len(self.takes_part_S) == 1:
            return self.index_SL.new_zeros(len(batch["keys"]))
        raise DataError("batch.source_B: expected for heads over several sources; read them through MixtureSource")

    def _concepts(self, source_B: Tensor, concepts_BL: Tensor) -> Tensor:
        index_BL = self.index_SL[source_B, : concepts_BL.shape[1]]
        num_classes = self.task.num_classes
        # One column more takes what the head does not have.
        found = concepts_BL.new_zeros(len(concepts_BL), num_classes + 1)
        found.scatter_(1, torch.where(index_BL < 0, num_classes, index_BL), concepts_BL)
        return found[:, :num_classes]


def _own_names(info: DatasetInfo, spec: HeadSpec) -> tuple[str, ...]:
    """The dataset's class names of the head's family, in the dataset's numbering."""
    task = info.tasks.get(spec.task.family)
    return task.class_names if task else ()


def _annotated(name: str, spec: HeadSpec, infos: Sequence[DatasetInfo]) -> dict[str, tuple[str, ...]]:
    """The head's classes that each dataset annotates, for the datasets it learns from."""
    task, own_tasks = spec.task, {info.name: info.tasks.get(spec.task.family) for info in infos}
    if not spec.sources:
        tasks = {source: own for source, own in own_tasks.items() if own is not None}
        for source, own in tasks.items():
            if own.class_names != task.class_names:
                raise DataError(
                    f"head {name}: its label space ({_shown(task.class_names)}) is not that of source {source} "
                    f"({_shown(own.class_names)}); state the head's sources"
                )
        if not tasks:
            raise DataError(
                f"head {name}: no dataset among {_shown(tuple(own_tasks))} has the task {task.family}; "
                "add one or leave the head out"
            )
        return dict.fromkeys(tasks, task.class_names)
    used = {source: names for source, names in spec.sources.items() if source in own_tasks}
    if not used:
        raise DataError(
            f"head {name}: it learns from {_shown(tuple(spec.sources))}, but the input data is "
            f"{_shown(tuple(own_tasks))}; give one of its sources or leave the head out"
        )
    for source, names in used.items():
        own = own_tasks[source]
        if own is None:
            raise DataError(
                f"head {name}: source {source} has no task {task.family}; leave it out of the head's sources"
            )
        strange = [class_name for class_name in names if class_name not in own.class_names]
        if strange:
            raise DataError(
                f"head {name}: source {source} does not annotate {_shown(tuple(strange))}; "
                f"its classes are {_shown(own.class_names)}"
            )
    return used


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "none"

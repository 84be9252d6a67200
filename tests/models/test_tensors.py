import pytest
import torch

from intern_vision.errors import CheckpointError
from intern_vision.models.tensors import check_tensors

SHAPES = {"a": torch.Size([2]), "b": torch.Size([2, 3]), "c": torch.Size([])}


def test_equal_names_and_shapes_pass_in_any_order():
    check_tensors({"c": torch.zeros(()), "b": torch.zeros(2, 3), "a": torch.zeros(2)}, SHAPES, source="file")


def test_every_fault_is_counted_and_four_are_shown():
    found = {"a": torch.zeros(3), "d": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        check_tensors(found, SHAPES, source="file")
    assert str(error.value) == (
        "file: weights of another architecture: missing b; missing c; unknown d; a is (3,), not (2,)"
    )
    with pytest.raises(CheckpointError, match=r"missing c; unknown d; unknown e; and 1 more$"):
        check_tensors(found | {"e": torch.zeros(1)}, SHAPES, source="file")

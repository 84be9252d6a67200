"""The state of a DeepSpeed engine as whole tensors by parameter name, whatever the ZeRO stage and the number of ranks.

DeepSpeed's own checkpoint holds each rank's part under ZeRO, so it fits the same number of ranks
only. Here every parameter is written whole, with its AdamW moments, into safetensors files of about
``SHARD_BYTES``; the ranks write the files in turn, and no rank holds more than one file and one
parameter at a time. Reading takes from each whole parameter the part that the rank needs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from intern_vision.errors import CheckpointError
from intern_vision.train.ema import WeightAverage, local_part, release

SHARD_BYTES = 2**30
WEIGHT, MOMENTS, STEP, AVERAGE, BUFFER = "weight", ("exp_avg", "exp_avg_sq"), "step", "average", "buffer"
_NUM_NAMES_IN_ERROR = 4


class EngineState:
    """Reads and writes the trained state of an engine.

    Args:
        engine: the DeepSpeed engine; its optimizer is torch's AdamW.
        zero_stage: its ZeRO stage, 0 to 3.
        average: the moving average of the weights, if there is one.
    """

    def __init__(self, engine: Any, zero_stage: int, average: WeightAverage | None = None) -> None:
        self._engine = engine
        self._zero_stage = zero_stage
        self._average = average
        self._num_ranks = torch.distributed.get_world_size()
        self._rank = torch.distributed.get_rank()

    def save(self, folder: Path) -> None:
        """Writes weights, moments, averages and buffers below ``folder``; every rank must call it."""
        shards = list(self._shards())
        for number, names in enumerate(shards):
            is_mine = number % self._num_ranks == self._rank
            tensors: dict[str, Tensor] = {}
            for name in names:
                for key, tensor in self._tensors_of(name):
                    if is_mine:
                        tensors[key] = tensor.detach().to("cpu", copy=True).contiguous()
            if is_mine:
                folder.mkdir(parents=True, exist_ok=True)
                save_file(tensors, folder / f"state-{number:05d}.safetensors")
        if self._rank == 0:  # the buffers of rank 0 count, as for the weights that are exported
            buffers = {f"{BUFFER}/{k}": v.detach().cpu().clone().contiguous() for k, v in self._buffers().items()}
            if buffers:
                folder.mkdir(parents=True, exist_ok=True)
                save_file(buffers, folder / "buffers.safetensors")

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Takes the state below ``folder``; every rank must call it.

        Raises:
            CheckpointError: a file is damaged, or a weight is missing, unknown or of another shape.
        """
        files = _TensorFiles(folder)
        parameters = dict(self._engine.module.named_parameters())
        buffers = self._buffers()
        shapes = {f"{WEIGHT}/{name}": tuple(_shape(p)) for name, p in parameters.items()}
        shapes |= {f"{BUFFER}/{name}": tuple(buffer.shape) for name, buffer in buffers.items()}
        files.check(shapes)
        for name, buffer in buffers.items():
            buffer.copy_(files.read(f"{BUFFER}/{name}"))
        for name, parameter in parameters.items():
            release(parameter)
            weight = files.read(f"{WEIGHT}/{name}")
            self._write_part(parameter, self._weight_parts(parameter), weight)
            if parameter.requires_grad:
                self._load_moments(parameter, name, files)
                if self._average is not None:
                    average = files.read(f"{AVERAGE}/{name}") if f"{AVERAGE}/{name}" in files else weight
                    self._write_part(parameter, [self._average.parts[name]], average, like_weight=True)

    def is_finite(self) -> bool:
        """Whether all trained weights are; under ZeRO stage 3 this rank's part of them."""
        # An infinite or NaN element makes the sum so; one number a tensor is moved instead of a mask.
        parts = [self._held(p).float().sum() for p in self._engine.module.parameters() if p.requires_grad]
        return bool(torch.stack(parts).isfinite().all())

    def _held(self, parameter: Any) -> Tensor:
        """What this rank holds of a weight: whole, or its part, whose padding DeepSpeed never writes, without that."""
        part = local_part(parameter).detach()
        return part[: self._range(parameter)[1]] if self._zero_stage == 3 else part

    def _shards(self) -> Iterator[list[str]]:
        names: list[str] = []
        num_bytes = 0
        for name, parameter in self._engine.module.named_parameters():
            size = 4 * _shape(parameter).numel() * (4 if parameter.requires_grad else 1)
            if names and num_bytes + size > SHARD_BYTES:
                yield names
                names, num_bytes = [], 0
            names.append(name)
            num_bytes += size
        if names:
            yield names

    def _tensors_of(self, name: str) -> Iterator[tuple[str, Tensor]]:
        parameter = self._engine.module.get_parameter(name)
        yield f"{WEIGHT}/{name}", self._whole(parameter, self._weight_parts(parameter)[-1])
        if not parameter.requires_grad:
            return
        if self._average is not None:
            yield f"{AVERAGE}/{name}", self._whole(parameter, self._average.parts[name], like_weight=True)
        state = self._optimizer_state(parameter)
        # A rank without a part of this parameter still takes part in gathering it.
        step = state["step"].reshape(1) if state else torch.zeros(1)
        if self._num_ranks > 1:
            step = step.to(self._engine.device)
            torch.distributed.all_reduce(step, op=torch.distributed.ReduceOp.MAX)
        yield f"{STEP}/{name}", step
        for key in MOMENTS:
            part = self._part_of_state(parameter, state[key]) if state else None
            yield f"{key}/{name}", self._whole(parameter, part)

    def _buffers(self) -> dict[str, Tensor]:
        persistent = self._engine.module.state_dict().keys()
        return {name: buffer for name, buffer in self._engine.module.named_buffers() if name in persistent}

    # Where a rank's part of a parameter lies.

    def _range(self, parameter: Any) -> tuple[int, int]:
        """First element and number of elements, of the flat parameter, that this rank keeps the state of."""
        if self._zero_stage == 0:
            return 0, parameter.numel()
        if self._zero_stage == 3:
            size = parameter.ds_tensor.numel()
            start = min(size * self._rank, parameter.ds_numel)
            return start, min(size, parameter.ds_numel - start)
        mapping = parameter._hp_mapping if parameter.requires_grad else None
        if mapping is None:
            return 0, 0
        return mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel

    def _weight_parts(self, parameter: Any) -> list[Tensor | None]:
        """Every copy of the weight; the last one is the optimizer's own, where it keeps one."""
        if self._zero_stage == 0 or (self._zero_stage < 3 and not parameter.requires_grad):
            return [parameter]
        if self._zero_stage < 3:
            return [parameter, None if parameter._hp_mapping is None else parameter._hp_mapping.hp_fragment]
        if not parameter.requires_grad:
            return [parameter.ds_tensor]
        group, offset, size = self._place(parameter)
        return [parameter.ds_tensor, self._engine.optimizer.fp32_partitioned_groups_flat[group].narrow(0, offset, size)]

    def _place(self, parameter: Any) -> tuple[int, int, int]:
        optimizer = self._engine.optimizer
        return optimizer.grad_position[optimizer.get_param_id(parameter)]

    def _flat_owner(self, parameter: Any) -> Tensor | None:
        """The tensor that the inner optimizer steps: the parameter, or the flat group its part lies in."""
        if self._zero_stage == 0:
            return parameter
        if self._zero_stage == 3:
            return self._engine.optimizer.fp32_partitioned_groups_flat[self._place(parameter)[0]]
        if parameter._hp_mapping is None:
            return None
        return self._engine.optimizer.single_partition_of_fp32_groups[parameter._hp_mapping.param_group_index]

    def _inner(self) -> torch.optim.Optimizer:
        optimizer = self._engine.optimizer
        return optimizer if self._zero_stage == 0 else optimizer.optimizer

    def _optimizer_state(self, parameter: Any) -> dict[str, Tensor]:
        owner = self._flat_owner(parameter)
        return {} if owner is None else self._inner().state.get(owner, {})

    def _part_of_state(self, parameter: Any, state: Tensor) -> Tensor:
        if self._zero_stage == 0:
            return state
        if self._zero_stage == 3:
            _, offset, size = self._place(parameter)
            return state.narrow(0, offset, size)
        address = parameter._hp_mapping.hp_fragment_address
        return state.narrow(0, address.start, address.numel)

    # Between a part and the whole.

    def _whole(self, parameter: Any, part: Tensor | None, *, like_weight: bool = False) -> Tensor:
        """The whole tensor on every rank.

        Args:
            parameter: which.
            part: what this rank holds; None where it holds nothing.
            like_weight: split over the ranks as the weight itself is, not as the optimizer's state.
        """
        if self._zero_stage == 0 or (like_weight and self._zero_stage < 3) or part is parameter:
            return torch.zeros_like(parameter) if part is None else part
        whole = torch.zeros(_shape(parameter).numel(), device=self._engine.device)
        start, size = self._range(parameter)
        if part is not None and size:
            whole[start : start + size] = part.detach().flatten()[:size]
        if self._num_ranks > 1:
            torch.distributed.all_reduce(whole)  # parts do not overlap, so the sum is exact
        return whole.view(_shape(parameter))

    def _write_part(
        self, parameter: Any, parts: list[Tensor | None], whole: Tensor, *, like_weight: bool = False
    ) -> None:
        start, size = self._range(parameter)
        for part in parts:
            if part is None:
                continue
            if part.shape == whole.shape and (self._zero_stage == 0 or part is parameter or like_weight):
                part.copy_(whole)
            else:
                part.flatten()[:size].copy_(whole.flatten()[start : start + size])

    def _load_moments(self, parameter: Any, name: str, files: "_TensorFiles") -> None:
        owner, inner = self._flat_owner(parameter), self._inner()
        if owner is None:
            return
        step = files.read(f"{STEP}/{name}").squeeze(0)
        if not step.any() and self._zero_stage == 0:  # AdamW had not moved this parameter yet
            inner.state.pop(owner, None)
            return
        state = inner.state[owner]
        is_fused = any(group.get("fused") for group in inner.param_groups)
        # A flat group has one count for all its parameters; one that had not moved does not decide it.
        if step.any() or "step" not in state:
            state["step"] = step.to(owner.device if is_fused else "cpu")
        for key in MOMENTS:
            if key not in state:
                state[key] = torch.zeros_like(owner)
            self._write_part(parameter, [self._part_of_state(parameter, state[key])], files.read(f"{key}/{name}"))


class _TensorFiles:
    """Tensors by key over all files of a folder, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from None
            self._files |= dict.fromkeys(file.keys(), file)

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def read(self, key: str) -> Tensor:
        """The tensor under ``key``; CheckpointError where there is none."""
        if key not in self._files:
            raise CheckpointError(f"{self._folder}: the checkpoint has no {key}; delete it to start anew")
        return self._files[key].get_tensor(key)

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """CheckpointError unless weights and buffers are exactly these."""
        kinds = (f"{WEIGHT}/", f"{BUFFER}/")
        faults = [f"missing {key}" for key in shapes if key not in self._files]
        faults += [f"unknown {key}" for key in self._files if key.startswith(kinds) and key not in shapes]
        for key, shape in shapes.items():
            if key in self._files and tuple(self._files[key].get_slice(key).get_shape()) != shape:
                faults.append(f"{key} is of another shape")
        if faults:
            more = len(faults) - _NUM_NAMES_IN_ERROR
            shown = "; ".join(faults[:_NUM_NAMES_IN_ERROR]) + (f"; and {more} more" if more > 0 else "")
            raise CheckpointError(f"{self._folder}: the checkpoint is of another model: {shown}")


def _shape(parameter: nn.Parameter) -> torch.Size:
    """A parameter's whole shape, also under ZeRO stage 3."""
    return getattr(parameter, "ds_shape", parameter.shape)

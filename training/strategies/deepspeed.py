"""Data parallelism by DeepSpeed: workers share optimiser state, gradients and parameters (ZeRO).

All that is DeepSpeed's is here. It reduces gradients, keeps each worker's part of the optimiser's state, and gathers
parameters; precision, loss scaling, clipping, checkpoints and the optimiser itself are those of every other strategy, so
that their words mean the same. ZeRO: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion
Parameter Models".
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shoal.cluster.errors import ConfigError
from shoal.training.config import DeepSpeedConfig, TrainingConfig
from shoal.training.optimizers.build import build_optimizer
from shoal.training.optimizers.penalties import add_to_gradients
from shoal.training.strategies.base import Fragment, Read
from shoal.training.strategies.ddp import DDP

_BUCKET = 5_000_000  # elements that travel at once; DeepSpeed's own default holds 2 GB back
_WAITS = {
    *("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "all_gather_coalesced"),
    *("reduce_scatter", "reduce_scatter_tensor", "all_to_all_single", "barrier", "wait"),
}
_SHARED = "group"  # prefix of optimiser state that is no value an element, such as the step count


class _Timed:
    """DeepSpeed's way to torch.distributed, or one operation under way, with the time that this worker waits in it."""

    def __init__(self, target: Any, spent: list[float]) -> None:
        self._target, self._spent = target, spent

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if name not in _WAITS:
            return found

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = found(*args, **kwargs)
            self._spent[0] += time.perf_counter() - started
            return _Timed(result, self._spent) if hasattr(result, "wait") else result

        return timed


@dataclass(frozen=True)
class _Span:
    """Where this worker's part of a parameter lies: ``flat[offset : offset + size]`` is its elements from ``start``."""

    parameter: int
    start: int
    flat: Tensor
    offset: int
    size: int

    def of(self, values: Tensor) -> Fragment:
        """Return the part of values that are laid out as ``flat`` is."""
        return Fragment(values[self.offset : self.offset + self.size], self.start)


@dataclass
class _OwnPart:
    """This worker's part of the gradient as an optimiser to whom clipping and loss scaling can be applied."""

    gradients: Callable[[], list[Tensor]]
    step: Callable[[], None]

    @property
    def param_groups(self) -> list[dict[str, list[Tensor]]]:
        """One group of tensors whose ``grad`` is a part of the gradient itself."""
        holders = []
        for gradient in self.gradients():
            holder = torch.empty_like(gradient)
            holder.grad = gradient
            holders.append(holder)
        return [{"params": holders}]


class DeepSpeed(DDP):
    """ZeRO at a stage of 0 to 3, over the default process group, which exists already."""

    name = "deepspeed"

    def __init__(self, device: torch.device, config: DeepSpeedConfig) -> None:
        super().__init__(device)
        self.zero = config
        self.lockstep = config.zero_stage >= 2  # these reduce within each backward, or gather in each forward

    def wrap(self, module: nn.Module, config: TrainingConfig, unused_parameters: bool) -> nn.Module:
        """Hand the module to DeepSpeed.

        Raises
        ------
        ConfigError
            If a step leaves parameters without a gradient: ZeRO's buckets would not match between workers.
        """
        stage = self.zero.zero_stage
        if unused_parameters and stage:
            raise ConfigError(
                "training.strategy: deepspeed cannot share parameters that a step leaves without a gradient, and this model has "
                "some: use training.strategy: ddp or zero_stage: 0, or freeze what is unused (requires_grad_(False))"
            )
        self.module, self.clip_norm, self.shrinks = module, config.clip_norm, False
        self.wrapped, self._steps, self._spent = module, 0, [0.0]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        torch_optimizer = build_optimizer(config, module)
        self.rates = [group["lr"] for group in torch_optimizer.param_groups]
        if not self._parameters:
            self.optimizer, self._engine = torch_optimizer, None
            return module
        self._engine = _initialize(module, torch_optimizer, self._sections(), self.device)
        self._spent = _count_waiting()
        self._zero: Any = self._engine.optimizer
        if stage and isinstance(torch_optimizer, torch.optim.Adagrad):
            self._zero.optimizer = self._adagrad(torch_optimizer)
        add_to_gradients(self._zero.optimizer if stage else torch_optimizer, config.l1)
        self.optimizer = _OwnPart(self._gradients, self._engine.step) if stage else torch_optimizer  # type: ignore[assignment]
        if stage == 3 and not self.zero.offload_optimizer:
            # DeepSpeed would take the norm again in its step; `gradient_norm` has, and it costs a collective operation.
            self._zero._get_norm_groups = lambda: [self.norm]
        self._clear_padding()
        self._share_masters()
        self._spans = list(self._own_spans())
        return self._engine  # type: ignore[no-any-return]

    def _adagrad(self, given: torch.optim.Adagrad) -> torch.optim.Adagrad:
        """Build AdaGrad over this worker's parts, as DeepSpeed does too, whose own forgets the parameter groups."""
        groups: list[dict[str, Any]] = [{**group, "params": []} for group in given.param_groups]
        for i, flat in enumerate(self._flats()):
            group = self._zero.sub_group_to_group_id[i] if self.zero.zero_stage == 3 else i
            groups[group]["params"].append(flat)
        own = torch.optim.Adagrad(groups, **given.defaults)
        if self.zero.zero_stage == 3:  # it puts each part into its group for that part's step
            for filled in own.param_groups:
                filled["params"] = []
        return own

    def _sections(self) -> dict[str, Any]:
        """Return DeepSpeed's own configuration."""
        stage = self.zero.zero_stage
        zero: dict[str, Any] = {
            "stage": stage,
            "reduce_bucket_size": _BUCKET,
            "allgather_bucket_size": _BUCKET,
        }
        if stage == 3:  # parameters that are gathered for a layer go again soon after it
            zero |= {
                "stage3_prefetch_bucket_size": _BUCKET,
                "stage3_max_live_parameters": _BUCKET,
                "stage3_max_reuse_distance": _BUCKET,
            }
        if (
            stage in (1, 2) and not self.zero.offload_optimizer
        ):  # elsewhere DeepSpeed insists on a norm of its own
            zero["compute_grad_norm"] = False
        if self.zero.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu"}
        if self.zero.offload_parameters:
            zero["offload_param"] = {"device": "cpu"}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,  # is done here, and would be 1 by default
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }

    @contextmanager
    def accumulate(self, module: nn.Module) -> Iterator[None]:  # noqa: ARG002
        """Within the block, backward passes add to the local gradient; the first one after it reduces."""
        if self._engine is None:
            yield
            return
        self._engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self._engine.set_gradient_accumulation_boundary(True)

    def _groups_of_optimizer(self) -> list[dict[str, Any]]:
        """Return the groups of the torch optimiser that takes the steps."""
        if self._engine is None or not self.zero.zero_stage:
            return super()._groups_of_optimizer()
        groups: list[dict[str, Any]] = self._zero.optimizer.param_groups
        return groups

    def zero_grad(self) -> None:
        """Forget all gradients, also those that no step has used."""
        if self._engine is None or not self.zero.zero_stage:
            super().zero_grad()
            return
        self._zero.zero_grad(set_to_none=True)
        for group in self._zero.averaged_gradients:
            self._zero.averaged_gradients[group] = None
        if self.zero.zero_stage < 3:
            for group in self._zero.all_grad_tensors:
                self._zero.all_grad_tensors[group] = None
            self._zero.micro_step_id = -1
        if self.zero.offload_optimizer:
            self._zero.reset_cpu_buffers()

    def backward(self, loss: Tensor) -> None:
        """DeepSpeed takes the mean over workers; the factor W makes it their sum."""
        if self._engine is None:
            super().backward(loss)
            return
        self._engine.backward(self.scaler.scale(loss * self.world_size))

    def reduced_gradients(self) -> dict[str, Tensor | None]:
        """Return each parameter's gradient of the global loss, whole, on every worker; between backward and step."""
        if self._engine is None or not self.zero.zero_stage:
            return super().reduced_gradients()
        from deepspeed.utils import safe_get_full_grad

        scale = self.scaler.get_scale()
        return {
            n: safe_get_full_grad(p) / scale for n, p in self.module.named_parameters() if p.requires_grad
        }

    def _gradients(self) -> list[Tensor]:
        """Return this worker's part of the reduced gradient, as the tensors that a step reads."""
        if not self.zero.offload_optimizer:
            return [g for group in self._zero.averaged_gradients.values() for g in group]
        return [flat.grad for flat in self._flats() if flat.grad is not None]

    def gradient_norm(self) -> float:
        """Return the 2-norm of the global gradient, the same on every worker; called once before each step."""
        if self._engine is None or not self.zero.zero_stage:
            return super().gradient_norm()
        own = self._gradients()
        part = torch.nn.utils.get_total_norm(own) if own else torch.zeros((), device=self.device)
        if not math.isfinite(norm := float(self.sum(part.double() ** 2).sqrt())) and own:
            own[0].fill_(math.inf)  # then loss scaling leaves the step out on every worker, not on one alone
        self.scaler.unscale_(self.optimizer)
        self.norm = torch.tensor(norm / self.scaler.get_scale(), device=self.device)
        return float(self.norm)

    def communication_seconds(self) -> float:
        """Return the time that this worker waited for others; NaN on GPUs, whose operations nobody waits for."""
        return self._spent[0] if self.device.type == "cpu" else math.nan

    def weights(self) -> dict[str, Fragment]:
        """Return what this worker holds of parameters and buffers, by name."""
        if self._engine is None or self.zero.zero_stage < 3:
            return super().weights()
        parts: dict[str, Fragment] = {}
        for name, p in self.module.named_parameters():
            start, size, _ = self._cut(p)
            parts[name] = Fragment(p.ds_tensor.detach().view(-1)[:size], start)  # type: ignore[attr-defined]
        return parts | {name: Fragment(b.detach()) for name, b in self.module.named_buffers()}

    def weights_changed(self) -> None:
        """Hear that other values were written into `weights`: the optimiser's own copies become those."""
        if self._engine is None or not self.zero.zero_stage:
            return
        self._zero.refresh_fp32_params()
        if self.zero.zero_stage == 3 and (
            small := self._zero.persistent_parameters
        ):  # held whole by every worker
            small[0].partition(small, has_been_updated=False)
            small[0].all_gather(small)

    def unwrap(self) -> None:
        """Give the module back whole, without DeepSpeed's hooks."""
        if self._engine is None:
            return
        self._engine.destroy()
        if self.zero.zero_stage == 3:
            for p in self.module.parameters():
                p.all_gather([p])  # type: ignore[attr-defined]

    def optimizer_state(self) -> tuple[dict[str, Fragment], dict[str, Any]]:
        """Return what this worker holds of the optimiser's state: tensors, and plain values."""
        if self._engine is None or not self.zero.zero_stage:
            return super().optimizer_state()
        tensors: dict[str, Fragment] = {}
        for flat in self._flats():
            for key, value in self._zero.optimizer.state.get(flat, {}).items():
                if value.shape != flat.shape:
                    tensors[f"{_SHARED}/{key}"] = Fragment(value)
                else:
                    tensors |= {f"{s.parameter}/{key}": s.of(value) for s in self._spans if s.flat is flat}
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self._zero.optimizer.param_groups]
        return tensors, {"groups": groups, "scaler": self.scaler.state_dict()}

    def load_optimizer_state(self, names: list[str], read: Read, facts: dict[str, Any]) -> None:
        """Take the optimiser's state from a checkpoint that any number of workers wrote."""
        if self._engine is None or not self.zero.zero_stage:
            super().load_optimizer_state(names, read, facts)
            return
        keys = {name.partition("/")[2] for name in names if not name.startswith(f"{_SHARED}/")}
        state = self._zero.optimizer.state
        for flat in self._flats():
            state[flat] = {key: torch.zeros_like(flat, requires_grad=False) for key in keys}
            for name in names:
                if name.startswith(f"{_SHARED}/"):
                    state[flat][name.partition("/")[2]] = read(name, 0, None).clone()
        for span in self._spans:
            for key in keys:
                part = span.of(state[span.flat][key])
                part.tensor.copy_(read(f"{span.parameter}/{key}", *part.bounds))
        for group, saved in zip(self._zero.optimizer.param_groups, facts["groups"], strict=True):
            group.update(saved)
        if facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])

    def _flats(self) -> list[Tensor]:
        """Return this worker's flat parts of the parameters, on which the torch optimiser works."""
        if not self.zero.zero_stage:
            return []
        by_stage = (
            "fp32_partitioned_groups_flat" if self.zero.zero_stage == 3 else "single_partition_of_fp32_groups"
        )
        flats: list[Tensor] = getattr(self._zero, by_stage)
        return flats

    def _share_masters(self) -> None:
        """Let the optimiser work on the fp32 weights themselves: DeepSpeed keeps a copy, made for weights in 16 bits."""
        if not self.zero.zero_stage or self.zero.offload_optimizer or self.zero.offload_parameters:
            return
        if self.zero.zero_stage == 3:
            weights = self._zero.fp16_partitioned_groups_flat
        else:
            weights = [group[self.rank] for group in self._zero.parallel_partitioned_bit16_groups]
        for flat, part in zip(self._flats(), weights, strict=True):
            flat.data = part.data

    def _cut(self, parameter: Any) -> tuple[int, int, int]:
        """Return where this worker's part of a parameter begins at stage 3, its elements, and those with padding."""
        part: int = parameter.ds_tensor.numel()
        start = self.rank * part
        return start, min(max(0, parameter.ds_numel - start), part), part

    def _clear_padding(self) -> None:
        """Set to 0 what fills parts up to one size at stage 3: DeepSpeed never does, and through penalties it reaches norms."""
        if self.zero.zero_stage < 3:
            return
        for group, flat in enumerate(self._flats()):
            offset = 0
            for p in self._zero.fp16_groups[group]:
                _, size, part = self._cut(p)
                p.ds_tensor.data.view(-1)[size:].zero_()
                flat.data[offset + size : offset + part].zero_()
                offset += part

    def _own_spans(self) -> Iterator[_Span]:
        index = {id(p): i for i, p in enumerate(self._parameters)}
        for group, flat in enumerate(self._flats()):
            if self.zero.zero_stage == 3:  # each parameter is cut in W
                offset = 0
                for p in self._zero.fp16_groups[group]:
                    start, size, part = self._cut(p)
                    if size:
                        yield _Span(index[id(p)], start, flat, offset, size)
                    offset += part
            else:  # all of them, one after the other, are cut in W
                low = self.rank * flat.numel()
                parameters = self._zero.round_robin_bit16_groups[group]
                for p, first in zip(parameters, self._zero.round_robin_bit16_offsets[group], strict=True):
                    start, stop = max(first, low), min(first + p.numel(), low + flat.numel())
                    if start < stop:
                        yield _Span(index[id(p)], start - first, flat, start - low, stop - start)


def _count_waiting() -> list[float]:
    """Begin to count the seconds that DeepSpeed's collective operations take; return where they are counted."""
    from deepspeed.comm import comm

    spent = [0.0]
    comm.cdb = _Timed(comm.cdb._target if isinstance(comm.cdb, _Timed) else comm.cdb, spent)
    return spent


def _initialize(
    module: nn.Module, optimizer: torch.optim.Optimizer, sections: dict[str, Any], device: torch.device
) -> Any:
    """Return DeepSpeed's engine, without a compiler on a CPU."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # the device that it takes
    import deepspeed
    from deepspeed.utils import groups, logger

    logger.setLevel("ERROR")
    groups._WORLD_GROUP = dist.group.WORLD  # a group of its own would not have the time-out of this one
    # It calls torch by a name that newer versions have another for.
    warnings.filterwarnings(
        "ignore", "`torch.distributed.all_gather_into_tensor` is deprecated", FutureWarning
    )
    warnings.filterwarnings(
        "ignore", "`torch.distributed.reduce_scatter_tensor` is deprecated", FutureWarning
    )
    if device.type == "cpu":
        # An extension that it would compile for collectives within one node; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=sections, dist_init_required=False
    )
    return engine

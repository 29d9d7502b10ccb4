"""What the workers of one DeepSpeed group do in its tests; runs in processes of their own."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.training.checkpoints import lookout
from shoal.training.config import OPTIMIZERS as REGISTRY
from shoal.training.config import SEARCHING, DeepSpeedConfig
from shoal.training.strategies.base import Strategy
from shoal.training.strategies.deepspeed import DeepSpeed
from shoal.training.strategies.diagnosis import stuck_workers_named
from support import resuming, scenarios

CPU = torch.device("cpu")
STAGES = (0, 1, 2, 3)
OPTIMIZERS = tuple(name for name in REGISTRY if name not in SEARCHING)
REGULARISED: dict[str, Any] = {
    "optimizer": {"adamw": {"learning_rate": 0.01}},
    "l1": {"subgradient": 0.01},
    "l2": 0.1,
    "parameter_groups": [{"match": "body.0.*", "learning_rate": 0.02, "l2": 0.3}],
    "mixup": {"alpha": 0.4},
    "loss": {"logit_adjusted": {"class_weights": {"effective_number": {"beta": 0.9}}}},
    "averaging": {"ema": {"decay": 0.9}},
}
RESUMED: dict[str, dict[str, Any]] = {name: {"optimizer": name} for name in OPTIMIZERS}
RESUMED["scheduled"] = {"optimizer": "nadam", "schedule": {"one_cycle": {"div_factor": 2}}}
RESUMED |= {"regularised": REGULARISED, "swa": {"averaging": {"swa": {"start": 0.25}}}}
# Resumed in every run of the tests; the others where slow ones run.
FEW = ("sgd", "adagrad", "regularised", "swa", "scheduled")
FITS: dict[str, dict[str, Any]] = {  # the table's cells have every optimiser at every stage
    **{name: RESUMED[name] for name in ("sgd", "adagrad", "adamw", "regularised", "swa", "scheduled")},
    "accumulated and clipped": {"gradient_accumulation": 3, "clip_norm": 0.1},
    "fewer rows in a step than workers": {"rows": 40, "batch_size": 1, "epochs": 1},
    "regression": {"task": "regression"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},  # refused on a CPU before a fit begins; its scaling is the same there
    "activations computed again": {"activation_checkpointing": True},
    "non-finite steps left out": {
        "optimizer": {"sgd": {"learning_rate": 1e30}},
        "non_finite": "skip",
        "epochs": 1,
    },
}


def zero(stage: int, offload: bool = False) -> DeepSpeed:
    return DeepSpeed(
        CPU,
        DeepSpeedConfig(
            zero_stage=stage, offload_optimizer=offload, offload_parameters=offload and stage == 3
        ),
    )


def fits(strategy: Callable[[], Strategy]) -> dict[str, np.ndarray]:
    """Fits whose results must not depend on the stage nor on the number of workers."""
    results = {}
    for name, values in FITS.items():
        loop = scenarios.make_loop(strategy(), **{"precision": "fp32", **values})
        outcome = loop.run()
        results[name] = scenarios.weights(loop)
        results[f"{name}: best"] = np.array([outcome.best, outcome.skipped])
    return results


class Deaf(DeepSpeed):
    """Nobody hears of the others' gradients."""

    def backward(self, loss: Tensor) -> None:
        from deepspeed.comm import comm

        whole = comm.cdb
        comm.cdb = Alone(whole)
        try:
            super().backward(loss)
        finally:
            comm.cdb = whole


class Alone:
    """A way to torch.distributed whose reductions keep each worker's own values."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def all_reduce(self, *args: Any, **kwargs: Any) -> None:
        """Leave the tensor as it is."""

    reduce = all_reduce

    def reduce_scatter_tensor(self, output_tensor: Tensor, input_tensor: Tensor, **kwargs: Any) -> None:
        own = input_tensor.view(torch.distributed.get_world_size(), -1)[torch.distributed.get_rank()]
        output_tensor.copy_(own.view_as(output_tensor))


def stage(number: int, folder: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"fits": [fits(lambda: zero(number))]}
    if number:
        found["fits"].append(fits(lambda: zero(number, offload=True)))
    deaf = Deaf(CPU, DeepSpeedConfig(zero_stage=number))
    found["reduction off"] = scenarios.failure(lambda: scenarios.make_loop(deaf, precision="fp32").run())
    unused = lambda: scenarios.make_loop(zero(number), factory=scenarios.Sometimes, precision="fp32").run()  # noqa: E731
    found["unused"] = scenarios.failure(unused)
    found["resumed"] = resumed(number, folder, FEW)
    return found


def resumed(number: int, folder: str, names: Iterable[str]) -> dict[str, Any]:
    """Fits of one stage: uninterrupted, stopped, gone on with."""
    torch.set_num_threads(1)
    lookout.LOOK_SECONDS = 0.0
    found = {}
    for name in names:
        own = {**RESUMED[name], "precision": "fp32"}
        found[name] = [
            resuming.fit(None, None, zero(number), **own),
            resuming.fit(f"{folder}/{name}", 7, zero(number), **own),
            resuming.fit(f"{folder}/{name}", None, zero(number), **own),
        ]
    return found


def all_stages(folder: str, stop: int | None, names: Iterable[str]) -> dict[str, Any]:
    """Fits of every stage and optimiser that are stopped, or what another group stopped gone on with here."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # what nobody has written is NaN then
    lookout.LOOK_SECONDS = 0.0
    return {
        f"{number} {name}": resuming.fit(
            f"{folder}/{number}/{name}", stop, zero(number), **RESUMED[name], precision="fp32"
        )
        for number, name in itertools.product(STAGES, names)
    }


def one_worker_sleeps(number: int, timeout: float) -> str:
    """Worker 1 stays away from the third step."""
    import time

    def work() -> None:
        with stuck_workers_named(timeout):
            loop = scenarios.make_loop(zero(number), precision="fp32")
            step = loop.stepper.step

            def late(batch: Any, position: int) -> Tensor:
                if position == 2 and loop.strategy.rank == 1:
                    time.sleep(3 * timeout)
                return step(batch, position)

            loop.stepper.step = late  # type: ignore[method-assign]
            loop.run()

    return scenarios.failure(work)

"""What may be combined: strategy, optimiser, precision, placement and device, as data.

The table drives the refusals before anything starts, and the tests: every allowed cell is trained and compared
with a plain torch loop, every refused one starts no process.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from shoal.cluster.components import Choice
from shoal.cluster.errors import ConfigError
from shoal.cluster.resources import Shape
from shoal.training.config import (
    OPTIMIZERS,
    SEARCHING,
    STRATEGIES,
    DeepSpeedConfig,
    SearchConfig,
    TrainingConfig,
)
from shoal.training.schedules.config import ConstantConfig

AXES: Mapping[str, tuple[str, ...]] = {
    "strategy": tuple(STRATEGIES),
    "optimizer": (*OPTIMIZERS, "import"),
    "precision": ("fp32", "fp64", "bf16", "fp16"),
    "l1": ("none", "subgradient", "proximal"),
    "placement": ("inline", "task", "group"),
    "device": ("cpu", "gpu"),
}
PROXIMAL = ("sgd", "adagrad", "rmsprop", "adam", "adamw")  # whose step along each coordinate is known


@dataclass(frozen=True)
class Refusal:
    """A part of the table that is not allowed.

    Attributes
    ----------
    where
        Values by axis; every cell that has one of them on each axis named.
    why
        For the user: the reason, and what to change.
    """

    where: Mapping[str, tuple[str, ...]]
    why: str

    def holds(self, cell: Mapping[str, str]) -> bool:
        """Whether a cell is refused by this."""
        return all(cell[axis] in values for axis, values in self.where.items())


REFUSED: tuple[Refusal, ...] = (
    Refusal(
        {"precision": ("fp16",), "device": ("cpu",)},
        "training.precision: fp16 needs GPUs: CPUs have no fast fp16, and its range needs loss scaling; use bf16 or fp32, "
        "or a cluster that has GPUs",
    ),
    Refusal(
        {"strategy": ("deepspeed",), "placement": ("inline", "task")},
        "training.strategy: deepspeed runs in a worker group: set cluster.placement: auto or group, or use "
        "training.strategy: ddp",
    ),
    Refusal(
        {"strategy": ("deepspeed",), "precision": ("fp64",)},
        "training.strategy: deepspeed keeps its weights in fp32, so training.precision: fp64 would be fp32 in truth; use "
        "fp32, or training.strategy: ddp",
    ),
    Refusal(
        {"optimizer": SEARCHING, "strategy": ("deepspeed",)},
        "training.optimizer: lbfgs and nonlinear_cg look at the whole objective and gradient, which training.strategy: "
        "deepspeed shares among workers; use training.strategy: ddp",
    ),
    Refusal(
        {"optimizer": SEARCHING, "precision": ("bf16", "fp16")},
        "training.optimizer: lbfgs and nonlinear_cg compare objectives more closely than 16 bits tell; use "
        "training.precision: fp32 or fp64",
    ),
    Refusal(
        {"optimizer": SEARCHING, "l1": ("subgradient", "proximal")},
        "training.l1 has no slope at zero, and training.optimizer: lbfgs and nonlinear_cg need one everywhere; use "
        "training.l2, or another optimiser",
    ),
    Refusal(
        {"optimizer": ("import",), "strategy": ("deepspeed",)},
        "training.optimizer: one of your own may look at more than its part of a parameter (some do: Adafactor, Muon), and "
        "training.strategy: deepspeed gives each worker a part; use training.strategy: ddp, or an optimiser by name",
    ),
    Refusal(
        {"strategy": ("deepspeed",), "l1": ("proximal",)},
        "training.l1.proximal shrinks each weight by the step that its optimiser takes there, and with training.strategy: "
        "deepspeed no worker has both; use training.strategy: ddp, or training.l1: {subgradient: …}",
    ),
    Refusal(
        {
            "optimizer": ("import", *(o for o in OPTIMIZERS if o not in (*PROXIMAL, *SEARCHING))),
            "l1": ("proximal",),
        },
        "training.l1.proximal needs an optimiser whose step along each coordinate is known: use training.optimizer: "
        f"{', '.join(PROXIMAL[:-1])} or {PROXIMAL[-1]}, or training.l1: {{subgradient: …}}",
    ),
)


def cells() -> Iterator[dict[str, str]]:
    """Yield every cell of the table, by axis."""
    for values in product(*AXES.values()):
        yield dict(zip(AXES, values, strict=True))


def refusal(cell: Mapping[str, str]) -> Refusal | None:
    """Return why a cell is refused, None where it is allowed."""
    return next((r for r in REFUSED if r.holds(cell)), None)


def cell_of(training: TrainingConfig, shape: Shape) -> dict[str, str]:
    """Return the cell that a fit lies in."""
    return {
        "strategy": str(Choice(STRATEGIES).name_of(training.strategy)),
        "optimizer": str(Choice(OPTIMIZERS).name_of(training.optimizer)),
        "precision": "fp32" if training.precision == "auto" else training.precision,
        "l1": _l1(training),
        "placement": shape.placement,
        "device": "gpu" if shape.gpus_per_worker else "cpu",
    }


def _l1(training: TrainingConfig) -> str:
    if training.l1 is None:
        return "none"
    return "proximal" if training.l1.subgradient is None else "subgradient"


def needs_group(training: TrainingConfig) -> bool:
    """Whether a fit can be placed in a worker group alone."""
    strategy = str(Choice(STRATEGIES).name_of(training.strategy))
    return any(set(r.where) == {"strategy", "placement"} and strategy in r.where["strategy"] for r in REFUSED)


def refuse(training: TrainingConfig, shape: Shape) -> None:
    """Refuse a fit that cannot be right.

    Raises
    ------
    ConfigError
        With the reason and what to change.
    """
    found = refusal(cell_of(training, shape))
    if found is not None:
        raise ConfigError(found.why)
    if training.ensemble is not None and shape.placement == "group":
        raise ConfigError(
            "training.ensemble fits each member in one process: set cluster.num_workers: 1, cluster.placement: inline (one "
            "member after another) or task (as many at a time as there is room for), and training.strategy: ddp"
        )
    scheduled = not isinstance(training.schedule, ConstantConfig) or training.schedule.warmup
    if isinstance(training.optimizer, SearchConfig) and scheduled:
        raise ConfigError(
            f"training.schedule: training.optimizer: {Choice(OPTIMIZERS).name_of(training.optimizer)} searches for the length of "
            "each step, so there is nothing to schedule; leave it out"
        )
    if isinstance(training.optimizer, SearchConfig) and training.clip_norm is not None:
        raise ConfigError(
            "training.clip_norm: a clipped gradient is not that of the objective along which training.optimizer: "
            f"{Choice(OPTIMIZERS).name_of(training.optimizer)} searches; leave it out"
        )
    if shape.is_elastic and training.checkpoint is None:
        raise ConfigError(
            "cluster.num_workers: [least, most] needs training.checkpoint, from which a group of another size goes on; set "
            "it, or give one number of workers"
        )
    if isinstance(training.strategy, DeepSpeedConfig) and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            "training.strategy: deepspeed needs the package deepspeed, which is installed on Linux alone; use "
            "training.strategy: ddp"
        )


def page() -> str:
    """Return the table as a page in Markdown."""
    lines = [
        "# What may be combined",
        "",
        "Generated from `training/allowed.py` by `make docs`. A cell says in which placements (`cluster.placement`) and on",
        "which devices a strategy, an optimiser and a precision are allowed together: everywhere, but for what it names. Every",
        "cell that is allowed on CPUs is trained in the tests and compared with a loop in plain torch. What is refused is",
        "refused by `shoal check`, before anything starts.",
    ]
    for strategy in AXES["strategy"]:
        lines += ["", f"## `training.strategy: {strategy}`", ""]
        lines += ["| optimiser | " + " | ".join(AXES["precision"]) + " |"]
        lines += ["|---" * (len(AXES["precision"]) + 1) + "|"]
        for optimizer in AXES["optimizer"]:
            given = {"strategy": strategy, "optimizer": optimizer, "l1": "none"}
            row = [_cell(given | {"precision": precision}) for precision in AXES["precision"]]
            lines += [f"| `{optimizer}` | " + " | ".join(row) + " |"]
    lines += ["", "## Refused, and why", ""]
    for found in REFUSED:
        where = ", ".join(f"{axis} {' or '.join(values)}" for axis, values in found.where.items())
        lines += [f"- {where}: {found.why}."]
    return "\n".join(lines) + "\n"


def _cell(given: Mapping[str, str]) -> str:
    """Say where a strategy, an optimiser and a precision are allowed together."""
    where = [
        {"placement": placement, "device": device}
        for placement, device in product(AXES["placement"], AXES["device"])
        if refusal({**given, "placement": placement, "device": device}) is None
    ]
    if not where:
        return "refused"
    placements = [p for p in AXES["placement"] if any(w["placement"] == p for w in where)]
    devices = [d for d in AXES["device"] if any(w["device"] == d for w in where)]
    placed = "" if len(placements) == len(AXES["placement"]) else ", ".join(placements)
    on = (
        "" if len(devices) == len(AXES["device"]) else f"on {' and '.join(d.upper() for d in devices)}s alone"
    )
    return ", ".join(filter(None, (placed, on))) or "everywhere"


if __name__ == "__main__":
    print(page(), end="")

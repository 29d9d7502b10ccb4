"""Steps/s and memory of each strategy: Shoal's loop against bare DDP and bare DeepSpeed, both under torchrun.

Run ``python benchmarks/strategies.py [--million-parameters 2] [--workers 2] [--repeats 3]``; both sides train the same model
on the same made-up rows with Adam, in turns, and the medians are printed. With ``--memory`` it is the peak of a worker's
resident set over its steps, above what it held before the model was built; freed blocks of 1 MiB and more then go back to
the system at once, so that the figure is what was held and not what the C library kept for later.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from checkpoints import dataset

from shoal.cluster.progress import Silent
from shoal.training.config import DeepSpeedConfig, MLPConfig, TrainingConfig
from shoal.training.loop import Loop
from shoal.training.models import Model, build_model
from shoal.training.strategies.ddp import DDP
from shoal.training.strategies.deepspeed import DeepSpeed

BATCH = 256
LAYERS = 13  # hidden ones
SETTLED = 5  # steps left out of the figures
CPU = torch.device("cpu")


def resident(peak: bool) -> float:
    """Return this process's resident memory in MiB, or its highest since `forget_peak`."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(wanted)) / 1024


def forget_peak() -> None:
    """Begin the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


class Watch:
    """Times steps after the first few, and their memory."""

    def __init__(self) -> None:
        self.steps, self.started = 0, 0.0

    def step(self) -> None:
        """Hear that a step is over."""
        self.steps += 1
        if self.steps == SETTLED:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the start freed goes back to the system
            forget_peak()
            self.started = time.perf_counter()

    def figures(self, before: float) -> dict[str, float]:
        """Return steps/s and MiB."""
        rate = (self.steps - SETTLED) / (time.perf_counter() - self.started)
        return {"rate": rate, "memory": resident(peak=True) - before}


def shoal_side(strategy: str, model: Model, data: Any, epochs: int, before: float) -> dict[str, float]:
    """Train with Shoal's loop."""
    values = {"epochs": epochs, "batch_size": BATCH, "early_stopping": None, "optimizer": "adam"}
    config = TrainingConfig.model_validate(values)
    chosen = DDP(CPU) if strategy == "ddp" else DeepSpeed(CPU, DeepSpeedConfig(zero_stage=int(strategy[-1])))
    loop, watch = Loop(model, data, config, chosen, None, 0, Silent()), Watch()
    take = loop.stepper.step

    def step(*args: Any) -> Any:
        loss = take(*args)
        watch.step()
        if watch.steps == epochs * loop.plan.steps_per_epoch:
            found.update(watch.figures(before))
        return loss

    found: dict[str, float] = {}
    loop.stepper.step = step  # type: ignore[method-assign]
    loop.run()
    return found


def bare_side(strategy: str, model: Model, data: Any, epochs: int, before: float) -> dict[str, float]:
    """Train as a user of torch or DeepSpeed alone would."""
    parts = [data.shard("train", v) for v in range(len(data.shard_rows("train")))]
    numeric = torch.from_numpy(np.concatenate([p.numeric for p in parts]))
    codes = torch.from_numpy(np.concatenate([p.categorical for p in parts]))
    label = torch.from_numpy(np.concatenate([p.label for p in parts])).float()
    optimizer, engine = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True), None
    if strategy == "ddp":
        wrapped: Any = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        config = {
            "train_micro_batch_size_per_gpu": BATCH // dist.get_world_size(),
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": int(strategy[-1])},
            "zero_allow_untested_optimizer": True,
        }
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )
        wrapped = engine
    watch, own = Watch(), slice(dist.get_rank(), None, dist.get_world_size())
    for epoch in range(epochs):
        order = torch.randperm(len(label), generator=torch.Generator().manual_seed(epoch))
        for start in range(0, len(label), BATCH):
            rows = order[start : start + BATCH][own]
            logits = wrapped(numeric[rows], codes[rows])[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, label[rows])
            if engine is None:
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            else:
                engine.backward(loss)
                engine.step()
            watch.step()
    return watch.figures(before)


def work(side: str, strategy: str, hidden: int, epochs: int, result: str) -> None:
    """Be one worker of torchrun's."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if strategy != "ddp":
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed  # noqa: F401  imported before memory is measured
    data = dataset()
    before = resident(peak=False)
    model = build_model(MLPConfig(hidden=(hidden,) * LAYERS), data.schema, 0)
    found = (shoal_side if side == "shoal" else bare_side)(strategy, model, data, epochs, before)
    if dist.get_rank() == 0:
        Path(result).write_text(json.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # without the destructors of torch's groups


def run(side: str, strategy: str, hidden: int, given: argparse.Namespace) -> dict[str, float]:
    """Run one side under torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={given.workers}", __file__, "--work", side, strategy, str(hidden)),
            *(str(given.epochs), str(result)),
        ]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576"} if given.memory else None
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if not result.exists():
            raise SystemExit(f"{side} {strategy} failed:\n{done.stderr[-3000:]}")
        found: dict[str, float] = json.loads(result.read_text())
        return found


def main() -> None:
    """Measure both sides in turns."""
    if sys.argv[1:2] == ["--work"]:
        side, strategy, hidden, epochs, result = sys.argv[2:]
        work(side, strategy, int(hidden), int(epochs), result)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million-parameters", type=float, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--strategies", nargs="+", default=["ddp", "zero0", "zero1", "zero2", "zero3"])
    parser.add_argument("--memory", action="store_true", help="measure memory, not speed")
    given = parser.parse_args()
    hidden = int((given.million_parameters * 1e6 / (LAYERS - 1)) ** 0.5)
    what, unit = ("memory", "MiB") if given.memory else ("rate", "steps/s")
    print(f"{unit:10}{'shoal':>8}{'bare':>8}{'ratio':>8}")
    for strategy in given.strategies:
        figures: dict[str, list[float]] = {"shoal": [], "bare": []}
        for _ in range(given.repeats):
            for side, found in figures.items():
                found.append(run(side, strategy, hidden, given)[what])
        shoal, bare = (float(np.median(found)) for found in figures.values())
        print(f"{strategy:10}{shoal:>8.1f}{bare:>8.1f}{shoal / bare:>8.2f}", flush=True)


if __name__ == "__main__":
    main()

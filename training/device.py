"""The one place that knows about devices, threads and float types."""

import os

import torch

DTYPES = {  # of weights, gradients and losses
    "auto": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "bf16": torch.float32,
    "fp16": torch.float32,
}
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of the operations that torch.autocast lowers


def pick_device(gpus: float) -> torch.device:
    """Return the GPU that this process owns where it was given one, the CPU otherwise."""
    if gpus > 0 and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def own_threads(cpus: float | None = None) -> int:
    """Let torch use as many threads as this process owns CPUs, and return how many.

    More threads than CPUs make a fit 10 to 40 times slower, so the count never exceeds what the scheduler lets
    the process run on, nor ``OMP_NUM_THREADS`` where the user set it.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        allowed = min(allowed, int(asked))
    threads = max(1, min(allowed, int(cpus) if cpus is not None else allowed))
    torch.set_num_threads(threads)
    return threads

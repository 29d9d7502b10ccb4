"""Models of a user's own, for tests that import them by name in other processes."""

import json
import os
import signal
import time
from pathlib import Path

import torch
from torch import nn


def small(n_inputs: int, n_outputs: int, hidden: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Linear(n_inputs, hidden), nn.Tanh(), nn.Dropout(0.1), nn.Linear(hidden, n_outputs)
    )


class FailsOnWorkerOne(nn.Module):
    """Raises in the forward pass, on one worker only."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.out = nn.Linear(n_inputs, n_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if os.environ.get("RANK") == "1":
            raise ValueError("this module cannot see row 17")
        return self.out(x)


class SleepsOnWorkerOne(FailsOnWorkerOne):
    """Never comes back from the forward pass, on one worker only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if os.environ.get("RANK") == "1":
            time.sleep(60)
        return self.out(x)


class DiesOnWorkerOne(FailsOnWorkerOne):
    """Ends its process, on one worker only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if os.environ.get("RANK") == "1":
            os._exit(1)
        return self.out(x)


class Slow(FailsOnWorkerOne):
    """Takes its time in training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(0.03)
        return self.out(x)


class DrawsByItself(nn.Module):
    """A dropout that torch draws, outside the counter hash."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.out = nn.Linear(n_inputs, n_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(nn.functional.dropout(x, 0.2, self.training))


class Tied(nn.Module):
    """Two layers with one weight, and a buffer that counts passes and is not saved with the weights."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(n_inputs, n_inputs), nn.Linear(n_inputs, n_inputs)
        self.second.weight = self.first.weight
        self.out = nn.Linear(n_inputs, n_outputs)
        self.register_buffer("passes", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.passes += 1
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x))))) * (1 + self.passes / 10)


class Killed(nn.Module):
    """Sends SIGKILL at one of its training steps, once: to its own process, or to the driver of a run."""

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        marker: str,
        at: int,
        rank: str = "0",
        lease: str = "",
        pause: float = 0.02,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_inputs, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, n_outputs))
        self.marker, self.at, self.rank, self.lease, self.pause = Path(marker), at, rank, lease, pause
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(self.pause)  # slow steps, so that a checkpoint lies before the killed one
            self.steps += 1
            if (
                self.steps == self.at
                and os.environ.get("RANK", "0") == self.rank
                and not self.marker.exists()
            ):
                self.marker.write_text(str(os.getpid()))
                victim = json.loads(Path(self.lease).read_text())["pid"] if self.lease else os.getpid()
                os.kill(victim, signal.SIGKILL)
        return self.body(x)

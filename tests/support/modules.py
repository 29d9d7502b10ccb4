"""Models of a user's own, for tests that import them by name in other processes."""

import os
import time

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

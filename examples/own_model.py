"""A residual network, as a factory for `model: {import: own_model:build}`."""

import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def build(n_inputs: int, n_outputs: int, width: int = 64, blocks: int = 2) -> nn.Module:
    """Encoded features [B, n_inputs] in, logits [B, n_outputs] out; `width` and `blocks` come from the file."""
    layers = [Residual(width) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(n_inputs, width), *layers, nn.Linear(width, n_outputs))

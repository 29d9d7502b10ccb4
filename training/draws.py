"""Random draws that depend on what they are for, never on who makes them.

A dropout mask is a hash of (seed, step, layer, row, unit): any split of a batch over workers, and any order,
gives each row the same mask. 32-bit integers keep it as cheap as an ordinary mask.

References
----------
Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators" (the 64-bit mixer);
Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3" (counter-based draws).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from shoal.cluster.errors import RunError

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix64(value: int) -> int:
    """Mix 64 bits (the splitmix64 finaliser)."""
    value = (value + _GOLDEN) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def combine(*words: int) -> int:
    """Hash several integers into 64 bits; the order matters."""
    state = 0
    for word in words:
        state = mix64(state ^ (word & _MASK64))
    return state


def _keys32(base: int, index: Tensor) -> Tensor:
    """Return an int32 key for each int64 index, all under one 64-bit base."""
    state = index.cpu().numpy().astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(base)
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return torch.from_numpy((state >> np.uint64(32)).astype(np.uint32).view(np.int32)).to(index.device)


def _mix32_(x: Tensor) -> Tensor:
    """Mix an int32 tensor in place; shifts are made logical by a mask."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(0x846CA68B - (1 << 32))
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


@dataclass
class DrawContext:
    """Where the training loop is: shared by all layers that draw."""

    seed: int = 0
    step: int = 0
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


class Drawing(nn.Module):
    """A layer that draws: `install_draws` gives it its number and where the loop is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = 0
        self.context = DrawContext()

    def hashed(self, n_rows: int, units: int, device: torch.device) -> Tensor:
        """Return int32 ``[n_rows, units]``, uniform: hashes of (seed, step, layer, row, unit).

        Raises
        ------
        RunError
            If the layer sees other rows than those of the batch.
        """
        context = self.context
        if len(context.rows) != n_rows:
            raise RunError(
                f"a dropout layer saw {n_rows} rows where the batch has {len(context.rows)}: dropout needs the rows of "
                "the batch in its first dimension"
            )
        row_keys = _keys32(combine(context.seed, context.step, self.layer), context.rows.to(device))
        unit_keys = _keys32(combine(context.seed, self.layer), torch.arange(units, device=device))
        return _mix32_(row_keys[:, None] ^ unit_keys[None, :])

    def draws(self, n_rows: int, units: int) -> Tensor:
        """Return float64 ``[n_rows, units]`` in [0, 1), where the context's rows are."""
        return (self.hashed(n_rows, units, self.context.rows.device).double() + 2**31) / 2**32


class CounterDropout(Drawing):
    """Dropout whose mask is a hash of (seed, step, layer, row, unit).

    Parameters
    ----------
    p
        Probability that a unit is zeroed, in [0, 1).
    feature_dims
        How many dimensions after the first have their own draw: None for all (`nn.Dropout`), 1 for whole
        channels (`nn.Dropout1d`, `2d`, `3d`).
    """

    def __init__(self, p: float, feature_dims: int | None = None) -> None:
        super().__init__()
        self.p = p
        self.feature_dims = feature_dims

    def mask(self, x: Tensor) -> Tensor:
        """Return the keep mask for ``x`` ``[B, ...]``, bool, ones in every dimension that shares a draw."""
        n_rows = x.shape[0]
        dims = x.shape[1:] if self.feature_dims is None else x.shape[1 : 1 + self.feature_dims]
        hashed = self.hashed(n_rows, int(np.prod(dims)), x.device)
        keep = hashed >= int(self.p * 2**32) - 2**31
        return keep.view(n_rows, *dims, *([1] * (x.dim() - 1 - len(dims))))

    def forward(self, x: Tensor) -> Tensor:
        """Zero units and scale the others by 1 / (1 - p) in training; the identity otherwise."""
        if not self.training or self.p == 0.0:
            return x
        return x * self.mask(x).to(x.dtype).mul_(1.0 / (1.0 - self.p))

    def extra_repr(self) -> str:
        """Show the probability, as torch does."""
        return f"p={self.p}"


_CHANNELWISE = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_OWN_DRAWS = (nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)


def install_draws(module: nn.Module, context: DrawContext) -> list[str]:
    """Swap every torch dropout of a module for `CounterDropout`, and tie all that draws to one context.

    Returns
    -------
    list of str
        Names of layers that draw in a way that cannot be swapped (a dropout inside attention or a recurrent
        layer, alpha dropout): their results depend on the number of workers.
    """
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
            parent = module.get_submodule(name.rpartition(".")[0])
            feature_dims = 1 if isinstance(child, _CHANNELWISE) else None
            setattr(parent, name.rpartition(".")[2], CounterDropout(child.p, feature_dims))
    outside = []
    for layer, (name, child) in enumerate(module.named_modules()):
        if isinstance(child, Drawing):
            child.layer, child.context = layer, context
        elif isinstance(child, _OWN_DRAWS) or (
            isinstance(child, nn.MultiheadAttention | nn.RNNBase) and child.dropout > 0
        ):
            outside.append(f"{name} ({type(child).__name__})")
    return outside

"""Batch normalisation while rows of two domains take one pass."""

from collections.abc import Callable, Iterator

from torch import Tensor, cat, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shoal.cluster.errors import ConfigError


class PerDomain:
    """Normalises the rows of each domain by their own statistics (Li et al. 2018, "Adaptive batch normalization").

    What the running statistics follow are the target's rows, which the model is for; scale and shift are shared.

    Attributes
    ----------
    rows
        How many source rows come first in a pass; None for a pass that is not split.
    """

    def __init__(self, model: nn.Module) -> None:
        self.rows: int | None = None
        self._layers = list(batch_norms(model))
        for _, layer in self._layers:
            vars(layer)["forward"] = self._split(layer, layer.forward)

    def _split(self, layer: _BatchNorm, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def of_both(x: Tensor) -> Tensor:
            n = self.rows
            if not layer.training or n is None or not 0 < n < len(x):
                return forward(x)
            follows = layer.track_running_stats
            layer.track_running_stats = False  # so torch uses the rows' own statistics and keeps none of them
            source = forward(x[:n])
            layer.track_running_stats = follows
            return cat([source, forward(x[n:])])

        return of_both

    def remove(self) -> None:
        """Leave the layers as they were."""
        for _, layer in self._layers:
            del vars(layer)["forward"]


def batch_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Yield the batch normalisations of a model, with their names.

    Raises
    ------
    ConfigError
        If it has none.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if not found:
        raise ConfigError(
            "transfer.adaptation: batch_norm says how batch normalisations see two domains, and the model has none; leave it out"
        )
    yield from found

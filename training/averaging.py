"""Averages of the weights over the steps of a fit: often better, and steadier, than the last ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from shoal.cluster.config import Config
from shoal.training.config import EMAConfig, SWAConfig
from shoal.training.strategies.base import Fragment, Strategy


class WeightAverage:
    """Keeps the average of what this worker holds of the weights; buffers are not averaged.

    Parameters
    ----------
    config
        ``ema``: avg <- d avg + (1 - d) w after every step, with d = min(decay, (1 + n) / (10 + n)) after n steps, so that the
        start is soon forgotten. ``swa``: the mean of the weights at the ends of the epochs from ``start`` on.
    strategy
        Where the weights are.
    steps_per_epoch, epochs
        Of the fit.

    References
    ----------
    Polyak and Juditsky (1992), "Acceleration of stochastic approximation by averaging", equation 2; Izmailov et al. (2018),
    "Averaging weights leads to wider optima and better generalization", algorithm 1.
    """

    def __init__(self, config: Config, strategy: Strategy, steps_per_epoch: int, epochs: int) -> None:
        assert isinstance(config, EMAConfig | SWAConfig)
        self.config, self.strategy = config, strategy
        self._every = 1 if isinstance(config, EMAConfig) else steps_per_epoch
        self._first = (
            1 if isinstance(config, EMAConfig) else (int(config.start * epochs) + 1) * steps_per_epoch
        )
        self.values: dict[str, Tensor] = {}
        self.notices = []
        if self._first == epochs * steps_per_epoch > 1 and isinstance(config, SWAConfig):
            self.notices.append(
                f"training.averaging: swa from {config.start:g} of {epochs} epochs takes the end of the last one alone, which is "
                "no average; lower start, or train longer"
            )

    def update(self, position: int) -> None:
        """Take in the weights after ``position`` steps, where they belong to the average."""
        if position < self._first or position % self._every:
            return
        weights = self._averaged()
        if not self.values:
            self.values = {n: f.tensor.clone() for n, f in weights.items()}
            return
        taken = (
            position - self._first
        ) // self._every  # averaged before this one: a function of the position
        if isinstance(self.config, EMAConfig):
            average = get_ema_multi_avg_fn(min(self.config.decay, (1 + taken) / (10 + taken)))  # type: ignore[no-untyped-call]
        else:
            average = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
        # Padding of a worker's part can be empty, which the fused operations do not take.
        names = [n for n, f in weights.items() if f.tensor.numel()]
        average([self.values[n] for n in names], [weights[n].tensor for n in names], taken)

    def covers(self, position: int) -> bool:
        """Whether weights have been averaged by the time that so many steps are done."""
        return position >= self._first

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averaged weights within the block, once there are some."""
        if not self.values:
            yield
            return
        live = {n: f.tensor.clone() for n, f in self._averaged().items()}
        self._write(self.values)
        try:
            yield
        finally:
            self._write(live)

    def finish(self) -> None:
        """Give the model the averaged weights for good."""
        if self.values:
            self._write(self.values)

    def _averaged(self) -> dict[str, Fragment]:
        buffers = {name for name, _ in self.strategy.module.named_buffers()}
        return {n: f for n, f in self.strategy.weights().items() if n not in buffers}

    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, fragment in self._averaged().items():
            fragment.tensor.copy_(values[name])
        self.strategy.weights_changed()

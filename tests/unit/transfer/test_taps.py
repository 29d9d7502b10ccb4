"""Layers of a model: which there are, what they give, pooled."""

import pytest
import torch
from torch import nn

from shoal.cluster.errors import ConfigError
from shoal.transfer.features.taps import LAST, chosen, has_channels_first, pooled, tapped, tensor_of


class Block(nn.Module):
    """Answers with several things, as models of language do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.inner(x)
        return {"mask": x > 0, "last_hidden_state": state, "other": x}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.dropout, self.head = Block(), nn.Dropout(0.5), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.block(x)["last_hidden_state"]).relu())


def test_pooling_is_over_tokens_and_places() -> None:
    tokens, places = torch.randn(3, 5, 4), torch.randn(3, 4, 2, 7)
    assert torch.equal(pooled(tokens, "auto"), tokens.mean(1))
    assert torch.equal(pooled(tokens, "max"), tokens.amax(1))
    assert torch.equal(pooled(tokens, "first"), tokens[:, 0])
    assert torch.equal(pooled(tokens, "flatten"), tokens.reshape(3, 20))
    assert torch.equal(pooled(places, "mean"), places.mean((2, 3)))
    assert torch.equal(pooled(places, "max"), places.amax((2, 3)))
    assert torch.equal(pooled(places, "first"), places[:, :, 0, 0])
    assert torch.equal(pooled(tokens, "max", channels_first=True), tokens.amax(2))
    assert torch.equal(pooled(tokens[:, 0], "max"), tokens[:, 0])
    normed = nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), nn.ReLU())
    assert has_channels_first(normed)
    assert not has_channels_first(nn.Sequential(normed, nn.Linear(5, 5)))
    assert not has_channels_first(nn.ReLU())


def test_what_layers_give_is_what_they_compute() -> None:
    net, x = Net().eval(), torch.randn(3, 4)
    with tapped(net, ["block", "block.inner", "head", LAST], "head") as outputs, torch.no_grad():
        answer = net(x)
    state = net.block.inner(x)
    for name, expected in {"block": state, "block.inner": state, "head": answer, LAST: state.relu()}.items():
        found = outputs[name]
        assert found is not None
        assert torch.equal(found, expected)
    assert not net.head._forward_pre_hooks
    assert not net.block._forward_hooks


def test_the_numbers_among_what_a_layer_returns_are_found() -> None:
    numbers, counts = torch.randn(2, 3), torch.arange(2)
    assert tensor_of((counts, [numbers])) is numbers
    assert tensor_of({"a": counts, "b": numbers}) is numbers
    assert tensor_of(counts) is None
    assert tensor_of("text") is None


def test_layers_are_chosen_by_pattern_in_the_models_order() -> None:
    net = Net()
    assert chosen(net, ["head", "block*", LAST]) == ["block", "block.inner", "head", LAST]
    with pytest.raises(ConfigError, match=r"'blok' matches no layer; the nearest are block"):
        chosen(net, ["blok"])
    with pytest.raises(ConfigError, match="matches no layer"):  # it changes nothing where nothing is trained
        chosen(net, ["dropout"])

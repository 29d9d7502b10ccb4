import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from shoal.cluster.errors import RunError
from shoal.training.draws import CounterDropout, DrawContext, combine, install_draws


def layer(p: float = 0.3, rows: int = 400, seed: int = 5, step: int = 2) -> CounterDropout:
    dropout = CounterDropout(p)
    dropout.context = DrawContext(seed, step, torch.arange(rows))
    return dropout


def test_a_row_gets_the_same_mask_in_any_split_and_order() -> None:
    dropout, x = layer(), torch.ones(400, 64)
    whole = dropout(x)
    order = torch.randperm(400)
    dropout.context.rows = order
    torch.testing.assert_close(dropout(x), whole[order], rtol=0, atol=0)
    dropout.context.rows = torch.arange(100, 150)
    torch.testing.assert_close(dropout(x[:50]), whole[100:150], rtol=0, atol=0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_are_fair_independent_coins(p: float) -> None:
    mask = layer(p).mask(torch.ones(400, 256)).numpy()
    keep = 1 - p
    assert stats.binomtest(int(mask.sum()), mask.size, keep).pvalue > 1e-4
    for axis in (0, 1):  # counts along rows and along units are binomial: chi-squared of their dispersion
        counts, n = mask.sum(axis), mask.shape[axis]
        statistic = ((counts - n * keep) ** 2).sum() / (n * keep * p)
        assert 1e-4 < stats.chi2.cdf(statistic, len(counts)) < 1 - 1e-4
    for shifted in (mask[1:] == mask[:-1], mask[:, 1:] == mask[:, :-1]):  # neighbours agree as chance has it
        assert stats.binomtest(int(shifted.sum()), shifted.size, keep**2 + p**2).pvalue > 1e-4


def test_steps_layers_and_seeds_draw_anew() -> None:
    x, masks = torch.ones(400, 64), [layer().mask(torch.ones(400, 64))]
    other_layer = layer()
    other_layer.layer = 1
    masks += [layer(step=3).mask(x), layer(seed=6).mask(x), other_layer.mask(x)]
    for i, a in enumerate(masks):
        for b in masks[i + 1 :]:
            agree = (a == b).float().mean().item()
            assert abs(agree - 0.58) < 0.02  # .7 * .7 + .3 * .3


def test_values_are_scaled_and_evaluation_is_the_identity() -> None:
    dropout, x = layer(0.25), torch.randn(400, 8)
    out = dropout(x)
    kept = out != 0
    torch.testing.assert_close(out[kept], x[kept] / 0.75)
    dropout.eval()
    assert dropout(x) is x


def test_torch_layers_are_swapped_and_others_named() -> None:
    model = nn.Sequential(
        nn.Dropout(0.1),
        nn.Sequential(nn.Dropout2d(0.2)),
        nn.MultiheadAttention(4, 2, dropout=0.5),
        nn.AlphaDropout(0.1),
        nn.LSTM(2, 2),
    )
    context = DrawContext()
    outside = install_draws(model, context)
    assert [type(model[0]), type(model[1][0])] == [CounterDropout, CounterDropout]  # type: ignore[index]
    assert model[0].layer != model[1][0].layer  # type: ignore[index,union-attr]
    assert model[1][0].context is context  # type: ignore[index]
    assert [name.split(" ")[0] for name in outside] == ["2", "3"]


def test_channel_dropout_zeroes_whole_channels() -> None:
    model = nn.Sequential(nn.Dropout2d(0.5))
    install_draws(model, DrawContext(1, 1, torch.arange(16)))
    out = model(torch.ones(16, 8, 3, 3))
    per_channel = out.view(16, 8, 9)
    assert (per_channel == per_channel[..., :1]).all()
    assert 0 < (per_channel[..., 0] == 0).float().mean() < 1


def test_a_layer_that_lost_the_rows_says_so() -> None:
    with pytest.raises(RunError, match="saw 800 rows where the batch has 400"):
        layer()(torch.ones(800, 2))


def test_combine_depends_on_every_word_and_their_order() -> None:
    words = {combine(a, b) for a in range(30) for b in range(30)}
    assert len(words) == 900
    assert np.mean([bin(w).count("1") for w in words]) == pytest.approx(32, abs=1)

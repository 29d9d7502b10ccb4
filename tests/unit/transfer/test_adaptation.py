"""Methods of domain adaptation in the steps of a fit, against loops in plain torch and closed forms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.adapted import (
    BARE,
    EPOCHS,
    METHODS,
    ROWS,
    SEED,
    SGD,
    STEPS,
    TARGET,
    by_hand,
    flat,
    make_loop,
    of_domains,
    run,
    together,
)
from support.prepared import make_dataset
from support.together import run_together
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from shoal.cluster.errors import ConfigError, StoppedError
from shoal.cluster.storage import Storage
from shoal.training.checkpoints import lookout
from shoal.training.checkpoints.keeper import RunKeeper
from shoal.training.config import LinearConfig, MLPConfig
from shoal.training.models import build_model
from shoal.transfer.adaptation.alignment import (
    certainty,
    class_confusion,
    class_probabilities,
    conditioned,
    coral,
    discriminator,
    reverse_gradient,
    squared_mmd,
)
from shoal.transfer.adaptation.self_training import NONE, sure_labels
from shoal.transfer.adaptation.several import agreed, kept_of, two_views
from shoal.transfer.adaptation.weights import Weighted, Weights


def fresh_discriminator(width: int) -> nn.Module:
    torch.manual_seed(SEED)
    return discriminator(width, (6,)).double()


def test_dann_is_a_loop_in_plain_torch() -> None:
    beside = fresh_discriminator(6)

    def term(fs: Tensor, ft: Tensor, _: Tensor, __: Tensor, p: float) -> Tensor:
        strength = 2 / (1 + np.exp(-10 * p)) - 1
        both = torch.cat([fs, ft])
        # The reversal, written without an autograd function: forward both, backward -strength.
        seen = -strength * both + ((1 + strength) * both).detach()
        z = beside(seen)[:, 0]
        wanted = torch.cat([torch.zeros(len(fs)), torch.ones(len(ft))]).double()
        each = binary_cross_entropy_with_logits(z, wanted, reduction="none")
        return 0.5 * (each[: len(fs)].mean() + each[len(fs) :].mean())

    ours = run(make_loop({"dann": {"hidden": [6]}}, model=BARE, optimizer=SGD))
    np.testing.assert_allclose(ours, by_hand(term, beside), rtol=0, atol=1e-12)
    alone = by_hand(lambda fs, *_: fs.sum() * 0)
    assert np.abs(ours - alone).max() > 1e-3, "the alignment does something"


def test_cdan_is_a_loop_in_plain_torch() -> None:
    beside = fresh_discriminator(18)

    def term(fs: Tensor, ft: Tensor, zs: Tensor, zt: Tensor, p: float) -> Tensor:
        strength = 2 / (1 + np.exp(-10 * p)) - 1
        sides = []
        for f, z, wanted in ((fs, zs, 0.0), (ft, zt, 1.0)):
            g = z.softmax(1).detach()
            outer = torch.stack([torch.outer(a, b).flatten() for a, b in zip(f, g, strict=True)])
            seen = -strength * outer + ((1 + strength) * outer).detach()
            each = binary_cross_entropy_with_logits(
                beside(seen)[:, 0], torch.full((len(f),), wanted, dtype=torch.float64), reduction="none"
            )
            sure = 1 + torch.exp((g * g.log()).sum(1))
            sides.append((sure * each).sum() / sure.sum())
        return 0.5 * (sides[0] + sides[1])

    ours = run(make_loop({"cdan": {"hidden": [6]}}, model=BARE, optimizer=SGD))
    np.testing.assert_allclose(ours, by_hand(term, beside), rtol=0, atol=1e-12)


def test_deep_coral_is_a_loop_in_plain_torch() -> None:
    def term(fs: Tensor, ft: Tensor, *_: Any) -> Tensor:
        return 3.0 * (torch.cov(fs.T) - torch.cov(ft.T)).square().sum() / (4 * 6**2)

    ours = run(make_loop({"deep_coral": {"weight": 3.0}}, model=BARE, optimizer=SGD))
    np.testing.assert_allclose(ours, by_hand(term), rtol=0, atol=1e-12)


def test_mmd_is_its_definition_pair_by_pair() -> None:
    draw = np.random.default_rng(0)
    a, b, w = draw.normal(size=(7, 3)), draw.normal(1, 2, size=(5, 3)), draw.uniform(0.5, 2, 7)
    rows = np.concatenate([a, b])
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    width = np.mean([((rows[i] - rows[j]) ** 2).sum() for i, j in pairs])

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([np.exp(-((x - y) ** 2).sum() / (width * 2.0**k)) for k in (-2, -1, 0, 1, 2)]))

    shares = w / w.sum()
    expected = sum(shares[i] * shares[j] * kernel(a[i], a[j]) for i in range(7) for j in range(7))
    expected += sum(kernel(x, y) / 25 for x in b for y in b)
    expected -= 2 * sum(shares[i] / 5 * kernel(a[i], y) for i in range(7) for y in b)
    found = squared_mmd(*(torch.tensor(x) for x in (a, b, w)), 5)
    assert float(found) == pytest.approx(expected, abs=1e-12)
    assert float(squared_mmd(torch.tensor(a), torch.tensor(a), torch.ones(7).double(), 5)) == pytest.approx(
        0, abs=1e-12
    )
    same = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)  # all distances are 0
    squared_mmd(same, same.detach(), torch.ones(4).double(), 3).backward()
    assert torch.isfinite(same.grad).all()


def test_weighted_coral_is_that_of_copied_rows() -> None:
    draw = torch.Generator().manual_seed(1)
    a, b = torch.randn(6, 3, generator=draw).double(), torch.randn(9, 3, generator=draw).double()
    weights = torch.tensor([1.0, 2, 1, 3, 1, 2]).double()
    copied = a.repeat_interleave(weights.long(), 0)
    cov_s = torch.cov(copied.T, correction=0) * 6 / 5  # of n rows, however they weigh
    expected = (cov_s - torch.cov(b.T)).square().sum() / 36
    torch.testing.assert_close(coral(a, b, weights), expected)


@pytest.mark.parametrize("outputs", [1, 3])
def test_class_confusion_is_its_definition(outputs: int) -> None:
    z = torch.randn(8, outputs, generator=torch.Generator().manual_seed(2)).double()
    logits = torch.cat([torch.zeros(8, 1), z], 1).numpy() if outputs == 1 else z.numpy()
    y = np.exp(logits / 2.5)
    y /= y.sum(1, keepdims=True)
    entropy = -(y * np.log(y)).sum(1)
    w = 1 + np.exp(-entropy)
    w = w * 8 / w.sum()
    k = y.shape[1]
    c = np.array([[sum(w[i] * y[i, j] * y[i, m] for i in range(8)) for m in range(k)] for j in range(k)])
    c /= c.sum(1, keepdims=True)
    expected = sum(c[j, m] for j in range(k) for m in range(k) if j != m) / k
    assert float(class_confusion(z, 2.5)) == pytest.approx(expected, abs=1e-12)


def test_the_pieces_of_conditional_alignment() -> None:
    f, g = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.25, 0.75]])
    assert conditioned(f, g).tolist() == [[0.25, 0.75, 0.5, 1.5]]
    assert float(certainty(torch.tensor([[0.5, 0.5]]))) == pytest.approx(1.5)
    torch.testing.assert_close(class_probabilities(torch.tensor([[0.0]])), torch.tensor([[0.5, 0.5]]))
    x = torch.ones(3, requires_grad=True)
    reverse_gradient(2 * x, 0.25).sum().backward()
    assert x.grad.tolist() == [-0.5] * 3


@pytest.mark.parametrize("name", METHODS)
def test_every_method_leaves_the_model_as_its_config_builds_it(name: str) -> None:
    loop = make_loop(METHODS[name])
    names = set(build_model(MLPConfig(hidden=(8, 6), dropout=0.3), loop.dataset.schema, 0).state_dict())
    run(loop)
    members = getattr(loop.model, "members", [loop.model])
    assert all(set(member.state_dict()) == names for member in members)
    assert len(loop.model.state_dict()) == len(members) * len(names)
    assert loop.model.beside is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loop.model.modules())
    found = {metric for _, _, _, metric, *_ in loop.history.rows}
    assert "adaptation_loss" in found


def test_workers_agree_with_one_and_resume(tmp_path: Path) -> None:
    for found in run_together(tmp_path / "results", 2, together, str(tmp_path / "run")):
        for name, method in METHODS.items():
            alone = run(make_loop(method))
            np.testing.assert_allclose(found[name], alone, rtol=0, atol=1e-10, err_msg=name)
            assert found[f"{name}: error"] < 1e-9
        for name in ("dann", "cdan", "deep_coral", "mmd"):
            alone = run(make_loop(METHODS[name], dataset=of_domains(make_dataset("multiclass", ROWS))))
            np.testing.assert_allclose(found[f"several {name}"], alone, rtol=0, atol=1e-10, err_msg=name)
        few = run(make_loop(METHODS["deep_coral"], batch_size=3, epochs=1))
        np.testing.assert_allclose(found["few rows"], few, rtol=0, atol=1e-10)
        assert found["resumed at"] == (13,)
        np.testing.assert_array_equal(found["resumed"], found["dann"])


@pytest.mark.parametrize("stop", [2, STEPS, 2 * STEPS + 3])
@pytest.mark.parametrize("name", ["dann", "self_training"])
def test_resumed_equals_uninterrupted(
    name: str, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 0.0)
    whole = run(make_loop(METHODS[name]))
    store, left = Storage.open(str(tmp_path / "run")), iter(range(stop - 1))
    keeper = RunKeeper(store, 0.0, 2, lambda: "" if next(left, None) is not None else "stop")
    stopped = make_loop(METHODS[name], keeper=keeper)
    with pytest.raises(StoppedError, match=f"after step {stop} of {EPOCHS * STEPS}"):
        stopped.run()
    again = make_loop(METHODS[name], keeper=RunKeeper(store, 1e9, 2))
    np.testing.assert_array_equal(run(again), whole)
    assert again.resumed_from == [stop]


def test_sure_labels_are_the_surest_of_each_class() -> None:
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.7, 0.3], [0.45, 0.55], [0.3, 0.7]])
    assert sure_labels(p, 0.5, 0.0, True).tolist() == [0, NONE, 0, NONE, NONE, 1]
    assert sure_labels(p, 0.5, 0.0, False).tolist() == [0, NONE, 0, NONE, NONE, NONE], "0.7 is a tie of two"
    assert sure_labels(p, 1.0, 0.65, True).tolist() == [0, NONE, 0, 0, NONE, 1]
    assert sure_labels(np.full((4, 2), 0.5), 1.0, 0.0, True).tolist() == [0] * 4
    assert sure_labels(np.full((4, 2), 0.5), 0.5, 0.0, True).tolist() == [NONE] * 4


def test_self_training_learns_its_own_labels() -> None:
    seen: list[np.ndarray] = []
    loop = make_loop({"self_training": {"start": 0.5, "shares": [0.3, 1.0]}}, model=BARE)
    method = loop.adaptation
    original = method.begin

    def begin(epoch: int, model: Any, strategy: Any) -> None:
        original(epoch, model, strategy)
        seen.append(method.labels.numpy().copy())

    method.begin = begin
    run(loop)
    assert [int((s >= 0).sum()) > 0 for s in seen] == [False, False, True, True]
    assert (seen[-1] >= 0).all(), "the curriculum ends with all rows"
    assert len(seen[0]) == TARGET
    alone = make_loop({"self_training": {"start": 0.5, "weight": 0.0}}, model=BARE)
    assert np.abs(run(alone) - flat(loop.model)).max() > 1e-3


def test_weights_by_class_and_by_row_are_those_of_the_loss() -> None:
    by_class = run(make_loop("bbse", weights=Weights((0.5, 2.0, 1.0)), model=BARE))
    named = {"cross_entropy": {"class_weights": {"a": 0.5, "b": 2.0, "c": 1.0}}}
    plain = make_loop("bbse", model=BARE, loss=named)
    np.testing.assert_allclose(by_class, run(plain), rtol=0, atol=1e-13)
    dataset = make_dataset("multiclass", ROWS)
    own = np.array([0.5, 2.0, 1.0])
    of_shard = [own[dataset.shard("train", v).label] for v in range(dataset.n_shards)]
    by_row = run(
        make_loop(
            "importance_weighting",
            weights=Weights(by_row=True),
            dataset=Weighted(dataset, of_shard),
            model=BARE,
        )
    )
    np.testing.assert_allclose(by_row, by_class, rtol=0, atol=1e-13)


def test_label_shift_weights_count_in_the_alignment_too() -> None:
    draw = torch.Generator().manual_seed(1)
    a, b = torch.randn(6, 3, generator=draw).double(), torch.randn(9, 3, generator=draw).double()
    even, uneven = torch.ones(6).double(), torch.tensor([1.0, 1, 1, 3, 3, 3]).double()
    assert float(squared_mmd(a, b, even, 5)) != float(squared_mmd(a, b, uneven, 5))
    one = run(make_loop({"dann": {}}, weights=Weights((0.5, 2.0, 1.0)), model=BARE))
    other = run(
        make_loop({"dann": {}}, model=BARE, loss={"cross_entropy": {"class_weights": {"a": 0.5, "b": 2.0}}})
    )
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)


def test_a_named_layer_and_models_without_one() -> None:
    run(make_loop({"mmd": {"layer": "body.0"}}, model=BARE))
    with pytest.raises(ConfigError, match=r"layer: 'body.9' matches nothing of the model"):
        make_loop({"mmd": {"layer": "body.9"}}, model=BARE)
    with pytest.raises(ConfigError, match="no layer below the one that answers"):
        make_loop("dann", model=LinearConfig())


@pytest.mark.parametrize("task", ["binary", "regression", "multilabel"])
@pytest.mark.parametrize("name", ["dann", "mmd"])
def test_other_tasks_are_aligned_too(task: str, name: str) -> None:
    assert np.isfinite(run(make_loop({name: {}}, task=task, model=BARE))).all()


def test_lower_precision_keeps_the_discriminator_whole() -> None:
    loop = make_loop({"dann": {}}, model=BARE, precision="bf16")
    loop.run()
    assert np.isfinite(flat(loop.model)).all()
    assert {p.dtype for p in loop.model.parameters()} == {torch.float32}


def test_a_view_sees_its_columns_alone_throughout() -> None:
    views = {"views": [["x0", "x1", "c*"], ["x2", "x3", "x4", "x5"]]}
    loop = make_loop({"co_training": {"start": 0.25, "confidence": 0.4, **views}})
    run(loop)
    part = loop.dataset.parts["train"]
    numbers, codes = torch.from_numpy(part.numeric).double(), torch.from_numpy(part.categorical)
    first, second = loop.model.members
    loop.model.eval()
    other_numbers, other_codes = numbers.clone(), codes.clone()
    other_numbers[:, 2:] = -other_numbers[:, 2:]
    assert torch.equal(first(numbers, codes), first(other_numbers, codes))
    assert not torch.equal(second(numbers, codes), second(other_numbers, codes))
    other_codes[:] = 1
    other_numbers[:, :2] = 3.0
    other_numbers[:, 2:] = numbers[:, 2:]
    assert torch.equal(second(numbers, codes), second(other_numbers, other_codes))
    assert not torch.equal(first(numbers, codes), first(other_numbers, other_codes))
    with pytest.raises(ConfigError, match=r"co_training.views: 'z' matches no feature column"):
        make_loop({"co_training": {"views": [["z"], ["x1"]]}})
    with pytest.raises(ConfigError, match="begins with none; use model: mlp"):
        make_loop("co_training", model=LinearConfig())


def test_views_that_are_found_tell_about_as_much() -> None:
    first, second = two_views(list("abcd"), list("aabcd"), np.array([0.2, 0.2, 0.35, 0.1, 0.04]))
    assert (first, second) == ({"a", "d"}, {"b", "c"})
    assert two_views(list("ab"), list("ab"), np.zeros(2)) == ({"a"}, {"b"})


def test_two_that_agree_label_a_row() -> None:
    one = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    two = np.array([[0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.45, 0.55]])
    assert agreed(one, two, 0.6).tolist() == [0, NONE, 1, NONE]


def test_labels_are_taken_while_they_promise_fewer_errors() -> None:
    """The conditions of Zhou and Li, by hand: error x labels must fall, or labels are left out until it does."""
    labels = np.array([0, 1, 1, NONE, 0, 1, 0, 0])  # 7 of them
    assert not kept_of(0.3, 0.3, labels, 0, 0)[1], "no better than before"
    assert not kept_of(0.45, 0.5, labels, 0, 0)[1], "at least .45 / .05 + 1 = 10 labels were needed"
    taken, yes = kept_of(0.05, 0.5, labels, 1, 0)
    assert yes, ".05 x 7 < .5 x 1"
    assert (taken == labels).all()
    few, yes = kept_of(0.2, 0.5, labels, 2, 0)
    assert yes
    assert int((few >= 0).sum()) == int(np.ceil(0.5 * 2 / 0.2 - 1)) == 4
    assert set(np.flatnonzero(few >= 0)) < set(np.flatnonzero(labels >= 0))
    assert (few[few >= 0] == labels[few >= 0]).all()
    assert not kept_of(0.4, 0.5, labels, 2, 0)[1], "2 is not above .4 / .1"


def test_members_are_drawn_rows_and_the_mixture_is_kept() -> None:
    loop = make_loop(METHODS["tri_training"])
    shard = loop.dataset.shard("train", 0)
    assert shard.cost.shape[1] == 3
    assert set(np.unique(shard.cost)) <= set(range(8))
    assert 0.6 < np.concatenate([loop.dataset.shard("train", v).cost for v in range(8)]).mean() < 1.4
    run(loop)
    assert len(loop.model.members) == 3
    assert int(loop.adaptation.given.min()) >= 0
    weights = [flat(member) for member in loop.model.members]
    assert np.abs(weights[0] - weights[1]).max() > 1e-3

"""Updates of low rank against peft's own model in a plain torch loop, and the artifact that needs no peft."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from support.prepared import make_dataset
from support.tuned import ROWS, make_loop, write_start
from support.tuned_by_hand import plain_model, train_by_hand

from shoal.cluster.errors import ConfigError
from shoal.cluster.storage import Storage
from shoal.training.artifact import TrainedModel


def test_equals_pefts_model_in_a_plain_loop(tmp_path: Path) -> None:
    start = write_start(tmp_path / "start")
    loop = make_loop(
        {"start": start, "lora": {"rank": 2, "alpha": 6}}, optimizer={"adam": {"learning_rate": 0.02}}
    )
    first = {n: p.detach().clone() for n, p in loop.model.named_parameters() if ".lora_" in n}
    assert set(first) == {f"body.{i}.lora_{x}.default.weight" for i in (0, 2) for x in ("A", "B")}, (
        "all linear layers but the head"
    )
    loop.run()

    oracle = plain_model(start)
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["body.0", "body.2"])
    around = peft.LoraModel(oracle, {"default": config}, "default").double()
    for name, p in oracle.named_parameters():
        p.requires_grad_(".lora_" in name or name.startswith("body.4."))
        if name in first:
            p.data.copy_(first[name])
    trained = [p for p in oracle.parameters() if p.requires_grad]
    train_by_hand(oracle, {0: lambda: torch.optim.Adam(trained, lr=0.02)})
    part = make_dataset("multiclass", ROWS).parts["test"]
    rows = (torch.from_numpy(part.numeric).double(), torch.from_numpy(part.categorical))
    oracle.eval()
    wanted = around(*rows)
    torch.testing.assert_close(loop.model(*rows), wanted, rtol=0, atol=1e-10)

    merged = loop.model
    loop.stepper.tuning.finish()
    assert merged.state_dict().keys() == plain_model(start).state_dict().keys()
    torch.testing.assert_close(merged(*rows), wanted, rtol=0, atol=1e-10)
    before = plain_model(start).state_dict()
    difference = merged.state_dict()["body.0.weight"] - before["body.0.weight"]
    assert int(torch.linalg.matrix_rank(difference)) == 2
    for name in ("body.0.bias", "encoder.embeddings.0.weight"):
        assert torch.equal(merged.state_dict()[name], before[name])


def test_the_artifact_needs_no_peft(tmp_path: Path) -> None:
    start = write_start(tmp_path / "start")
    loop = make_loop({"start": start, "lora": {"layers": ["body.2"]}})
    loop.run()
    loop.stepper.tuning.finish()
    schema = make_dataset("multiclass", ROWS).schema
    run = tmp_path / "run"
    config = TrainedModel.load(start).config
    TrainedModel(loop.model, schema, config).save(Storage.open(str(run)))
    code = (
        "import sys; sys.modules['peft'] = None; from shoal.training.artifact import TrainedModel; "
        f"print(TrainedModel.load({str(run)!r}).module.state_dict()['body.2.weight'].sum().item())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) == pytest.approx(
        float(loop.model.state_dict()["body.2.weight"].sum()), abs=1e-6
    )


def test_dropout_of_updates_does_not_depend_on_workers(tmp_path: Path) -> None:
    start = write_start(tmp_path / "start")
    transfer = {"start": start, "lora": {"rank": 2, "dropout": 0.3}}
    one, parts = make_loop(transfer), make_loop(transfer, gradient_accumulation=3)
    for loop in (one, parts):
        loop.run()
        assert not loop.notices
        loop.stepper.tuning.finish()
    for name, tensor in one.model.state_dict().items():
        np.testing.assert_allclose(tensor, parts.model.state_dict()[name], rtol=0, atol=1e-12)


def test_what_lora_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = write_start(tmp_path / "start")
    with pytest.raises(
        ConfigError, match=r"transfer.lora.layers: 'body.4' matches nothing .* nearest names are"
    ):
        make_loop({"start": start, "lora": {"layers": ["body.4"]}})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'needs the package peft: pip install "shoal\[transfer\]"'):
        make_loop({"start": start, "lora": {}})

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.tabular import rows

from shoal.cluster.components import Imported
from shoal.experiment import load_experiment

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_example_is_a_valid_experiment(path):
    assert load_experiment(path).data.path


def test_a_model_of_your_own_trains_and_predicts_only_when_importing_is_allowed(shoal, folder, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "own_model", raising=False)
    out, answers = folder / "own run", folder / "own.csv"
    data = [
        f"data.path={folder}/rows.parquet",
        "data.target=y",
        "training.epochs=2",
        "model.width=8",
        "model.blocks=1",
    ]
    overrides = [word for value in data for word in ("--set", value)]
    done = shoal(
        "train",
        EXAMPLES / "own_model.yaml",
        *overrides,
        "--set",
        f"cluster.storage_path={folder}/runs",
        "--out",
        out,
    )
    assert done.code == 0, done.err
    config = load_experiment(out / "config.yaml").model
    assert isinstance(config, Imported)
    assert config.kwargs == {"width": 8, "blocks": 1}
    pq.write_table(rows(10), folder / "ten.parquet")
    refused = shoal("predict", out, "--data", folder / "ten.parquet", "--to", answers)
    assert refused.code == 2
    assert "--allow-import" in refused.err
    assert (
        shoal("predict", out, "--data", folder / "ten.parquet", "--to", answers, "--allow-import").code == 0
    )

"""`shoal tune` along a regularisation path: the chosen fit is scikit-learn's, its page and files are there, no Ray is started."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.tabular import rows

from shoal.cluster.storage import Storage
from shoal.training.artifact import TrainedModel

CONFIG = """\
data: {{path: {folder}/rows.parquet, target: y, id: key}}
model: {model}
evaluation: {{cv: 3}}
tuning: {{path: {{strengths: 20, choose: one_standard_error}}}}
cluster: {{storage_path: {folder}/runs}}
"""


@pytest.fixture
def file(tmp_path):
    pq.write_table(rows(300), tmp_path / "rows.parquet")
    (tmp_path / "path.yaml").write_text(CONFIG.format(folder=tmp_path, model="linear"))
    return tmp_path / "path.yaml"


def test_the_chosen_strength_is_fitted_again(shoal, file, tmp_path):
    run = tmp_path / "run"
    done = shoal("tune", file, "--out", run, "--json")
    assert done.code == 0, done.err
    chosen = done.json["path"]["chosen"]
    table = pq.read_table(run / "path.parquet").to_pydict()
    at = table["chosen"].index(True)
    assert table["strength"][at] == chosen["strength"]
    assert table["nonzero"][0] == 0
    assert table["loss"][at] <= min(table["loss"]) + table["error"][int(np.argmin(table["loss"]))]
    # The path's own weights are those of the estimator that was fitted again.
    weights = pq.read_table(run / "weights.parquet").to_pylist()
    own = {row["column"]: row["weight"] for row in weights if row["strength"] == chosen["strength"]}
    estimator = TrainedModel.load(Storage.open(str(run / "best"))).module.estimator
    known = sorted(w for w in estimator.coef_[0] if abs(w) > 1e-4)
    assert known == pytest.approx(sorted(w for w in own.values() if abs(w) > 1e-4), abs=1e-3)
    assert {"x", "z"} <= set(own)
    assert 0.8 < done.json["metrics"]["test"]["average_precision"]["value"] <= 1
    page = (run / "report.html").read_bytes()
    assert shoal("report", run).code == 0
    assert (run / "report.html").read_bytes() == page
    again = shoal("tune", file, "--out", run)
    assert "nothing is computed again" in again.err
    assert "chosen: strength" in again.out


def test_a_path_of_numbers(shoal, file, tmp_path):
    done = shoal(
        "tune", file, "--out", tmp_path / "run", "--json",
        "--set", "data.target=x", "--set", "tuning.path.penalty=elastic_net",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["path"]["loss"] == "squared error"
    assert "ElasticNet" in (tmp_path / "run" / "best.yaml").read_text()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=mlp", "tuning.path is of a linear model"),
        ("data.target=kind", "tuning.path is for two classes and for numbers, and the task is multiclass"),
    ],
)
def test_what_has_no_path_is_refused(shoal, file, override, said):
    done = shoal("tune", file, "--set", override)
    assert done.code == 2
    assert said in done.err.replace("\n       ", " ")

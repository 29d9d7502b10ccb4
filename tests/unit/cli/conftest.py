import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal.cli.main import main


def rows(n=300, seed=0, order=None):
    """A table that a linear model can learn: two numbers, a category, an id."""
    generator = np.random.default_rng(seed)
    x, z = generator.normal(size=(2, n))
    kind = generator.choice(["a", "b", "c"], n)
    score = 2 * x - z + (kind == "a") + generator.logistic(size=n) * 0.3
    table = pa.table(
        {
            "x": x,
            "z": z,
            "kind": kind,
            "key": [f"k{i:04d}" for i in range(n)],
            "y": np.where(score > 0.8, "yes", "no"),
        }
    )
    return table if order is None else table.take(pa.array(order))


EXPERIMENT = """\
data: {{path: {folder}/rows.parquet, target: y, id: key}}
model: linear
training: {{epochs: 3, batch_size: 32, optimizer: {{adam: {{learning_rate: 0.05}}}}}}
evaluation: {{replicates: 100}}
cluster: {{storage_path: {folder}/runs}}
"""


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self):
        """The one JSON object on stdout."""
        return json.loads(self.out)


@pytest.fixture
def shoal(capsys):
    """Runs a command in this process."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err or "--debug" in arguments
        assert "\x1b" not in captured.out + captured.err  # no terminal here
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows and an experiment file."""
    path = tmp_path_factory.mktemp("cli run")  # with a space
    pq.write_table(rows(), path / "rows.parquet")
    (path / "small.yaml").write_text(EXPERIMENT.format(folder=path))
    return path


@pytest.fixture(scope="module")
def run(folder):
    """A finished run of that experiment."""
    out = folder / "finished"
    assert main(["train", str(folder / "small.yaml"), "--out", str(out), "--quiet"]) == 0
    return out

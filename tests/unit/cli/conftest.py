import json
from dataclasses import dataclass

import pyarrow.parquet as pq
import pytest
from support.tabular import rows

from shoal.cli.main import main

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


@pytest.fixture
def small(tmp_path):
    """Rows, and an experiment of three folds."""
    pq.write_table(rows(), tmp_path / "rows.parquet")
    text = EXPERIMENT.format(folder=tmp_path).replace("replicates: 100", "cv: 3")
    (tmp_path / "small.yaml").write_text(text)
    return tmp_path

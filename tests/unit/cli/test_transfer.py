"""train, check and their kin with a `transfer` section, on digits."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits

from shoal.cli.main import main
from shoal.experiment import dump_yaml, load_experiment
from shoal.training.artifact import TrainedModel

EXPERIMENT = """\
data: {{path: {folder}/{rows}.parquet, target: label, drop: [color], split: {{column: part}}}}
model: {{mlp: {{hidden: [16, 8]}}}}
training: {{epochs: 3, batch_size: 64, optimizer: {{adam: {{learning_rate: 0.01}}}}}}
evaluation: {{replicates: 100, scoring: [accuracy]}}
cluster: {{storage_path: {folder}/runs}}
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits 0 to 4 with a run, and a few of 5 to 9 with a column more."""
    folder = tmp_path_factory.mktemp("transfer")
    data = load_digits()
    rng = np.random.default_rng(0)
    for name, chosen in (("low", data.target < 5), ("high", data.target >= 5)):
        rows = np.flatnonzero(chosen)
        part = np.where(rng.random(len(rows)) < 0.3, "test", "validation" if name == "high" else "train")
        if name == "high":  # ten rows to learn from, in most of which a pixel is the same
            part[[np.flatnonzero(data.target[rows] == c)[i] for c in range(5, 10) for i in range(2)]] = (
                "train"
            )
        columns = {f"p{i}": data.data[rows, i] for i in range(64)}
        columns |= {"label": [f"d{c}" for c in data.target[rows]], "color": ["red"] * len(rows), "part": part}
        more = {"brightness": data.data[rows].sum(1)} if name == "high" else {}
        pq.write_table(pa.table(columns | more), folder / f"{name}.parquet")
        (folder / f"{name}.yaml").write_text(EXPERIMENT.format(folder=folder, rows=name))
    assert main(["train", str(folder / "low.yaml"), "--out", str(folder / "low"), "--quiet"]) == 0
    return folder


def tuned(digits: Path, **section: object) -> list[str]:
    given = {"start": str(digits / "low"), **section}
    return [str(digits / "high.yaml"), "--set", f"transfer={json.dumps(given)}"]


def test_check_says_what_is_trained_and_where_it_starts(shoal, digits):
    done = shoal("check", *tuned(digits, unfreeze={"gradual": {"epochs": 1}}, rate_decay=0.5))
    assert done.code == 0, done.err
    for said in (
        "4 of 6 tensors of the model are taken from",
        "not body.4.weight, body.4.bias: a new head, for the start answers another question",
        "columns, means, scales and categories are the start's",
        "body.2: 136 parameters, trained from epoch 2 on, learning rate 0.005",
        "that the model to start from does not read are left out: ",
    ):
        assert said in done.out, said
    assert not (digits / "runs" / "high").exists()


def test_train_takes_the_columns_and_statistics_of_the_start(shoal, digits, tmp_path):
    run = tmp_path / "run"
    done = shoal("train", *tuned(digits, freeze="all_but_head"), "--out", run)
    assert done.code == 0, done.err
    assert "all_but_head" in (run / "config.yaml").read_text()
    assert "body.0: " in done.err
    assert "frozen" in done.err
    mine, start = TrainedModel.load(str(run)), TrainedModel.load(str(digits / "low"))
    assert mine.schema.columns == start.schema.columns
    assert mine.classes == ("d5", "d6", "d7", "d8", "d9")
    for name, values in load_file(digits / "low" / "model" / "model.safetensors").items():
        same = np.array_equal(load_file(run / "model" / "model.safetensors")[name], values)
        assert same == (not name.startswith("body.4")), name
    assert len(mine.provenance["start"]["sha256"]) == 64
    rows = pq.read_table(digits / "high.parquet")
    written = pq.read_table(run / "predictions.parquet")
    assert written.num_rows > 800
    assert set(np.unique(mine.predict(rows))) <= set(mine.classes)
    for verb in (
        ["predict", run, "--data", digits / "high.parquet", "--to", tmp_path / "out.parquet"],
        ["report", run],
    ):
        assert shoal(*verb).code == 0
    again = shoal("train", *tuned(digits, freeze="all_but_head"), "--out", run)
    assert "complete; nothing is computed again" in again.err
    other = shoal("train", *tuned(digits, freeze=["body.0"]), "--out", run)
    assert other.code == 2
    assert "transfer.freeze" in other.err


def test_statistics_can_be_fitted_anew(shoal, digits, tmp_path):
    done = shoal("check", *tuned(digits, statistics="data"))
    assert done.code == 2
    assert "leaves other columns than those that the start reads (p" in done.err
    assert "use statistics: start" in done.err


def test_a_file_of_weights(shoal, digits, tmp_path):
    weights = load_file(digits / "low" / "model" / "model.safetensors")
    save_file({n.removeprefix("body."): w for n, w in weights.items()}, tmp_path / "w.safetensors")
    done = shoal("check", *tuned(digits, start=str(tmp_path / "w.safetensors")))
    assert done.code == 0, done.err
    assert "(its names with 'body.' in front)" in done.out
    assert (
        "means, scales and categories are those of the training rows: a file of weights has none" in done.out
    )


def test_the_same_rows_before_and_now_are_said(shoal, digits):
    section = json.dumps({"start": str(digits / "low")})
    done = shoal("check", digits / "low.yaml", "--set", f"transfer={section}")
    assert done.code == 0, done.err
    assert "trained on rows of the same file" in done.out
    assert "6 of 6 tensors" in done.out


WRONG = [
    (
        {"freeze": ["body.1"]},
        "transfer.freeze: 'body.1' matches nothing of the model; the nearest names are body.",
    ),
    ({"freeze": ["*"]}, "transfer.freeze: ['*'] leaves no parameter to train"),
    ({"head": "fc"}, "transfer.head: 'fc' matches nothing of the model"),
    ({"unfreeze": {"gradual": {"epochs": 2}}}, "3 stages of 2 epochs, the last of 1 or more, need 5 epochs"),
    ({"rename": {"a": "b"}}, "transfer.rename is for files of weights"),
    ({"lora": {}, "freeze": ["body.0"]}, "so freeze has no meaning"),
    ({"unfreeze": "gradual", "freeze": "all_but_head"}, "leaves nothing to unfreeze"),
    ({"unfreeze": "slowly"}, "transfer.unfreeze: there is no 'slowly'"),
    ({"start": "model.ckpt"}, "transfer.start: model.ckpt is no file that is read here"),
    ({"start": "nowhere"}, "nowhere holds no trained model"),
    ({"rate_decay": 1.5}, "transfer.rate_decay"),
    ({"freez": ["body.0"]}, "did you mean freeze?"),
]


@pytest.mark.parametrize(("section", "said"), WRONG)
@pytest.mark.parametrize("verb", ["check", "train"])
def test_what_is_wrong_is_said_in_the_words_of_the_file(shoal, digits, tmp_path, verb, section, said):
    out = ["--out", tmp_path / "run"]
    done = shoal(verb, *tuned(digits, **section), *out)
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "run").exists()


TOGETHER = [
    ("unfreeze", "gradual", "strategy=deepspeed", "cuts up what is trained once and for all"),
    ("l2_sp", {}, "strategy=deepspeed", "no worker has them"),
    ("unfreeze", "probe", "optimizer=lbfgs", "transfer.unfreeze: training.optimizer: lbfgs searches"),
    ("l2_sp", {}, "optimizer=nonlinear_cg", "transfer.l2_sp: training.optimizer: nonlinear_cg searches"),
    ("rate_decay", 0.5, "optimizer=lbfgs", "transfer.rate_decay: training.optimizer: lbfgs searches"),
    ("l2_sp", {}, "l2=0.1", "training.l2: 0.1 pulls weights to zero"),
]


@pytest.mark.parametrize(("key", "value", "training", "said"), TOGETHER)
def test_what_does_not_go_together_is_refused(shoal, digits, key, value, training, said):
    done = shoal("check", *tuned(digits, **{key: value}), "--set", f"training.{training}")
    assert done.code == 2
    assert said in done.err


def test_a_section_without_a_start_is_refused(shoal, digits):
    done = shoal("check", digits / "high.yaml", "--set", 'transfer={"freeze": ["body.0"]}')
    assert done.code == 2
    assert "freeze is about a model to start from, and there is none" in done.err


def test_models_of_scikit_learns_do_not_start_from_weights(shoal, digits):
    model = 'model={"import": "sklearn.tree:DecisionTreeClassifier"}'
    done = shoal("check", *tuned(digits), "--set", model, "--set", "training={}")
    assert done.code == 2
    assert "start from no weights" in done.err


def test_the_section_survives_its_own_file(digits):
    section = {"start": "x.pt", "unfreeze": {"probe": {"epochs": 2}}, "freeze": ["a.*"], "lora": None}
    found = load_experiment(digits / "high.yaml", [f"transfer={json.dumps(section)}"])
    (digits / "again.yaml").write_text(dump_yaml(found))
    assert load_experiment(digits / "again.yaml") == found


def test_a_learning_rate_is_found_for_all_layers_at_once(shoal, digits, tmp_path):
    arguments = tuned(digits, unfreeze={"gradual": {"epochs": 1}})
    done = shoal("train", *arguments, "--find-learning-rate", "--out", tmp_path / "found")
    assert done.code == 0, done.err
    assert "stage 2" not in done.err


def test_folds_start_there_too(shoal, digits, tmp_path):
    arguments = [
        *tuned(digits, freeze="all_but_head"),
        "--set",
        "evaluation.cv=2",
        "--set",
        "data.split.column=null",
    ]
    arguments += ["--set", 'data.drop=["color", "part"]']
    done = shoal("crossval", *arguments, "--out", tmp_path / "folds")
    assert done.code == 0, done.err
    start = load_file(digits / "low" / "model" / "model.safetensors")
    for fit in sorted((tmp_path / "folds" / "fits").rglob("model.safetensors")):
        assert np.array_equal(load_file(fit)["body.0.weight"], start["body.0.weight"])
        assert not np.array_equal(load_file(fit)["body.4.weight"], start["body.4.weight"])
    assert len(list((tmp_path / "folds" / "fits").rglob("model.safetensors"))) == 2

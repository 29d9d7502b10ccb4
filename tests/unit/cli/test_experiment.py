import json
from typing import Any

import jsonschema
import pytest

from shoal.cluster.components import Imported
from shoal.cluster.config import identity
from shoal.cluster.errors import ConfigError
from shoal.experiment import (
    Experiment,
    dump_yaml,
    from_dict,
    json_schema,
    load_cluster,
    load_experiment,
    run_name,
    to_dict,
)
from shoal.experiment_errors import RESERVED
from shoal.training.config import AdamConfig, SGDConfig
from shoal.yaml_file import parse

DATA = "data:\n  path: a.parquet\n  target: y\n"


def write(tmp_path, text, name="experiment.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def refused(tmp_path, text, *overrides):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_experiment(path, overrides)
    message = str(error.value).replace(str(path), "experiment.yaml")
    for jargon in ("pydantic", "http", "input_value", "Input should", "union_tag", "type="):
        assert jargon not in message
    return message.splitlines()


def test_path_and_target_are_enough(tmp_path):
    assert load_experiment(write(tmp_path, DATA)) == Experiment(data={"path": "a.parquet", "target": "y"})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "trainin: {}\n",
            "experiment.yaml:4: trainin is not a key; did you mean training? allowed: data, model, ",
        ),
        (
            "training:\n  optimizer:\n    adam: {learning_rat: 1e-3}\n",
            "experiment.yaml:6: training.optimizer.adam.learning_rat is not a key; did you mean learning_rate? "
            "allowed: learning_rate, betas, eps, weight_decay, amsgrad",
        ),
        (
            "learning_rate: 3\n",
            "experiment.yaml:4: learning_rate is not a key; did you mean training.optimizer.learning_rate?",
        ),
        (
            "training: {epochs: 0}\n",
            "experiment.yaml:4: training.epochs: 0 is not allowed; it must be at least 1",
        ),
        (
            "training: {epochs: many}\n",
            "experiment.yaml:4: training.epochs: 'many' is not allowed; it must be a whole number",
        ),
        (
            "training: {epochs: 1.5}\n",
            "experiment.yaml:4: training.epochs: 1.5 is not allowed; it must be a whole number",
        ),
        (
            "training: {epochs: '3'}\n",
            "experiment.yaml:4: training.epochs: '3' is a text; write 3 without quotes",
        ),
        ("training: {epochs: true}\n", "experiment.yaml:4: training.epochs: true is not a number"),
        (
            "training: {clip_norm: .inf}\n",
            "experiment.yaml:4: training.clip_norm: inf is not allowed; it must be a finite",
        ),
        (
            "training: {batch_size: ful}\n",
            "experiment.yaml:4: training.batch_size: 'ful' is not allowed; did you mean full? it must be a whole "
            "number, or auto or full",
        ),
        ("training: {precision: fp8}\n", "experiment.yaml:4: training.precision: 'fp8' is not allowed"),
        ("training: {early_stopping: {restore_best: 'yes'}}\n", "it must be true or false"),
        ("training: 5\n", "experiment.yaml:4: training: 5 is not allowed; it must be a section of keys"),
        (
            "model: mpl\n",
            "experiment.yaml:4: model: there is no 'mpl'; did you mean mlp? allowed: mlp, linear, cnn",
        ),
        (
            "model: 3\n",
            "experiment.yaml:4: model is 3; it takes a component's name; allowed: mlp, linear, cnn",
        ),
        (
            "model: {mlp: {}, linear: {}}\n",
            "experiment.yaml:4: model has 2 keys (mlp, linear); it takes one component",
        ),
        (
            "model: {import: nowhere}\n",
            "experiment.yaml:4: model.import: 'nowhere' is not allowed; it must be of the form module:f",
        ),
        (
            "model: {mlp: {hidden: [64, 0]}}\n",
            "experiment.yaml:4: model.mlp.hidden[1]: 0 is not allowed; it must be at least 1",
        ),
        (
            "model: {mlp: {hidden: ['64']}}\n",
            "experiment.yaml:4: model.mlp.hidden[0]: '64' is a text; write 64 without quotes",
        ),
        ("model: {linear: {x: 1}}\n", "experiment.yaml:4: model.linear.x is not a key; it takes no keys"),
        ("seed: -1\n", "experiment.yaml:4: seed: -1 is not allowed; it must be at least 0"),
        (
            "  split: {test: 0.9, validation: 0.2}\n",
            "data.split: test 0.9 and validation 0.2 leave no training rows",
        ),
        (
            "  types: {a: words}\n",
            "experiment.yaml:4: data.types.a: 'words' is not allowed; it must be numeric, boolean",
        ),
        (
            "cluster: {wait: 10 minutes}\n",
            "cluster.wait: '10 minutes' is not allowed; a duration is a number of seconds",
        ),
        ("cluster: {placement: grup}\n", "did you mean group?"),
        (
            "cluster:\n  storage:\n    secret_key: x\n",
            "experiment.yaml:6: cluster.storage.secret_key is not a key",
        ),
        (
            "training: {zero_stage: 2}\n",
            "training.zero_stage is not a key; did you mean training.strategy.deepspeed.zero_stage?",
        ),
        (
            "training: {offload_optimizer: true}\n",
            "did you mean training.strategy.deepspeed.offload_optimizer?",
        ),
        (
            "training: {strategy: {zero_stage: 2}}\n",
            "training.strategy: zero_stage is a key of deepspeed; write training.strategy: {deepspeed: {zero_stage: …}}",
        ),
        (
            "training: {strategy: {deepspeed: {}, zero_stage: 2}}\n",
            "it takes one component, such as {deepspeed: {…}}",
        ),
        (
            "training: {strategy: {deepspeed: {zero_stage: 4}}}\n",
            "training.strategy.deepspeed.zero_stage: 4 is not allowed; it must be from 0 to 3",
        ),
        (
            "training: {optimizer: {adam: {betas: [0.9, 1.5]}}}\n",
            "training.optimizer.adam.betas[1]: 1.5 is not allowed; it must be at least 0 and below 1",
        ),
        (
            "training: {checkpoint: 10m}\n",
            "training.checkpoint: '10m' is not allowed; did you mean training.checkpoint.every? it must be a section of "
            "keys: every, keep",
        ),
        (
            "training: {schedule: {cosine: {warmup: 0.1}}}\n",
            "training.schedule.cosine.warmup: 0.1 is not allowed; a warm-up is no share but a whole number, of steps unless "
            "warmup_unit says otherwise: write warmup: 100 with warmup_unit: step, or warmup: 1 with warmup_unit: epoch",
        ),
        (
            "training: {early_stopping: false}\n",
            "training.early_stopping: false is not allowed; it must be a section of keys: patience, warmup, min_delta, "
            "restore_best, or null for none",
        ),
        ("training: {optimizer: {adam: {lr: 0.1}}}\n", "adam.lr is not a key; did you mean learning_rate?"),
        (
            "training: {loss: {focal: {alpha: 0.25}}}\n",
            "focal.alpha is not a key; did you mean class_weights?",
        ),
        (
            "training: {schedule: {reduce_on_plateau: {warmup: 0.5}}}\n",
            "of epochs unless warmup_unit says otherwise",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_what_is_allowed(tmp_path, text, line):
    (message,) = refused(tmp_path, DATA + text)
    assert line in message


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"^data is missing; it needs data.path and data.target"):
        from_dict({})
    with pytest.raises(ConfigError, match=r"^data.target is missing \(column to predict"):
        from_dict({"data": {"path": "a"}})


def test_all_that_is_wrong_is_listed_in_the_order_of_the_file(tmp_path):
    lines = refused(
        tmp_path, "trainin: {}\n" + DATA + "model: mpl\ntraining:\n  epoch: 3\n  batch_size: 0\nseed: x\n"
    )
    assert [line.split(":")[1] for line in lines] == ["1", "5", "7", "8", "9"]


RESERVED_CASES = [
    (path, value) for path, values in RESERVED.items() for value in (values if values is not None else ["{}"])
]


@pytest.mark.parametrize(("path", "value"), RESERVED_CASES)
def test_what_later_versions_will_have_is_refused_by_name(tmp_path, path, value):
    tree = value if value != "import" else "{import: a:b}"
    for key in reversed(path.split(".")):
        tree = f"{{{key}: {tree}}}"
    section = tree[1:-1]
    if section.startswith("data:"):
        section = section.replace("data: {", "data: {path: a, target: y, ")
        (message,) = refused(tmp_path, section)
    else:
        (message,) = refused(tmp_path, DATA + section)
    assert "is not supported yet in this version" in message
    assert path in message
    assert value == "{}" or value in message


def test_overrides_reach_through_the_chosen_component(tmp_path):
    path = write(tmp_path, DATA + "training: {optimizer: sgd}\n")
    found = load_experiment(path, ["training.optimizer.learning_rate=3e-4", "model.hidden=[8, 4]"])
    assert found.training.optimizer == SGDConfig(learning_rate=3e-4)
    assert found.model.hidden == (8, 4)
    named = load_experiment(path, ["training.optimizer.adam.eps=1e-3", "training.optimizer.learning_rate=1"])
    assert named.training.optimizer == AdamConfig(eps=1e-3, learning_rate=1)
    whole = load_experiment(path, ["training.optimizer={adam: {eps: 0.5}}"])
    assert whole.training.optimizer == AdamConfig(eps=0.5)


def test_overrides_follow_the_rules_of_the_file(tmp_path):
    path = write(tmp_path, DATA + "training: {early_stopping: null}\n")
    found = load_experiment(
        path,
        [
            "data.path=[b, c]",
            "training.early_stopping.patience=2",
            "training.clip_norm=",
            "data.positive=no",
            "data.types.zip=categorical",
            "model.import=m:f",
            "model.rate=1e-3",
            "model.norm=no",
        ],
    )
    assert found.data.path == ("b", "c")
    assert found.data.positive == "no"
    assert found.training.early_stopping.patience == 2
    assert found.training.clip_norm is None
    assert found.data.types == {"zip": "categorical"}
    assert isinstance(found.model, Imported)
    assert found.model.kwargs == {"rate": 1e-3, "norm": "no"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "--set training.epochs: write a key, an equals sign and a value"),
        (
            "training.epoch=3",
            "--set training.epoch=3: training.epoch is not a key; did you mean epochs? allowed:",
        ),
        (
            "training.epochs=0",
            "--set training.epochs=0: training.epochs: 0 is not allowed; it must be at least 1",
        ),
        ("training.epochs.x=1", "training.epochs is a value, it has no key 'x'"),
        ("training.epochs=[1", "--set training.epochs=[1: not valid YAML"),
        (
            "training.optimizer.momentum=0.5",
            "training.optimizer.adamw.momentum is not a key; it belongs to training.optimizer.sgd or "
            "training.optimizer.rmsprop; allowed: learning_rate",
        ),
        ("training.schedule=one_cyle", "training.schedule: there is no 'one_cyle'; did you mean one_cycle?"),
        ("training.optimizer=muon", "training.optimizer: muon is not supported yet in this version"),
        (
            "training.loss={cross_entropy: {class_weights: balance}}",
            "class_weights: 'balance' is not allowed; did you mean balanced? it must be balanced or costs, or a section of names",
        ),
        (
            "strategy.zero_stage=2",
            "strategy is not a key; did you mean training.strategy.deepspeed.zero_stage? allowed: data, model",
        ),
        (
            "training.checkpoint=10m",
            "training.checkpoint: '10m' is not allowed; did you mean training.checkpoint.every?",
        ),
    ],
)
def test_a_wrong_override_is_named(tmp_path, override, message):
    (line,) = refused(tmp_path, DATA, override)
    assert message in line
    assert line.startswith(f"--set {override}")


def test_the_cluster_file_takes_the_sections_place(tmp_path):
    path = write(tmp_path, DATA + "cluster: {num_workers: 8, wait: 1h}\n")
    flat = write(tmp_path, "num_workers: 2\n", "cluster.yaml")
    nested = write(tmp_path, "cluster:\n  num_workers: 3\n", "nested.yaml")
    assert load_experiment(path, cluster_file=flat).cluster.num_workers == 2
    assert load_experiment(path, cluster_file=flat).cluster.wait.total_seconds() == 300
    assert load_experiment(path, ["cluster.num_workers=4"], flat).cluster.num_workers == 4
    assert load_cluster(nested).num_workers == 3
    bad = write(tmp_path, "num_workers: 2\nnum_worker: 3\n", "bad.yaml")
    with pytest.raises(
        ConfigError, match=r"bad\.yaml:2: cluster\.num_worker is not a key; did you mean num_workers"
    ):
        load_experiment(path, cluster_file=bad)


FULL = (
    DATA
    + """\
  positive: "no"
  split: {time: {test_from: 2026-10-01, gap: 60d}, groups: drop}
  types: {zip: categorical}
model: {import: m:f, hidden: [1, 2], rate: 1e-3, name: "1e3"}
training: {epochs: 3, optimizer: {sgd: {learning_rate: 1e-2}}, early_stopping: null}
evaluation: {scoring: f1}
cluster: {wait: 90, num_workers: 2}
seed: 7
"""
)


def test_the_resolved_experiment_reads_back_equal(tmp_path):
    found = load_experiment(write(tmp_path, FULL))
    again = load_experiment(write(tmp_path, dump_yaml(found), "again.yaml"))
    assert again == found
    assert json.loads(json.dumps(parse(dump_yaml(found), "")[0])) == parse(dump_yaml(found), "")[0]
    assert from_dict(found.model_dump(mode="json")) == found


def test_a_runs_name_depends_on_everything_but_the_cluster(tmp_path):
    found = load_experiment(write(tmp_path, FULL))
    elsewhere = load_experiment(
        tmp_path / "experiment.yaml", ["cluster.num_workers=1", "cluster.storage_path=s3://b/r"]
    )
    other = load_experiment(tmp_path / "experiment.yaml", ["seed=8"])
    assert identity(to_dict(found)) == identity(to_dict(elsewhere))
    assert run_name("e", "train", found) == run_name("e", "train", elsewhere)
    assert run_name("e", "train", found) != run_name("e", "train", other)
    assert run_name("e", "train", found).startswith("e-train-")
    assert len(run_name("e", "train", found)) == len("e-train-") + 8


def test_credentials_are_not_written_and_not_part_of_the_identity(tmp_path):
    text = DATA.replace("a.parquet", "s3://KEY:{}@bucket/a.parquet")
    first = load_experiment(write(tmp_path, text.format("one-secret")))
    second = load_experiment(write(tmp_path, text.format("other-secret")))
    assert "secret" not in dump_yaml(first)
    assert identity(to_dict(first)) == identity(to_dict(second))
    assert first.data.path == ("s3://KEY:one-secret@bucket/a.parquet",)


def test_json_schema_describes_the_file():
    schema = json_schema()
    definitions = schema["$defs"]
    assert definitions["DataConfig"]["required"] == ["path", "target"]
    assert {"type": "string"} in definitions["DataConfig"]["properties"]["path"]["anyOf"]
    assert definitions["ClusterConfig"]["properties"]["wait"]["default"] == "5m"
    assert schema["properties"]["model"]["oneOf"][0] == {
        "enum": ["mlp", "linear", "cnn", "embedding_bag", "pretrained"]
    }
    assert schema["properties"]["model"]["default"]["mlp"]["hidden"] == [128, 128]
    assert schema["additionalProperties"] is False
    assert "relative to the directory" in schema["description"]
    validator = jsonschema.Draft202012Validator(schema)
    assert list(validator.iter_errors(parse(FULL, "")[0])) == []
    assert list(validator.iter_errors({"data": {"path": "a", "target": "y"}, "model": "mpl"}))
    assert list(validator.iter_errors({"data": {"path": "a", "target": "y"}, "training": {"epoch": 1}}))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"cluster": {"collective_timeout": "0s"}}, "at least 1s"),
        ({"cluster": {"wait": -1}}, "from 0 on"),
        ({"training": {"checkpoint": {"every": float("inf")}}}, "at most 36500d"),
        ({"training": {"checkpoint": {"every": 1e30}}}, "at most 36500d"),
        ({"data": {"path": "x", "target": []}}, "a list of at least 1"),
        ({"data": {"path": [], "target": "y"}}, "a list of at least 1"),
        (
            {"data": {"path": "x", "target": "y"}, "training": {"parameter_groups": [{"match": ""}]}},
            "a text of at least 1 character",
        ),
        (
            {"data": {"path": "x", "target": "y"}, "training": {"early_stopping": {"metric": "f1"}}},
            "did you mean evaluation.scoring?",
        ),
        (
            {"data": {"path": "x", "target": "y"}, "training": {"gradient_clipping": 1}},
            "did you mean clip_norm?",
        ),
        ({"data": {"path": "x", "target": ["y", "z", "y"]}}, "names 'y' more than once"),
    ],
)
def test_durations_and_lists_that_mean_nothing_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict({"data": {"path": "x", "target": "y"}} | section)


def test_how_often_a_run_saves_itself_is_not_part_of_its_name() -> None:
    data = {"path": "x", "target": "y"}
    plain = from_dict({"data": data})
    often = from_dict({"data": data, "training": {"checkpoint": {"every": 5}}})
    longer = from_dict({"data": data, "training": {"epochs": 7}})
    assert run_name("a", "train", plain) == run_name("a", "train", often)
    assert run_name("a", "train", plain) != run_name("a", "train", longer)


@pytest.mark.parametrize("gap", [-10, "-1d"])
def test_a_negative_gap_is_refused(gap: object) -> None:
    split = {"time": {"test": 0.2, "gap": gap}}
    with pytest.raises(ConfigError, match=r"data\.split\.time\.gap: .*-1.* is not allowed; .*from 0 on"):
        from_dict({"data": {"path": "a.parquet", "target": "y", "time": "t", "split": split}})


def test_a_list_of_the_right_length_is_not_said_to_be_too_short() -> None:
    wrong = {
        "data": {"path": "x", "target": "y"},
        "training": {"schedule": {"multi_step": {"milestones": [0]}}},
    }
    with pytest.raises(ConfigError) as caught:
        from_dict(wrong)
    assert (
        str(caught.value)
        == "training.schedule.multi_step.milestones[0]: 0 is not allowed; it must be at least 1"
    )

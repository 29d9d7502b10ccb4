"""What a trained model does to its scores, and which class it decides; kept in its files."""

import json

import numpy as np
import pytest
from scipy.special import expit, logit, softmax
from support.prepared import make_part, make_schema

from shoal.cluster.storage import Storage
from shoal.training.artifact import TrainedModel
from shoal.training.config import LinearConfig
from shoal.training.decision import Calibration, Decision, Steps, tempered
from shoal.training.description import DESCRIPTION, read_model, write_decision
from shoal.training.models import build_model


def make(task):
    schema = make_schema(task, cardinalities=())
    numbers = make_part(schema, 40, 5).numeric.astype(float)
    return TrainedModel(build_model(LinearConfig(), schema, 0).eval(), schema, LinearConfig()), numbers


def test_a_temperature_divides_logits():
    z = np.linspace(-700, 30, 50)
    assert tempered(expit(z), 2.5) == pytest.approx(expit(z / 2.5), rel=1e-6)
    many = np.random.default_rng(0).normal(size=(20, 4)) * 5
    assert tempered(softmax(many, axis=1), 0.5) == pytest.approx(softmax(many / 0.5, axis=1), rel=1e-9)
    with np.errstate(all="raise"):
        assert tempered(np.array([0.0, 1.0]), 3.0) == pytest.approx([0, 1], abs=1e-5)
    assert np.isnan(tempered(np.array([np.nan]), 3.0)).all()


@pytest.mark.filterwarnings("error")
def test_steps_of_nothing_share_evenly():
    zero = Steps(x=(0.0, 1.0), y=(0.0, 0.0))
    assert (Calibration(isotonic=(zero, zero))(np.array([[0.2, 0.8]])) == 0.5).all()


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_it_is_kept_and_used_wherever_the_model_answers(task, tmp_path):
    model, numbers = make(task)
    run = Storage.open(str(tmp_path))
    model.save(run)
    raw, k = model.predict_proba(numbers), len(model.classes)
    calibration = Calibration(class_weights=tuple(float(i + 1) for i in range(k)), temperature=1.7)
    costs = (np.arange(1, 1 + k * k).reshape(k, k) * (1 - np.eye(k))) ** 2
    several = task == "multiclass"
    decision = Decision(costs=tuple(map(tuple, costs.tolist()))) if several else Decision(threshold=0.37)
    write_decision(run, calibration, decision)
    loaded = TrainedModel.load(tmp_path)
    logits = np.log(raw) - np.log(np.arange(1, k + 1))
    expected = softmax(logits / 1.7, axis=1)
    assert loaded.predict_proba(numbers) == pytest.approx(expected, rel=1e-6)
    chosen = (expected @ costs).argmin(axis=1) if several else (expected[:, 1] >= 0.37).astype(int)
    assert loaded.predict(numbers).tolist() == np.asarray(model.classes)[chosen].tolist()
    assert (chosen != raw.argmax(axis=1)).any()
    loaded.save(Storage.open(str(tmp_path / "again")))
    assert read_model(Storage.open(str(tmp_path / "again")))[0] == read_model(run)[0]


def test_models_from_before_calibration_answer_as_they_did(tmp_path):
    model, numbers = make("binary")
    model.with_threshold(0.8).save(Storage.open(str(tmp_path)))
    path = tmp_path / DESCRIPTION
    old = json.loads(path.read_text())
    del old["calibration"], old["costs"]
    path.write_text(json.dumps(old))
    loaded = TrainedModel.load(tmp_path)
    assert (loaded.predict_proba(numbers) == model.predict_proba(numbers)).all()
    assert loaded.decision == Decision(threshold=0.8)
    near = logit(0.8) - logit(model.scores(numbers))
    assert (loaded.predict(numbers) == np.where(near <= 0, "yes", "no")).all()

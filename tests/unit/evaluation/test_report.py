"""The report: whole for every task, self-contained, escaped, and honest where something is missing."""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shoal.cluster.errors import DataError
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.manifest import Column, Manifest, Schema, Split, Target
from shoal.evaluation.config import EvaluationConfig
from shoal.evaluation.deciding.plan import Known, plan
from shoal.evaluation.evaluate import evaluate, labels_and_scores, part_of
from shoal.evaluation.metrics import resolve_scoring
from shoal.evaluation.report import collect, render, write_report
from shoal.evaluation.report.markup import interval, number
from shoal.evaluation.report.plots import _VARIABLES

CONFIG = """\
data: {{path: a.parquet, target: y{more}}}
training: {{epochs: 3}}
evaluation: {{confidence: 0.9}}
cluster: {{}}
seed: 0
"""
EVIL = '<script>alert("x")</script>'
VOID = {"meta", "br", "wbr", "path", "use", "rect"}
TARGETS = {
    "binary": Target(columns=("y",), task="binary", classes=("no", EVIL), reason="two values"),
    "multiclass": Target(columns=("y",), task="multiclass", classes=("a & b", EVIL, "$x$")),
    "multilabel": Target(columns=("p", "q"), task="multilabel", classes=("p", EVIL)),
    "regression": Target(columns=("price <$>",), task="regression", center=5.0, scale=2.0),
}


class Checker(HTMLParser):
    """Counts tags that are not closed, and collects what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            if key in ("href", "src", "action"):
                self.references.append(value or "")
            assert not key.startswith("on"), key

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _predictions(task: str, n: int, split: str, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    target = TARGETS[task]
    names = [str(c) for c in target.classes]
    columns: dict[str, Any] = {"row_id": np.arange(n), "split": [split] * n}
    if task == "regression":
        y = rng.normal(5, 2, n)
        return pa.table({**columns, "label": y, "prediction": y + rng.normal(size=n)})
    k = len(names)
    if task == "multilabel":
        y = (rng.random((n, k)) < 0.4).astype(int)
        score = 1 / (1 + np.exp(-rng.normal(size=(n, k)) - y))
        columns |= {f"label_{name}": y[:, j] for j, name in enumerate(names)}
    else:
        y = np.arange(n) % k
        score = np.exp(rng.normal(size=(n, k)) + np.eye(k)[y])
        score /= score.sum(axis=1, keepdims=True)
        columns["label"] = [names[c] for c in y]
    return pa.table({**columns, **{f"score_{name}": score[:, j] for j, name in enumerate(names)}})


def _manifest(task: str, rows: dict[str, int], **more: Any) -> Manifest:
    target = more.pop("target", TARGETS[task])
    shares = [0.5] * len(target.classes)
    splits: dict[Any, Split] = {
        name: Split(rows=n, class_counts=tuple(int(n * s) for s in shares), shards=())
        for name, n in rows.items()
    }
    column = Column(name="amount", type="numeric", arrow_type="double", parts=("amount",), reason="a number")
    schema = Schema(columns=(column,), target=target, private=more.pop("private", ()))
    return Manifest(
        key="0123abcd", seed=0, schema=schema, splits=splits, n_shards=1, rows_read=500, left_out={"no label": 7},
        dropped={"code": "constant"}, split_kind="stratified by class", notices=("the event is rarer",), **more,
    )  # fmt: skip


def _history(metric: str, rates: tuple[float, ...] = (0.1, 0.1, 0.1)) -> pa.Table:
    rows: dict[str, list[Any]] = {k: [] for k in ("step", "epoch", "split", "metric", "value", "seconds")}
    for epoch in (1, 2, 3):
        for split, name, value in (
            ("train", "loss", 1 / epoch),
            ("train", "learning_rate", rates[epoch - 1]),
            ("validation", metric, [0.5, 0.9, 0.7][epoch - 1]),
        ):
            for key, item in zip(rows, (epoch * 10, epoch, split, name, value, float(epoch)), strict=True):
                rows[key].append(item)
    return pa.table(rows)


def _run(path: Path, task: str, history: bool = True, provenance: bool = True) -> RunFolder:
    run = RunFolder.open(str(path / "my run"))
    parts = [_predictions(task, 120, "test", 0), _predictions(task, 60, "validation", 1)]
    run.write_table("predictions.parquet", pa.concat_tables(parts))
    run.write_text("config.yaml", CONFIG.format(more=""))
    if history:
        first = resolve_scoring("auto", task)[0].name
        run.write_table("history.parquet", _history(first))
    if provenance:
        versions = {"torch": "2.13.0"}
        run.write_json(
            "provenance.json", {"seed": 7, "git": {"commit": "c0ffee"}, "versions": versions, "none": None}
        )
    return run


def _scores(run: RunFolder, task: str) -> dict[str, Any]:
    table = run.read_table("predictions.parquet")
    return evaluate(table, TARGETS[task], resolve_scoring("auto", task), confidence=0.9, replicates=100)


def _checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    # Nothing is fetched: references stay inside the page, and every one has its target.
    assert all(r.startswith("#") and r[1:] in checker.ids for r in checker.references)
    assert "http" not in page
    assert "@import" not in page
    assert all(name in checker.ids for name in re.findall(r"url\(#([^)]*)\)", page))
    assert checker.tags["script"] == 0
    assert checker.tags["link"] == 0
    assert not any(sentinel in page for sentinel in _VARIABLES)
    defined = set(re.findall(r"--([\w-]+):", page))
    assert set(re.findall(r"var\(--([\w-]+)\)", page)) <= defined
    assert len(page) < 300_000
    return checker


def test_a_multiclass_task_of_two_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(columns=("y",), task="multiclass", classes=("a", "b"))
    monkeypatch.setitem(TARGETS, "multiclass", target)
    run = _run(tmp_path, "multiclass")
    page = render(
        collect(run, _manifest("multiclass", {"train": 400, "test": 120}), _scores(run, "multiclass"))
    )
    _checked(page)
    assert "Each class against the rest, test rows" in page


@pytest.mark.parametrize("task", list(TARGETS))
def test_a_whole_report(task: str, tmp_path: Path) -> None:
    run = _run(tmp_path, task)
    metrics = _scores(run, task)
    manifest = _manifest(task, {"train": 400, "validation": 60, "test": 120})
    write_report(run, manifest, metrics)
    page = run.read_bytes("report.html").decode()
    checker = _checked(page)
    words = " ".join(" ".join(checker.words).split())
    for metric in resolve_scoring("auto", task):
        for part in ("test", "validation"):
            entry = metrics[part][metric.name]
            assert number(entry["value"], metric.limits) in words
            assert interval(entry, metric.limits) in words
        assert metric.meaning in words
    assert words.count("90 % interval") >= 2
    for said in (
        "7 rows : no label",
        "constant",
        "0123abcd",
        "c0ffee",
        "2.13.0",
        "stratified by class",
        "epochs: 3",
    ):
        assert said.replace(" :", ":") in words, said
    best = 2 if resolve_scoring("auto", task)[0].greater_is_better else 1
    assert f"after epoch {best} of 3" in words
    assert "120 test rows, which took no part in training or in any choice" in words
    if task != "regression":
        assert EVIL in words
        assert EVIL not in page
    assert checker.tags["svg"] == {"binary": 5}.get(task, 4)
    assert page.count('role="img" aria-label="') == checker.tags["svg"]
    assert "prefers-color-scheme: dark" in page
    facts = collect(run, manifest, metrics)
    assert render(facts) == page


def test_the_binary_confusion_matrix_and_base_rate(tmp_path: Path) -> None:
    run = _run(tmp_path, "binary")
    table = run.read_table("predictions.parquet").slice(0, 120)
    page = render(collect(run, _manifest("binary", {"train": 400, "test": 120}), _scores(run, "binary")))
    event = np.array(table["label"].to_pylist()) == EVIL
    called = np.array(table[f"score_{EVIL}"]) >= 0.5
    for n in (
        (event & called).sum(),
        (event & ~called).sum(),
        (~event & called).sum(),
        (~event & ~called).sum(),
    ):
        assert f">{n}<small>{100 * n / 60:.1f} %</small></td>" in page
    assert "The base rate is 50.0 %: 60 of 120 rows" in page


def test_one_class_only_and_nothing_else_written_yet(tmp_path: Path) -> None:
    run = _run(tmp_path, "binary", history=False, provenance=False)
    table = run.read_table("predictions.parquet")
    at = table.column_names.index("label")
    run.write_table("predictions.parquet", table.set_column(at, "label", pa.array(["no"] * table.num_rows)))
    page = render(collect(run, _manifest("binary", {"train": 400, "test": 120}), _scores(run, "binary")))
    _checked(page)
    assert "Average precision is undefined: the rows hold one class only." in page
    assert "there are no curves to draw" in page
    assert "No provenance was recorded yet" in page
    assert 'id="learning"' not in page
    assert "Only 0 test rows of" in page


def test_validation_stands_in_for_a_missing_test_part_and_says_so(tmp_path: Path) -> None:
    run = _run(tmp_path, "binary")
    run.write_table("predictions.parquet", run.read_table("predictions.parquet").slice(120))
    page = render(collect(run, _manifest("binary", {"train": 400, "validation": 60}), _scores(run, "binary")))
    assert "There are no test rows" in page
    assert "this flatters the model" in page


def test_private_names_are_said_and_private_classes_are_not(tmp_path: Path) -> None:
    run = _run(tmp_path, "binary")
    manifest = _manifest("binary", {"train": 400, "test": 120}, private=("customer", "y"))
    page = render(collect(run, manifest, _scores(run, "binary")))
    assert "column <code>customer</code> is private" in page
    assert "alert(" not in page
    assert "class 2" in page


def test_groups_are_warned_of_and_provenance_can_be_passed(tmp_path: Path) -> None:
    run = _run(tmp_path, "regression", provenance=False)
    run.write_text("config.yaml", CONFIG.format(more=", group: shop"))
    manifest = _manifest("regression", {"train": 400, "validation": 60, "test": 120})
    page = render(collect(run, manifest, _scores(run, "regression"), {"seed": 12345}))
    assert "Rows share groups (shop)" in page
    assert "<dd>12345</dd>" in page


def test_many_classes_get_a_list_of_mistakes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = tuple(f"kind {k}" for k in range(25))
    target = Target(columns=("y",), task="multiclass", classes=names)
    y = np.arange(200) % 25
    score = rng.dirichlet(np.ones(25), 200)
    run = RunFolder.open(str(tmp_path))
    columns = {"row_id": np.arange(200), "split": ["test"] * 200, "label": [names[k] for k in y]}
    columns |= {f"score_{name}": score[:, k] for k, name in enumerate(names)}
    run.write_table("predictions.parquet", pa.table(columns))
    manifest = _manifest("multiclass", {"train": 400, "test": 200}, target=target)
    metrics = evaluate(
        run.read_table("predictions.parquet"), target, resolve_scoring("auto", "multiclass"), replicates=100
    )
    page = render(collect(run, manifest, metrics))
    _checked(page)
    assert "The commonest mistakes among 25 classes" in page
    assert "22 others" in page


def test_predictions_of_another_target_are_refused(tmp_path: Path) -> None:
    run = _run(tmp_path, "regression")
    with pytest.raises(DataError, match="no column 'score_no'"):
        write_report(run, _manifest("binary", {"train": 400, "test": 120}), {})
    assert not run.exists("report.html")


@pytest.mark.parametrize(
    ("value", "limits", "expected"),
    [
        (0.12345, (0, 1), "0.123"),
        (0.99962, (0, 1), "0.9996"),
        (1.0, (0, 1), "1.000"),
        (1234567.8, (0, np.inf), "1,234,568"),
        (12.3456, (0, np.inf), "12.35"),
        (0.0123456, (0, np.inf), "0.01235"),
        (0.0000123456, (0, np.inf), "1.235e-05"),
        (0.0, (0, np.inf), "0.000"),
        (None, (0, 1), "–"),
        (float("nan"), (0, np.inf), "–"),
    ],
)
def test_numbers_read_well(value: float | None, limits: tuple[float, float], expected: str) -> None:
    assert number(value, limits) == expected


@pytest.mark.parametrize(("rates", "drawn"), [((0.1, 0.1, 0.1), False), ((0.1, 0.01, 0.0001), True)])
def test_a_learning_rate_that_changed_is_drawn(tmp_path: Path, rates: tuple[float, ...], drawn: bool) -> None:
    run = _run(tmp_path, "binary")
    run.write_table("history.parquet", _history(resolve_scoring("auto", "binary")[0].name, rates))
    manifest = _manifest("binary", {"train": 400, "validation": 60, "test": 120})
    write_report(run, manifest, _scores(run, "binary"))
    page = run.read_bytes("report.html").decode()
    assert ("Learning rate over 3 epochs, from 0.1 to 0.0001, at most 0.1." in page) == drawn


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("task", TARGETS)
def test_scores_that_are_no_numbers_make_no_curves_and_no_noise(tmp_path: Path, task: str) -> None:
    run = _run(tmp_path, task)
    table = run.read_table("predictions.parquet")
    for i, name in enumerate(table.column_names):
        if name.startswith(("score_", "prediction")):
            table = table.set_column(i, name, pa.array(np.full(len(table), np.nan)))
    run.write_table("predictions.parquet", table)
    write_report(run, _manifest(task, {"train": 300, "validation": 60, "test": 120}), _scores(run, task))
    page = run.read_bytes("report.html").decode()
    assert ("Scores of the test rows are NaN or infinite" in page) == (task != "regression")


def _affine(folder: Path, factor: float, shift: float, private: bool) -> str:
    """Render the report of numbers times a factor plus a shift, both powers of two: exact in floating point."""
    run = _run(folder, "regression", provenance=False)
    table = run.read_table("predictions.parquet")
    for name in ("label", "prediction"):
        values = np.round(table[name].to_numpy() * 256) / 256 * factor + shift
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    run.write_table("predictions.parquet", table)
    history = run.read_table("history.parquet")
    steered = np.array([name == "rmse" for name in history["metric"].to_pylist()])
    values = np.where(steered, history["value"].to_numpy() * factor, history["value"].to_numpy())
    run.write_table("history.parquet", history.set_column(4, "value", pa.array(values)))
    target = TARGETS["regression"]
    target = target.model_copy(update={"center": 5.0 * factor + shift, "scale": 2.0 * factor})
    rows = {"train": 400, "validation": 60, "test": 120}
    manifest = _manifest(
        "regression", rows, target=target, private=target.columns if private else ("customer",)
    )
    found = evaluate(table, target, resolve_scoring("auto", "regression"), confidence=0.9, replicates=100)
    return render(collect(run, manifest, found, {"fit": {"best": 0.9 * factor}}))


def test_a_private_number_leaves_no_trace_of_its_units(tmp_path: Path) -> None:
    """What a report shows of it does not depend on where it begins and how it is measured."""
    kept = _affine(tmp_path / "a", 1.0, 0.0, private=True)
    assert kept == _affine(tmp_path / "b", 1024.0, 2.0**20, private=True)
    assert "in standard deviations of the target from its mean" in kept
    assert "the target&#x27;s units" not in kept
    shown = _affine(tmp_path / "a", 1.0, 0.0, private=False)
    assert shown != _affine(tmp_path / "b", 1024.0, 2.0**20, private=False)
    assert "standard deviations of" not in shown
    assert "the target&#x27;s units" in shown


def test_one_row_is_no_plural(tmp_path: Path) -> None:
    run = _run(tmp_path, "binary")
    table = run.read_table("predictions.parquet")
    events = [i for i in range(120) if table["label"][i].as_py() == EVIL]
    run.write_table("predictions.parquet", table.take(events[:1]))
    manifest = _manifest("binary", {"train": 1, "test": 1}).model_copy(
        update={"rows_read": 1, "left_out": {"no label": 1}, "sources": ("a.parquet",)}
    )
    page = render(collect(run, manifest, _scores(run, "binary")))
    said = " ".join(_checked(page).words)
    assert "On 1 test row, which" in said
    assert "1 row read from 1 file, " in said
    assert "1 row: no label" in said
    assert re.search(r"\b1 (rows|files|numbers|codes)\b", said) is None


def _with_costs(run: RunFolder, manifest: Manifest, task: str, **config: Any) -> str:
    table, target = run.read_table("predictions.parquet"), manifest.schema_.target
    rows = [20] * len(target.classes)
    settled = plan(EvaluationConfig(**config), manifest.schema_, Known(rows, rows))
    judging = settled.fit(*labels_and_scores(part_of(table, "validation"), target))
    metrics = evaluate(
        table, target, resolve_scoring("auto", task, costs=True), replicates=100,
        rule=judging.rule, withheld=judging.withheld,
    )  # fmt: skip
    return render(collect(run, manifest, metrics, judging=judging))


def test_costs_have_a_section_with_two_figures(tmp_path: Path) -> None:
    run = _run(tmp_path, "binary")
    manifest = _manifest("binary", {"train": 400, "validation": 60, "test": 120})
    costs = {"false_positive": 1, "false_negative": 9, "unit": "<EUR>"}
    page = _with_costs(run, manifest, "binary", costs=costs, threshold="empirical", calibration="none")
    checker = _checked(page)
    assert checker.tags["svg"] == 7
    words = " ".join(" ".join(checker.words).split())
    rows = part_of(run.read_table("predictions.parquet"), "test")
    y, scores = labels_and_scores(rows, manifest.schema_.target)
    threshold = re.search(r"at least ([\d.]+): the threshold of lowest cost on the validation rows", words)
    assert threshold
    decided = scores >= float(threshold[1])
    missed, false = int((y & ~decided).sum()), int(((y == 0) & decided).sum())
    assert f"What the model decides costs {number((9 * missed + false) / 120)} <EUR> a row" in words
    assert "would cost 0.5000 <EUR>" in words  # always deciding the event: 60 false alarms in 120 rows
    assert f"decided {EVIL} {false} 1 {false} " in words
    assert "the threshold was chosen on these rows" in words
    assert "Cost curve: at a probability cost of 0.900" in page


def test_costs_of_validation_rows_alone_and_of_private_classes_are_kept_back(tmp_path: Path) -> None:
    run = _run(tmp_path, "multiclass")
    run.write_table("predictions.parquet", run.read_table("predictions.parquet").slice(120))
    manifest = _manifest("multiclass", {"train": 400, "validation": 60}, private=("y",))
    costs = {"actual": {"a & b": {EVIL: 5}}, "otherwise": 1}
    page = _with_costs(run, manifest, "multiclass", costs=costs)
    _checked(page)
    assert "What the model costs is left out: probabilities were calibrated on these rows." in page
    assert "Log loss is left out: probabilities were calibrated" in page
    assert "Where the cost comes from" not in page
    assert "The class of lowest expected cost is predicted." in page
    assert "alert(" not in page
    assert "a &amp; b" not in page

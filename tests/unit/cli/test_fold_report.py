"""The report of folds: its numbers are those of metrics.json, it fetches nothing, and it keeps what is private."""

import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tabular import rows

from shoal.cluster.run_folder import RunFolder
from shoal.evaluation.crossval.comparing import summed_up
from shoal.evaluation.report.fold_facts import collect_folds
from shoal.evaluation.report.fold_page import render_folds
from shoal.verbs.crossval import crossval as run_crossval

AXIS = 'slow: {training.optimizer.learning_rate: 1e-5}\n"<b>mlp": {model: {mlp: {hidden: [8]}}}\n'
NESTED = "evaluation.cv={nested: {outer: 3, inner: 2}}"


class Page(HTMLParser):
    """Tables as rows of cells by their caption, references, ids, tags and all words."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.references, self.ids, self.tags, self.words = {}, [], set(), set(), []
        self.rows, self.cell = None, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        found = dict(attrs)
        self.references += [found[key] for key in ("href", "src", "action") if key in found]
        self.ids |= {found["id"]} if "id" in found else set()
        if tag == "table":
            self.rows = self.tables[found["aria-label"]] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = self.rows[-1]
        elif tag == "small" and self.cell:
            self.cell[-1] += " "

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        self.words.append(data)
        if self.cell:
            self.cell[-1] += data


def experiment(folder):
    """Write a small table, alternatives and an experiment into a folder."""
    pq.write_table(rows(), folder / "rows.parquet")
    (folder / "axis.yaml").write_text(AXIS)
    (folder / "small.yaml").write_text(
        f"""\
data: {{path: {folder}/rows.parquet, target: y, id: key}}
model: linear
training: {{epochs: 2, batch_size: 64, optimizer: {{adam: {{learning_rate: 0.05}}}}}}
evaluation: {{cv: 3, scoring: [roc_auc, log_loss]}}
cluster: {{storage_path: {folder}/runs}}
"""
    )
    return folder


@pytest.fixture
def small(tmp_path):
    return experiment(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A plain cross-validation that tests copy."""
    folder = experiment(tmp_path_factory.mktemp("plain"))
    run_crossval(folder / "small.yaml", str(folder / "run"))
    return folder


@pytest.fixture
def plain(finished, tmp_path):
    return shutil.copytree(finished / "run", tmp_path / "run")


@pytest.fixture
def crossval(shoal, small):
    """Cross-validates, and returns what it said and the folder."""

    def run(*arguments):
        done = shoal("crossval", small / "small.yaml", "--out", small / "run", *arguments)
        assert done.code == 0, done.err
        return done, small / "run"

    return run


def read(run):
    text = (run / "report.html").read_text()
    page = Page(text)
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert all(reference[0] == "#" and reference[1:] in page.ids for reference in page.references)
    assert "http" not in text
    return page, " ".join(page.words), json.loads((run / "metrics.json").read_text())


def close(shown, value):
    """Whether a number that was written with some decimals is the value."""
    decimals = len(shown.partition(".")[2])
    return math.isclose(float(shown), value, abs_tol=0.500001 * 10**-decimals)


def agrees(table, entries):
    """Hold a table of metrics against entries of metrics.json, and return how many rows it has."""
    known = [entry for name, entry in entries.items() if name != "seconds"]
    for row, entry in zip(table[1:], known, strict=True):
        _, mean, interval, worst, best = row
        low, high = interval.split(" to ")
        assert close(mean, entry["value"])
        assert close(low, entry["low"])
        assert close(high.split()[0], entry["high"])
        ends = sorted(float(end.split(" fold ")[0]) for end in (worst, best))
        for shown, value in zip(ends, (min(entry["by_fold"]), max(entry["by_fold"])), strict=True):
            assert math.isclose(shown, value, abs_tol=6e-4)
        for end in (worst, best):
            value, fold = end.split(" fold ")
            assert close(value, entry["by_fold"][int(fold) - 1])
    return len(known)


def test_a_plain_page_has_the_numbers_and_the_path_is_named(shoal, finished):
    run = finished / "run"
    done = shoal("crossval", finished / "small.yaml", "--out", run)
    assert done.code == 0, done.err
    assert re.search(r"report: .*run/report\.html", done.out)
    page, words, found = read(run)
    entries = found["crossval"]["as it is"]
    assert agrees(page.tables["All metrics over the folds"], entries) > 5
    assert f"{entries['roc_auc']['value']:.3f}" in words
    assert found["cv"] in words
    assert "The test rows of data.split are in no fold" in words
    judged = pq.read_table(run / "predictions.parquet").num_rows
    assert f"judged {judged} rows of 300 read" in words
    assert "best of several" not in words
    table = page.tables["Each fold's fit; validation rows are cut from its training rows"]
    assert sum(int(row[3]) for row in table[1:]) == judged
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    again = shoal("report", run, "--json")
    assert again.code == 0, again.err
    assert again.json["report"].endswith("run/report.html")
    assert (run / "report.html").read_bytes() == before


def test_alternatives_have_their_differences_and_a_warning(crossval, small):
    done, run = crossval("--compare", small / "axis.yaml", "--json")
    assert done.json["report"].endswith("run/report.html")
    page, words, found = read(run)
    assert "The best of several looks better here than it is" in words
    table = next(rows for caption, rows in page.tables.items() if caption.startswith("Means over the same"))
    assert [row[0] for row in table[1:]] == ["as it is", "slow", "<b>mlp"]
    for row in table[2:]:
        difference = found["comparison"][row[0]]["differences"]["roc_auc"]
        value, low, _, high = row[2].split()
        assert close(value, difference["value"])
        assert close(low, difference["low"])
        assert close(high, difference["high"])
        assert found["comparison"][row[0]]["sentence"] in words
    for name, entries in found["crossval"].items():
        agrees(page.tables[f"Scores of {name}"], entries)


def test_a_nested_page_is_about_the_choice(crossval, small):
    _, run = crossval("--compare", small / "axis.yaml", "--set", NESTED)
    page, words, found = read(run)
    agrees(page.tables["Scores of the choice"], found["nested"]["scores"])
    assert "best of several looks" not in words
    table = next(rows for caption, rows in page.tables.items() if "means over the inner folds" in caption)
    names = table[0][1:-1]
    for row, choice in zip(table[1:], found["nested"]["choices"], strict=True):
        marked = [name for name, shown in zip(names, row[1:-1], strict=True) if shown.endswith(" chosen")]
        assert marked == [choice["chosen"]]
        for name, shown in zip(names, row[1:-1], strict=True):
            assert close(shown.split()[0], choice["means"][name])
        assert close(row[-1], found["nested"]["scores"]["roc_auc"]["by_fold"][choice["fold"] - 1])
    # The decisions are those of the chosen models: every judged row once.
    matrix = next(rows for caption, rows in page.tables.items() if caption.startswith("Confusion"))
    scored = pq.read_table(run / "predictions.parquet").to_pandas()
    scored = scored[scored.chosen]
    wrong = int(((scored.score_yes >= 0.5) & (scored.label == "no")).sum())
    assert int(matrix[1][2].split()[0]) == wrong


def test_what_is_undefined_in_a_fold_is_said(plain):
    run = plain
    found = json.loads((run / "metrics.json").read_text())
    fits = [json.loads(path.read_text()) for path in sorted(run.glob("fits/*/metrics.json"))]
    fits[0]["scores"]["roc_auc"] = None
    (run / "fits" / "fold-001" / "metrics.json").write_text(json.dumps(fits[0]))
    found["crossval"]["as it is"] = summed_up(fits, 0.5, 0.95)
    (run / "metrics.json").write_text(json.dumps(found))
    table = pq.read_table(run / "predictions.parquet").to_pandas()
    table.loc[table.fold == 1, "label"] = "no"
    table.loc[table.fold == 2, ["score_yes", "score_no"]] = np.nan
    pq.write_table(pa.Table.from_pandas(table), run / "predictions.parquet")
    facts = collect_folds(RunFolder.open(str(run)), found, {})
    page = Page(render_folds(facts))
    words = " ".join(page.words)
    assert "ROC AUC is undefined in 1 of 3 folds" in words
    assert "1 of 3 folds have NaN or infinite scores and are left out" in words
    assert "1 of 2 folds judge rows of one class only" in words
    rows = page.tables["Each fold's fit; validation rows are cut from its training rows"]
    assert [row[4] == "–" for row in rows[1:]] == [True, False, False]
    mean = np.mean([fit["scores"]["roc_auc"] for fit in fits[1:]])
    assert close(page.tables["All metrics over the folds"][1][1], mean)
    assert render_folds(facts) == render_folds(facts)


def test_a_metric_that_no_fold_has_leaves_a_page(plain):
    run = plain
    found = json.loads((run / "metrics.json").read_text())
    entry = {"value": None, "low": None, "high": None, "by_fold": [None] * 3}
    found["crossval"]["as it is"]["roc_auc"] |= {**entry, "reason": "undefined in 3 of 3 folds"}
    words = " ".join(Page(render_folds(collect_folds(RunFolder.open(str(run)), found, {}))).words)
    assert "ROC AUC is undefined in 3 of 3 folds" in words


def test_the_classes_of_a_private_target_are_not_shown(crossval, small):
    table = rows()
    hush = pa.array([{"yes": "hushyes", "no": "hushno"}[value] for value in table["y"].to_pylist()])
    pq.write_table(table.drop_columns(["y"]).append_column("y", hush), small / "rows.parquet")
    done, run = crossval(
        "--set",
        "data.private=[y]",
        "--json",
        "--set",
        "evaluation.costs={false_positive: 1, false_negative: 9}",
    )
    assert "hushyes" in (run / "predictions.parquet").read_bytes().decode("latin1")
    assert "hush" not in (run / "report.html").read_text()
    assert "predicted class 2" in " ".join(read(run)[1].split())
    assert done.code == 0


def test_a_private_number_is_given_in_standard_deviations(crossval, small):
    table = rows()
    (small / "axis.yaml").write_text(AXIS.splitlines()[0])
    price = pa.array(5000 + 700 * table["x"].to_numpy() + np.random.default_rng(1).normal(size=300))
    pq.write_table(table.drop_columns(["y"]).append_column("y", price), small / "rows.parquet")
    arguments = [
        "--compare",
        small / "axis.yaml",
        "--set",
        NESTED.replace("3", "2"),
        "--set",
        "evaluation.scoring=[rmse, r2]",
    ]
    _, run = crossval(*arguments, "--set", "data.private=[y]")
    page, words, found = read(run)
    first = json.loads((run / "fits" / "fold-001" / "data.json").read_text())["schema"]["target"]["scale"]
    entry = found["nested"]["scores"]["rmse"]
    assert entry["value"] > 10  # in units; what the page shows is that over the deviation
    assert close(page.tables["Scores of the choice"][1][1], entry["value"] / first)
    assert "standard deviations of the target" in words
    for one in found["comparison"].values():  # sentences, too
        assert f"{one['differences']['rmse']['value']:+.4f}" not in words
        assert f"{one['differences']['rmse']['value'] / first:+.4f}" in words
    for choice in found["nested"]["choices"]:
        assert not any(f"{mean:.1f}" in words for mean in choice["means"].values())


def test_a_run_without_its_fits_is_told(shoal, plain):
    (plain / "fits").rename(plain / "elsewhere")
    done = shoal("report", plain)
    assert done.code == 2
    assert "has no fits/ any more" in done.err

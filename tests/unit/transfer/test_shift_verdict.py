"""What a shift means: each kind on data that were made with it, bounds by simulation, and the section of a report."""

from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.evaluation.report.shift import shift_section
from shoal.transfer.shift.compare import Shift, compare_domains
from shoal.transfer.shift.labels import estimate_label_shift
from shoal.transfer.shift.verdict import most_auc

EVIL = "<b>$x$"


def number(name: str) -> Column:
    return Column(
        name=name, type="numeric", arrow_type="double", parts=("value",), center=(0.0,), scale=(1.0,)
    )


SCHEMA = Schema(
    columns=(
        number("x"),
        number(EVIL),
        Column(
            name="city", type="categorical", arrow_type="string", categories=("a", "b"), value_type="string"
        ),
    ),
    target=Target(columns=("y",), task="binary", classes=("no", "yes")),
)


def domain(
    n: int, seed: int, share: float = 0.5, noise: float = 0.0, moved: float = 0.0
) -> tuple[pa.Table, np.ndarray]:
    """Rows of two classes two apart in x; `noise` moves a column that the class knows nothing of, `moved` x itself."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < share).astype(np.int64)
    columns = {
        "x": 2.0 * y + rng.standard_normal(n) + moved,
        EVIL: rng.standard_normal(n) + noise,
        "city": rng.choice(["a", "b"], n),
        "y": y,
    }
    return pa.table(columns), y


def probabilities(table: pa.Table) -> np.ndarray:
    p = 1 / (1 + np.exp(-2 * (table["x"].to_numpy() - 1)))  # Bayes at equal shares
    return np.column_stack([1 - p, p])


def compared(n: int = 1500, model: bool = True, **other) -> Shift:
    source, y = domain(n, 0)
    target, _ = domain(n, 1, **other)
    labels = estimate_label_shift(probabilities(source), y, probabilities(target)) if model else None
    return compare_domains(source, target, SCHEMA, labels, limit=400)


@pytest.fixture(scope="module")
def label_shift() -> Shift:
    return compared(share=0.9)


def test_nothing_is_seen_where_nothing_is() -> None:
    verdict = compared().verdict
    assert verdict.kind == "none"
    assert not verdict.alignment_may_hurt
    assert "no shift is seen" in verdict.sentences[0]
    assert "cannot be seen without target labels" in verdict.sentences[-1]


def test_a_column_that_classes_do_not_know_is_a_covariate_shift() -> None:
    shift = compared(noise=1.0)
    assert shift.verdict.kind == "covariate"
    assert not shift.verdict.alignment_may_hurt
    assert shift.columns[0].name == EVIL
    assert any("not told apart any more" in s or "almost all" in s for s in shift.verdict.sentences)


def test_other_class_shares_are_a_label_shift_and_alignment_may_hurt(label_shift: Shift) -> None:
    verdict = label_shift.verdict
    assert verdict.kind == "label"
    assert verdict.alignment_may_hurt
    assert any(
        "class shares, source to target" in s and "yes 48" in s and "to 91" in s for s in verdict.sentences
    )
    assert any("marginal alignment" in s for s in verdict.sentences)


def test_both_at_once_are_called_so() -> None:
    verdict = compared(share=0.9, noise=2.0).verdict
    assert verdict.kind == "label and more"
    assert verdict.alignment_may_hurt
    assert any("no classifier tell" in s for s in verdict.sentences)


def test_a_small_change_of_shares_beside_another_shift_is_not_believed() -> None:
    """Moved rows look like more of the one class: no share has changed."""
    verdict = compared(moved=0.8).verdict
    assert verdict.kind == "covariate"
    assert not verdict.alignment_may_hurt
    assert any("do not weight" in s for s in verdict.sentences)


def test_without_a_model_the_cause_is_open() -> None:
    shift = compared(model=False, noise=1.0)
    assert shift.verdict.kind == "unexplained"
    assert (shift.labels, shift.classes) == (None, ())


def test_domains_without_a_row_in_common_are_called_apart() -> None:
    verdict = compared(n=300, noise=20.0).verdict
    assert verdict.apart
    assert any("merely names the domain" in s for s in verdict.sentences)


def test_columns_of_one_domain_are_named() -> None:
    source, _ = domain(200, 0)
    target, _ = domain(200, 1)
    target = target.drop_columns(["city"]).append_column("new", pa.array(np.zeros(200)))
    target = target.set_column(1, EVIL, pa.nulls(200, pa.float64()))
    verdict = compare_domains(source, target, SCHEMA).verdict
    assert verdict.one_sided == ("city", "new", EVIL)
    said = " ".join(verdict.sentences)
    assert "that the target lacks, which a model of the source cannot do without: 'city'" in said
    assert "of the target alone, which no source row can teach: 'new'" in said
    with pytest.raises(DataError, match="none of the source's"):
        compare_domains(source, target.select(["new"]), SCHEMA)


def test_no_classifier_is_better_than_the_class_itself() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p, q = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4))
        order = q / p
        area = sum(p[i] * q[j] * ((order[j] > order[i]) + 0.5 * (i == j)) for i in range(4) for j in range(4))
        assert area <= most_auc(np.abs(p - q).sum() / 2) + 1e-12
    assert most_auc(0) == 0.5
    assert most_auc(1) == 1


def test_aligned_features_cost_what_the_classes_differ_by() -> None:
    """The claim behind the warning, for every decision rule of three classes with equal decisions in both domains."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        decided = rng.dirichlet(np.ones(3))
        source, target = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3))
        # The fewest errors of decisions with these shares: one less what they and the labels have in common.
        errors = [1 - np.minimum(decided, shares).sum() for shares in (source, target)]
        assert sum(errors) >= np.abs(source - target).sum() / 2 - 1e-12


def test_classes_of_a_private_target_have_no_names() -> None:
    source, y = domain(200, 0)
    labels = estimate_label_shift(probabilities(source), y, probabilities(source))
    private = SCHEMA.model_copy(update={"private": ("y", "x")})
    shift = compare_domains(source, source, private, labels)
    assert shift.classes == ("class 0", "class 1")
    assert "x" not in shift.drawn


class Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.open = [], []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in ("path", "use", "br", "wbr", "rect", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if tag not in ("path", "use", "br", "wbr", "rect", "meta"):
            assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text.append(data)


def section_of(shift: Shift) -> str:
    return shift_section(
        shift.verdict.sentences, shift.separations, shift.columns, shift.drawn, shift.labels, shift.classes,
        warn=shift.verdict.alignment_may_hurt,
    )  # fmt: skip


def test_the_section_is_whole_and_escaped(label_shift: Shift) -> None:
    html = section_of(label_shift)
    words = Words()
    words.feed(html)
    assert words.open == []
    assert "<b>$x$" not in html
    said = " ".join(words.text)
    assert EVIL in said
    for title in ("Telling the domains apart", "Columns by effect", "Classes", "Values of x"):
        assert title in said
    assert html.count("<svg") == 3 + len(label_shift.drawn)
    assert "warning" in html
    assert "#0102" not in html  # all colours are the page's, light or dark
    assert html == section_of(label_shift)


def test_the_section_does_without_a_model_or_a_tested_column() -> None:
    shift = compared(n=100, model=False)
    html = shift_section(shift.verdict.sentences, shift.separations, (), {})
    assert html.count("<svg") == 1
    assert "warning" not in html

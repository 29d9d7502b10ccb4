"""What a shift means, in plain words: rules of thumb over measured numbers, each said with what it rests on.

What no rule here can see, because no unlabelled rows show it: whether rows that look alike have another label in the target.

References
----------
Labels and alignment: if features are distributed alike in both domains, so are the decisions made from them. The error
rate of a domain is at least the total variation distance between its decisions and its labels; by the triangle inequality both
error rates add up to at least the distance between the labels of the two domains. Zhao et al. (2019), "On learning invariant
representations for domain adaptation", theorem 4.3, has the like in Jensen-Shannon's distance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shoal.cluster.sharding.names import listed, plural
from shoal.transfer.shift.columns import Carriers, ColumnShift
from shoal.transfer.shift.domains import Separation
from shoal.transfer.shift.labels import LabelShift

LEVEL = 0.05
APART = 0.99  # AUC from which hardly a row of one domain looks like one of the other
HARM = 0.05  # total variation of the classes from which marginal alignment is warned of
# A change of class shares is believed beside another shift from so many times the misfit on (docs/domain_shift.md).
EXPLAINED = 5
GAIN = 0.05  # AUC by which trees are ahead where a shift is not linear

Kind = Literal["none", "covariate", "label", "label and more", "unexplained"]


@dataclass(frozen=True)
class Verdict:
    """A conclusion.

    Attributes
    ----------
    kind
        ``none`` seen; ``covariate``-like, where predictions give no good sign of other class shares; ``label``, where other
        shares explain what the model predicts; ``label and more``, where they do not explain all of it; ``unexplained``, where a
        shift is seen and class shares could not be estimated.
    alignment_may_hurt
        Whether classes differ so much that making the two domains alike costs accuracy.
    apart
        Whether hardly a target row looks like a source row.
    one_sided
        Columns that only one domain has, or has values of.
    sentences
        All of it in words, the conclusion first.
    """

    kind: Kind
    alignment_may_hurt: bool
    apart: bool
    one_sided: tuple[str, ...]
    sentences: tuple[str, ...]


def conclude(
    separations: dict[str, Separation],
    columns: Sequence[ColumnShift],
    carried: Carriers | None = None,
    labels: LabelShift | None = None,
    *,
    classes: Sequence[str] | None = None,
    only_source: Sequence[str] = (),
    only_target: Sequence[str] = (),
) -> Verdict:
    """Put all that was measured into words.

    Parameters
    ----------
    separations
        By the kind of classifier; ``trees``, and ``linear`` where it was fitted.
    columns, carried
        From `compare_columns` and `carriers`.
    labels, classes
        From `estimate_label_shift`, and names of the classes; None without a model.
    only_source, only_target
        Columns of one domain alone.
    """
    differ = [c for c in columns if c.p_value < LEVEL]
    best = max(separations.values(), key=lambda s: s.low)
    predictions = labels is not None and labels.p_value < LEVEL
    kind: Kind = "none"
    if best.seen or differ or predictions:
        kind = "covariate"
        if labels is None or labels.reason:
            kind = "unexplained"
        elif labels.seen and labels.misfit_p >= LEVEL and best.low <= most_auc(labels.distance_high):
            kind = "label"
        elif labels.seen and labels.distance >= EXPLAINED * labels.misfit:
            kind = "label and more"
    hurt = labels is not None and kind in ("label", "label and more") and labels.distance >= HARM
    apart = best.auc >= APART
    emptied = [c.column for c in columns if (c.missing_source == 1) != (c.missing_target == 1)]
    one_sided = tuple(dict.fromkeys([*only_source, *only_target, *emptied]))
    said = [
        _conclusion(kind),
        *_separation(separations, apart),
        *_columns(columns, differ),
        *_carried(carried, separations.get("trees")),
    ]
    said += _labels(labels, classes, kind, hurt, best)
    said += _one_sided(only_source, only_target, emptied)
    said.append(
        "whether rows that look alike have other labels in the target cannot be seen without target labels"
    )
    return Verdict(kind, hurt, apart, one_sided, tuple(said))


def _conclusion(kind: Kind) -> str:
    return {
        "none": "no shift is seen: neither a classifier of the domain, nor a column, nor predictions tell the "
        "domains apart; smaller "
        "shifts than this many rows show may be there",
        "covariate": "a covariate-like shift: rows look different, and predictions give no good sign that classes "
        "are more or less common",
        "label": "a label shift: classes are more or less common, and that explains what the model predicts in the "
        "target; rows "
        "that moved a little towards another class would look the same",
        "label and more": "classes seem to be more or less common, and that alone does not explain what the model "
        "predicts in the "
        "target, so that the estimated shares are doubtful, too",
        "unexplained": "a shift is seen; whether it is in how common classes are is not known",
    }[kind]


def _separation(separations: dict[str, Separation], apart: bool) -> list[str]:
    named = {"trees": "boosted trees", "linear": "a linear classifier"}
    said = [
        f"{named[kind]} tell{'' if kind == 'trees' else 's'} the domains apart with an AUC of {_range(s)} on rows "
        f"not fitted to"
        if s.seen
        else f"{named[kind]} cannot tell the domains apart: AUC {_range(s)}, .5 being chance"
        for kind, s in separations.items()
    ]
    trees, linear = separations.get("trees"), separations.get("linear")
    if trees and linear and trees.seen and trees.auc - linear.auc >= GAIN:
        said.append(
            "trees see more of the shift than a linear classifier: it is in more than the means of columns"
        )
    if apart:
        said.append(
            "hardly a target row looks like a source row: importance weights rest on few rows then, and aligned features "
            "say little of which classes were matched; look first for a column that merely names the domain"
        )
    return said


def _effect(column: ColumnShift) -> str:
    if column.effect != column.effect:  # one domain has no values to compare
        return f"missing in {column.missing_source:.0%} of source rows and {column.missing_target:.0%} of target rows"
    return f"{'Kolmogorov-Smirnov' if column.numeric else 'total variation'} {column.effect:.2f}"


def _columns(columns: Sequence[ColumnShift], differ: Sequence[ColumnShift]) -> list[str]:
    tested = [c for c in columns if not c.skipped]
    skipped = [c for c in columns if c.skipped]
    said = []
    if differ:
        largest = (f"{c.name!r} ({_effect(c)})" for c in differ)
        said.append(
            f"{len(differ)} of {plural(len(tested), 'column')} differ at 5 % after Holm's adjustment, most of all "
            f"{listed(largest, 3)}"
        )
    elif tested:
        said.append(f"none of {plural(len(tested), 'column')} differs at 5 % after Holm's adjustment")
    if skipped:
        said.append(
            f"{plural(len(skipped), 'column')} not tested: {listed((f'{c.name!r} ({c.skipped})' for c in skipped), 3)}"
        )
    if strange := [c for c in columns if not c.skipped and c.unknown_target > 0.05]:
        values = (f"{c.name!r} ({c.unknown_target:.0%})" for c in strange)
        said.append(
            f"target values that are rare or unknown in the source, so that a model has not learned from them: "
            f"{listed(values, 3)}"
        )
    return said


def _carried(carried: Carriers | None, whole: Separation | None) -> list[str]:
    if carried is None or not carried.joint:
        return []
    columns, last = list(carried.joint.items())[-1]
    names = listed(map(repr, columns))
    if last is None:
        return [f"without {names} no column is left"]
    if not last.seen:
        return [f"without {names} the domains are not told apart any more: AUC {_range(last)}"]
    if whole is not None and last.hardly(whole):
        return [
            f"without {names} the AUC falls to {_range(last)}: these columns carry almost all of the shift"
        ]
    return [f"without {names} the AUC is still {_range(last)}: the shift is not in these columns alone"]


def most_auc(distance: float) -> float:
    """Return the largest AUC of any classifier of the domain where only class shares differ, by that total variation distance.

    Then a row tells of its domain no more than its class does, whose ROC curve is nowhere higher than `distance` above the
    diagonal.
    """
    return 1 - (1 - distance) ** 2 / 2


def _labels(
    labels: LabelShift | None, classes: Sequence[str] | None, kind: Kind, hurt: bool, best: Separation
) -> list[str]:
    if labels is None:
        return []
    if labels.reason:
        return [f"class shares in the target cannot be estimated: {labels.reason}"]
    said = []
    if labels.seen:
        names = classes or [f"class {k}" for k in range(len(labels.source))]
        outside = [k for k in range(len(names)) if not labels.low[k] <= labels.source[k] <= labels.high[k]]
        outside.sort(key=lambda k: -abs(labels.target[k] - labels.source[k]))
        shares = (
            f"{names[k]} {labels.source[k]:.1%} to {labels.target[k]:.1%} ({labels.low[k]:.1%} to {labels.high[k]:.1%})"
            for k in outside
        )
        said.append(
            f"estimated class shares, source to target, if label shift is all there is: {listed(shares, 3)}"
        )
    if hurt:
        said.append(
            "marginal alignment (DANN, CORAL, MMD without class weights) may hurt: were features aligned "
            "perfectly, the error rates of both "
            f"domains would add up to at least {labels.distance:.1%} ({labels.distance_low:.1%} to "
            f"{labels.distance_high:.1%}), if these "
            "shares are right; weight source rows by class, and compare with source-only"
        )
    if labels.misfit_p < LEVEL:
        said.append(
            f"scores of the target are {labels.misfit:.2f} (Kolmogorov-Smirnov) from what other class shares alone "
            f"would make of the "
            "source's: rows of a class look different, too"
        )
    if labels.seen and best.low > (ceiling := most_auc(labels.distance_high)):
        said.append(
            f"class shares so different let no classifier tell the domains apart with an AUC above {ceiling:.3f}: "
            f"rows of a class look "
            "different, too"
        )
    if labels.seen and kind == "covariate":
        said.append(
            "where rows of a class look different, class shares are estimated wrongly, and this difference may be "
            "that alone: do not weight by it without some target labels"
        )
    return said


def _one_sided(only_source: Sequence[str], only_target: Sequence[str], emptied: Sequence[str]) -> list[str]:
    said = []
    if only_source:
        said.append(
            f"columns that the target lacks, which a model of the source cannot do without: {listed(map(repr, only_source))}"
        )
    if only_target:
        said.append(
            f"columns of the target alone, which no source row can teach: {listed(map(repr, only_target))}"
        )
    if emptied:
        said.append(f"columns with values in one domain only: {listed(map(repr, dict.fromkeys(emptied)))}")
    return said


def _range(s: Separation) -> str:
    return f"{s.auc:.3f} ({s.low:.3f} to {s.high:.3f})"

"""The gate passes on evidence only."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.gate import describe, judge
from runner.records import Metric, Rule

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def outcome(metrics: dict[str, Metric], *rules: Rule, **kwargs: object) -> str:
    return judge(metrics, rules, **kwargs).outcome  # type: ignore[arg-type]


def test_no_rules_never_pass() -> None:
    assert outcome({"a.b": Metric(value=1.0)}) == "error"


def test_a_gate_of_which_no_rule_was_judged_does_not_pass() -> None:
    assert outcome({}, Rule(metric="e.gain", min=0.0, when="e.champion")) == "error"


def test_a_missing_metric_is_an_error_that_names_the_step_and_the_remedy() -> None:
    verdict = judge({}, [Rule(metric="evaluate.recall", min=0.5)])
    assert verdict.outcome == "error"
    assert verdict.rules[0].sentence == (
        "Step evaluate did not record `recall`, which the gate needs. "
        "Record it in the last cell, or remove the rule from pipeline.toml."
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", [Rule(metric="e.a", min=0.8), Rule(metric="e.a", max=0.8)])
def test_values_that_are_no_finite_number_are_errors(value: float, rule: Rule) -> None:
    assert outcome({"e.a": Metric(value=value)}, rule) == "error"


def test_a_recorded_value_with_a_problem_is_an_error_even_beside_a_metric_of_that_name() -> None:
    problems = {"e.a": "recorded twice, in cells [5] and [9]"}
    verdict = judge({"e.a": Metric(value=1.0)}, [Rule(metric="e.a", min=0.1)], problems=problems)
    assert verdict.outcome == "error"
    assert "recorded twice" in verdict.rules[0].sentence


def test_a_value_exactly_at_the_threshold_passes() -> None:
    assert outcome({"e.a": Metric(value=0.85)}, Rule(metric="e.a", min=0.85)) == "pass"
    assert outcome({"e.a": Metric(value=0.85)}, Rule(metric="e.a", max=0.85)) == "pass"
    ends = Metric(value=0.9, low=0.85, high=0.95)
    assert outcome({"e.a": ends}, Rule(metric="e.a", min=0.85, confident=True)) == "pass"


def test_a_confident_rule_asks_the_worse_end_and_straddling_is_inconclusive() -> None:
    metric = Metric(value=0.9, low=0.8, high=0.95)
    assert outcome({"e.a": metric}, Rule(metric="e.a", min=0.75, confident=True)) == "pass"
    assert outcome({"e.a": metric}, Rule(metric="e.a", min=0.85, confident=True)) == "inconclusive"
    assert outcome({"e.a": metric}, Rule(metric="e.a", min=0.96, confident=True)) == "fail"
    assert outcome({"e.a": metric}, Rule(metric="e.a", max=0.96, confident=True)) == "pass"
    assert outcome({"e.a": metric}, Rule(metric="e.a", max=0.85, confident=True)) == "inconclusive"
    assert outcome({"e.a": metric}, Rule(metric="e.a", max=0.75, confident=True)) == "fail"


def test_a_confident_rule_without_an_interval_is_an_error() -> None:
    assert outcome({"e.a": Metric(value=0.9)}, Rule(metric="e.a", min=0.1, confident=True)) == "error"
    assert outcome({"e.a": Metric(value=0.9, low=1.0, high=0.0)}, Rule(metric="e.a", min=0.1)) == "error"


def test_a_rule_with_when_is_judged_exactly_when_that_input_was_there() -> None:
    sure = Rule(metric="e.auc", min=0.8)
    gain = Rule(metric="e.gain", min=-0.02, when="e.champion")
    metrics = {"e.auc": Metric(value=0.9)}
    absent = judge(metrics, [sure, gain])
    assert absent.outcome == "pass"
    assert absent.rules[1].sentence == "Not judged: step e had no champion (no approved version)."
    assert judge(metrics, [sure, gain], present={"e.champion"}).outcome == "error"


def test_the_worst_rule_decides() -> None:
    good, bad = Rule(metric="e.a", min=0.0), Rule(metric="e.a", min=2.0)
    assert outcome({"e.a": Metric(value=1.0)}, good, bad) == "fail"
    assert outcome({"e.a": Metric(value=1.0)}, good, bad, Rule(metric="e.b", min=0.0)) == "error"


def test_a_rule_reads_as_a_person_writes_it() -> None:
    assert describe(Rule(metric="e.auc", min=0.85, confident=True)) == "e.auc >= 0.85 confidently"
    with pytest.raises(ValueError, match="exactly one"):
        describe(Rule(metric="e.auc"))


@given(finite, finite, st.floats(0, 100), st.floats(0, 1), st.floats(0, 1), st.booleans(), st.booleans())
def test_a_better_metric_never_turns_a_pass_into_anything_else(
    value: float, threshold: float, gain: float, below: float, above: float, confident: bool, lower: bool
) -> None:
    rule = Rule(metric="e.a", confident=confident, **{"max" if lower else "min": threshold})  # type: ignore[arg-type]
    step = -gain if lower else gain
    ranks = ["fail", "inconclusive", "pass"]
    before = outcome({"e.a": Metric(value=value, low=value - below, high=value + above)}, rule)
    better = value + step
    after = outcome({"e.a": Metric(value=better, low=better - below, high=better + above)}, rule)
    assert ranks.index(after) >= ranks.index(before)


@given(st.lists(st.sampled_from([math.nan, math.inf, -math.inf]), min_size=1, max_size=3), finite, st.booleans())
def test_nothing_that_is_no_number_ever_passes(values: list[float], threshold: float, lower: bool) -> None:
    metrics = {f"e.{i}": Metric(value=value) for i, value in enumerate(values)}
    side = "max" if lower else "min"
    rules = [Rule(metric=name, **{side: threshold}) for name in metrics]  # type: ignore[arg-type]
    assert judge(metrics, rules).outcome == "error"


@pytest.mark.parametrize(
    ("metric", "rule", "sentence"),
    [
        (
            Metric(value=0.001834, low=-0.00119, high=0.005064),
            Rule(metric="e.gain", min=-0.02, confident=True),
            "e.gain is +0.0018; even its low end, -0.0012, is 0.0188 above the limit -0.02.",
        ),
        (
            Metric(value=0.96774),
            Rule(metric="e.auc", min=0.85),
            "e.auc is 0.9677, 0.1177 above the required minimum 0.85.",
        ),
        (Metric(value=0.8), Rule(metric="e.auc", min=0.85), "e.auc is 0.8, 0.05 below the required minimum 0.85."),
        (Metric(value=0.85), Rule(metric="e.auc", min=0.85), "e.auc is 0.85, exactly the required minimum 0.85."),
        (Metric(value=61.5), Rule(metric="e.rmse", max=60), "e.rmse is 61.5, 1.5 above the allowed maximum 60."),
        (
            Metric(value=12345.67),
            Rule(metric="e.n", max=2e4),
            "e.n is 12,345.7, 7,654.3 below the allowed maximum 20,000.",
        ),
        (
            Metric(value=0.9, low=0.8, high=0.95),
            Rule(metric="e.a", min=0.96, confident=True),
            "e.a is 0.9; even its high end, 0.95, is 0.01 below the limit 0.96.",
        ),
        (
            Metric(value=0.9, low=0.8, high=0.95),
            Rule(metric="e.a", max=0.95, confident=True),
            "e.a is 0.9; even its high end, 0.95, is exactly at the limit 0.95.",
        ),
        (
            Metric(value=0.9, low=0.8, high=0.95),
            Rule(metric="e.a", min=0.85, confident=True),
            "e.a is 0.9, but its interval, 0.8 to 0.95, has the limit 0.85 in it: not enough test rows to judge it.",
        ),
    ],
)
def test_the_sentence_says_on_which_side_of_the_limit_and_how_far(metric: Metric, rule: Rule, sentence: str) -> None:
    assert judge({rule.metric: metric}, [rule]).rules[0].sentence == sentence


@given(finite, finite)
def test_a_value_that_is_not_the_threshold_is_never_shown_as_if_it_were(value: float, threshold: float) -> None:
    said = judge({"e.a": Metric(value=value)}, [Rule(metric="e.a", min=threshold)]).rules[0].sentence
    shown = re.fullmatch(r"e\.a is \+?(\S+), (.+) the required minimum (\S+)\.", said)
    assert shown is not None, said
    assert (shown[1] == shown[3]) == (value == threshold) == (shown[2] == "exactly"), said

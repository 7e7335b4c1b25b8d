"""The gate: metrics and rules in, a verdict out. Pure: no files, no clock, no run.

A missing, repeated or non-finite metric is an error, and so is a gate in which no rule was judged. Only `pass` lets the
steps run that need the verdict.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from runner.records import KeyResult, Metric, Outcome, Rule, RuleResult, Verdict

NAMED_KEYS = 3  # of those that do not hold a rule, in its sentence
WORST_FIRST: tuple[Outcome, ...] = ("error", "fail", "inconclusive", "pass")


def judge(
    metrics: Mapping[str, Metric],
    rules: Sequence[Rule],
    *,
    problems: Mapping[str, str] | None = None,
    present: Collection[str] = (),
    keyed: Mapping[str, Sequence[KeyResult]] | None = None,
) -> Verdict:
    """The verdict on `metrics` (keyed `step.name`) under `rules`.

    `problems` says why a recorded value is not a metric; `present` are the inputs (`step.input`) that were given, for
    rules with `when`; `keyed` are the keys of mapped steps, for rules with `each` or `share`. The outcome is the worst
    of the judged rules in the order error, fail, inconclusive, pass.
    """
    results = [
        _judged(rule, metrics, problems or {}, present)
        if rule.by_key is None
        else _judged_by_key(rule, rule.by_key, (keyed or {}).get(rule.metric.partition(".")[0], ()), present)
        for rule in rules
    ]
    outcomes = [result.outcome for result in results if result.outcome != "not judged"]
    judged = {rule.metric: metrics[rule.metric] for rule in rules if _is_sound(metrics.get(rule.metric))}
    return Verdict(outcome=min(outcomes, key=WORST_FIRST.index, default="error"), rules=results, metrics=judged)


def describe(rule: Rule) -> str:
    """The rule as a person writes it: `evaluate.auc >= 0.85`."""
    sign, threshold = _threshold(rule)
    keys = (
        "" if rule.by_key is None else " for each key" if rule.by_key == 1 else f" for {_percent(rule.by_key)} of keys"
    )
    return f"{rule.metric} {sign} {threshold:g}{' confidently' if rule.confident else ''}{keys}"


def _judged(
    rule: Rule, metrics: Mapping[str, Metric], problems: Mapping[str, str], present: Collection[str]
) -> RuleResult:
    if rule.when is not None and rule.when not in present:
        return RuleResult(rule=rule, outcome="not judged", sentence=f"Not judged: {_absent(rule.when)}.")
    if rule.metric in problems:
        return _error(rule, f"{rule.metric} cannot be judged: {problems[rule.metric]}")
    metric = metrics.get(rule.metric)
    step, _, name = rule.metric.partition(".")
    if metric is None:
        return _error(
            rule,
            f"Step {step} did not record `{name}`, which the gate needs. "
            "Record it in the last cell, or remove the rule from pipeline.toml.",
        )
    if not _finite(metric.value):
        return _error(rule, f"{rule.metric} is {metric.value!r}, which is not a finite number.")
    if rule.confident and (metric.low is None or metric.high is None):
        return _error(rule, f"{rule.metric} has no interval, which `confident` needs. Record it with low= and high=.")
    if not _is_sound(metric):
        return _error(rule, f"{metric.low} to {metric.high}, recorded for {rule.metric}, is not an interval around it.")
    return _compared(rule, metric)


def _judged_by_key(rule: Rule, share: float, keys: Sequence[KeyResult], present: Collection[str]) -> RuleResult:
    """A rule on each key of a mapped step. It passes where enough keys hold it.

    A key that failed, or has no sound metric, does not. What is missing makes an error only where it could decide.
    """
    step, _, name = rule.metric.partition(".")
    if rule.when is not None and rule.when not in present:
        return RuleResult(rule=rule, outcome="not judged", sentence=f"Not judged: {_absent(rule.when)}.")
    if not keys:
        return _error(rule, f"Step {step} has no keys, so {rule.metric} cannot be judged.")
    judged = []
    for key in keys:
        metrics = {rule.metric: key.metrics[name]} if name in key.metrics else {}
        problems = {rule.metric: key.problems[name]} if name in key.problems else {}
        judged.append((key, _judged(rule, metrics, problems, present)))
    counts = Counter(result.outcome for _, result in judged)
    needed = math.ceil(share * len(keys) - 1e-9)
    outcome: Outcome = "fail"
    if counts["pass"] >= needed:
        outcome = "pass"
    elif counts["pass"] + counts["inconclusive"] >= needed:
        outcome = "inconclusive"
    elif counts["pass"] + counts["inconclusive"] + counts["error"] >= needed:
        outcome = "error"
    return RuleResult(rule=rule, outcome=outcome, sentence=_sentence_by_key(rule, share, judged))


def _sentence_by_key(rule: Rule, share: float, judged: Sequence[tuple[KeyResult, RuleResult]]) -> str:
    """How many keys hold the rule, and the first of those that do not, the worst first."""
    sign, threshold = _threshold(rule)
    direction = 1 if sign == ">=" else -1
    others = [(key, result.value) for key, result in judged if result.outcome != "pass"]
    others.sort(key=lambda pair: (pair[1] is not None, direction * (pair[1] or 0.0)))
    shown = ", ".join(f"{key.folder} ({_value_of(key, value)})" for key, value in others[:NAMED_KEYS])
    more = f" and {len(others) - NAMED_KEYS:,} more" if len(others) > NAMED_KEYS else ""
    good = len(judged) - len(others)
    confidently = " confidently" if rule.confident else ""
    return (
        f"{rule.metric} {sign} {threshold:,.12g} holds{confidently} for {good:,} of {len(judged):,} keys "
        f"({_percent(good / len(judged))}); {'all' if share == 1 else _percent(share)} must"
        f"{f'. Not for {shown}{more}' if others else ''}."
    )


def _value_of(key: KeyResult, value: float | None) -> str:
    if not key.complete:
        return "failed"
    return "no value" if value is None else _number(value)


def _percent(share: float) -> str:
    """A share as text that shows 100% only for all."""
    return "100%" if share == 1 else f"{min(share * 100, 99.9):.3g}%"


def _compared(rule: Rule, metric: Metric) -> RuleResult:
    sign, threshold = _threshold(rule)
    direction = 1 if sign == ">=" else -1
    worse, better = (metric.low, metric.high) if direction == 1 else (metric.high, metric.low)
    if not rule.confident or worse is None or better is None:
        worse = better = metric.value
    margin = direction * (worse - threshold)
    outcome: Outcome = "pass" if margin >= 0 else "fail" if direction * (better - threshold) < 0 else "inconclusive"
    return RuleResult(
        rule=rule,
        outcome=outcome,
        sentence=_sentence(rule, metric, outcome, worse if outcome == "pass" else better),
        value=metric.value,
        low=metric.low,
        high=metric.high,
        margin=margin,
    )


def _sentence(rule: Rule, metric: Metric, outcome: Outcome, end: float) -> str:
    """The result, for a person. `end` is what decides: the value, or for a confident rule one end of its interval."""
    sign, threshold = _threshold(rule)
    limit = f"{threshold + 0.0:,.12g}"  # -0.0 is 0
    # show the sign of a metric that can be negative
    signed = min(threshold, metric.value, metric.value if metric.low is None else metric.low) < 0

    def show(value: float) -> str:
        return limit if value == threshold else _number(value, signed=signed, beside=limit)

    subject = f"{rule.metric} is {show(metric.value)}"
    if outcome == "inconclusive":
        assert metric.low is not None
        assert metric.high is not None
        interval = f"{show(metric.low)} to {show(metric.high)}"
        return (
            f"{subject}, but its interval, {interval}, has the limit {limit} in it: not enough test rows to judge it."
        )
    side = f"{_number(abs(end - threshold))} {'above' if end > threshold else 'below'}"
    if rule.confident:
        which = "low" if end == metric.low else "high"
        at = "exactly at" if end == threshold else side
        return f"{subject}; even its {which} end, {show(end)}, is {at} the limit {limit}."
    kind = "required minimum" if sign == ">=" else "allowed maximum"
    return f"{subject}, {'exactly' if end == threshold else side} the {kind} {limit}."


def _number(value: float, *, signed: bool = False, beside: str = "") -> str:
    """`value` with four decimals, or all of them where it would look equal to `beside`."""
    if abs(value) >= 1e9:
        text = f"{value:.6g}"
    elif abs(value) >= 1000:
        text = f"{value:,.1f}".removesuffix(".0")
    elif abs(value) >= 0.001 or value == 0:
        text = f"{value + 0.0:.4f}".rstrip("0").rstrip(".")
    else:
        text = f"{value:.2g}"
    return f"{'+' if signed and value > 0 else ''}{repr(value) if text == beside else text}"


def _absent(when: str) -> str:
    step, _, name = when.partition(".")
    return f"step {step} had no {name} (no approved version)" if name == "champion" else f"there was no {when}"


def _error(rule: Rule, sentence: str) -> RuleResult:
    return RuleResult(rule=rule, outcome="error", sentence=sentence)


def _threshold(rule: Rule) -> tuple[str, float]:
    if rule.min is not None:
        return ">=", rule.min
    assert rule.max is not None
    return "<=", rule.max


def _is_sound(metric: Metric | None) -> bool:
    if metric is None or not _finite(metric.value):
        return False
    ends = (metric.low, metric.high)
    if ends == (None, None):
        return True
    low, high = ends
    return low is not None and high is not None and _finite(low) and _finite(high) and low <= high


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""A version's metrics and contributions in the form that Studio reads: SageMaker's own reports of a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from runner.records import Metric

NORMAL_95 = 1.959964  # standard deviations from the middle of a normal distribution to an end of its 95 % interval
# by the beginning of XGBoost's objective; the service's names for its reports
KINDS = {"multi:": "multiclass_classification_metrics", "reg:": "regression_metrics"}
BINARY = "binary_classification_metrics"


def evaluation(metrics: Mapping[str, Metric], *, objective: str = "") -> bytes:
    """evaluation.json: each metric by the last part of its name, or by all of it where two would have the same.

    The standard deviation is that of a normal distribution with the recorded 95 % interval, "NaN" where there is none,
    as the service writes it. Equal metrics give equal bytes.
    """
    kind = next((kind for start, kind in KINDS.items() if objective.startswith(start)), BINARY)
    short = Counter(_last(name) for name in metrics)
    report = {
        _last(name) if short[_last(name)] == 1 else name: {
            "value": metric.value,
            "standard_deviation": _deviation(metric),
        }
        for name, metric in metrics.items()
    }
    return json.dumps({kind: report}, indent=1, sort_keys=True).encode() + b"\n"


def explanation(contributions: Mapping[str, float]) -> bytes:
    """explainability.json: the mean absolute SHAP value of each column, as Clarify's analysis has it."""
    # the key that Studio draws; a tree's own values are the exact ones that the kernel method estimates
    report = {"kernel_shap": {"label0": {"global_shap_values": dict(contributions)}}}
    return json.dumps({"version": "1.0", "explanations": report}, indent=1).encode() + b"\n"


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _deviation(metric: Metric) -> float | str:
    if metric.low is None or metric.high is None:
        return "NaN"
    return (metric.high - metric.low) / (2 * NORMAL_95)

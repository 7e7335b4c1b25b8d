"""The model card of a model package, held to what the service's guide says of it: its keys, lengths and states."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

from .errors import refuse

Schema = dict[str, Any]


def text(longest: int, *, shortest: int = 0) -> Schema:
    return {"type": "string", "minLength": shortest, "maxLength": longest}


def closed(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def several(of: Schema, most: int | None = None) -> Schema:
    return {"type": "array", "items": of, **({} if most is None else {"maxItems": most})}


def by_name(of: Schema) -> Schema:
    return {"type": "object", "additionalProperties": of}


NUMBER = {"type": "number"}
NAME, ADDRESS, PARAGRAPH = text(255, shortest=1), text(1024), text(2048)
AXES = {
    "x_axis_name": {"anyOf": [text(63), several(text(63))]},
    "y_axis_name": {"anyOf": [text(63), several(text(63))]},
}
TRAINING_METRIC = closed("name", "value", name=NAME, notes=text(1024), value=NUMBER)
HYPER_PARAMETER = closed("name", "value", name=NAME, value=NAME)


def metric(value: Schema, *kinds: str) -> Schema:
    return closed("name", "type", "value", name=NAME, notes=text(1024), type={"enum": list(kinds)}, value=value, **AXES)


METRIC = {
    "anyOf": [
        metric({"anyOf": [NUMBER, text(63), {"type": "boolean"}]}, "number", "string", "boolean"),
        metric(several(NUMBER), "bar_chart"),
        metric(several(several(NUMBER)), "linear_graph", "matrix"),
    ]
}
CARD = closed(
    model_overview=closed(model_creator=text(1024), model_artifact=several(ADDRESS, 15)),
    intended_uses=closed(
        purpose_of_model=PARAGRAPH,
        intended_uses=PARAGRAPH,
        factors_affecting_model_efficiency=PARAGRAPH,
        risk_rating={"enum": ["High", "Medium", "Low", "Unknown"]},
        explanations_for_risk_rating=PARAGRAPH,
    ),
    business_details=closed(
        business_problem=PARAGRAPH, business_stakeholders=PARAGRAPH, line_of_business=PARAGRAPH
    ),
    training_details=closed(
        objective_function={"type": "object"},
        training_observations=text(1024),
        training_job_details=closed(
            training_arn=ADDRESS,
            training_datasets=several(ADDRESS, 15),
            training_environment=closed(container_image=several(ADDRESS, 15)),
            training_metrics=several(TRAINING_METRIC, 50),
            user_provided_training_metrics=several(TRAINING_METRIC, 50),
            hyper_parameters=several(HYPER_PARAMETER, 100),
            user_provided_hyper_parameters=several(HYPER_PARAMETER, 100),
        ),
    ),
    evaluation_details=several(
        closed(
            "name",
            name=text(63, shortest=1),
            evaluation_observation=text(2096),
            evaluation_job_arn=text(256),
            datasets=several(ADDRESS, 10),
            metadata=by_name(text(1024)),
            metric_groups=several(
                closed("name", "metric_data", name=text(63, shortest=1), metric_data=several(METRIC))
            ),
        )
    ),
    additional_information=closed(
        ethical_considerations=PARAGRAPH, caveats_and_recommendations=PARAGRAPH, custom_details=by_name(text(1024))
    ),
)  # fmt: skip


def changed(before: dict[str, Any] | None, wanted: dict[str, Any]) -> dict[str, Any]:
    """The card that a request makes of the one before; what it does not name stays. Raises ValidationException."""
    content = wanted.get("ModelCardContent")
    if content is not None and (before or {}).get("ModelCardStatus") == "Archived":
        raise refuse("Model Card is in Archived state")
    made = {**(before or {}), **wanted}
    if not made.keys() >= {"ModelCardContent", "ModelCardStatus"}:
        raise refuse("A model card has a content and a status.")
    if content is not None:
        try:
            jsonschema.validate(json.loads(content), CARD)
        except (ValueError, jsonschema.ValidationError) as error:
            raise refuse(f"Invalid model card content: {str(error).splitlines()[0]}") from None
    return made

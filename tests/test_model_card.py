"""A version's model card in SageMaker: what the service takes, all of what the notebook wrote, and the decision's state."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sagemaker import SmallSageMaker
from small_sagemaker.cards import CARD
from support.registries import BUCKET, MODELS, contents, emptied, hash_of, in_sagemaker, new, started

from runner.aws.card import LONGEST_CARD, card
from runner.records import Metric

ARN = "arn:aws:sagemaker:eu-west-1:123456789012:model-package/m/{}"
ARCHIVE = "s3://models/m/model.tar.gz"
WRITTEN = """# Customers

Who leaves.

## Verdict

**pass**

## Intended use

Ranks customers.

```
## not a heading
```

## Limits ##

- one country

## Empty

## Limits

more
"""


def content(**changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(card(msgspec.structs.replace(new(1), **changed), archive=ARCHIVE))
    return found


def closed(schema: Any) -> Any:
    """The schema with no other keys than those that it names."""
    match schema:
        case dict():
            shut = {"additionalProperties": False} if "properties" in schema else {}
            return {**{key: closed(item) for key, item in schema.items()}, **shut}
        case list():
            return [closed(item) for item in schema]
    return schema


@pytest.fixture(scope="module")
def sdk() -> dict[str, Any]:
    """What SageMaker's SDK takes as the content of a card."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own sources
        from sagemaker.core.model_card import ModelCardContent

    found: dict[str, Any] = closed(ModelCardContent.model_json_schema())
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[SmallSageMaker]:
    with started() as made:
        yield made


@pytest.fixture
def cloud(server: SmallSageMaker) -> SmallSageMaker:
    return emptied(server)


def described(cloud: SmallSageMaker, version: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = cloud.client("sagemaker").describe_model_package(ModelPackageName=ARN.format(version))
    return found.get("ModelCard", {})


def test_each_heading_of_the_card_stands_where_studio_shows_it(sdk: dict[str, Any]) -> None:
    found = content(card=WRITTEN, metrics={**new(1).metrics, "train.rounds": Metric(value=40)})
    jsonschema.validate(found, sdk)
    assert found["model_overview"] == {"model_creator": "ana", "model_artifact": [ARCHIVE]}
    assert found["intended_uses"] == {"intended_uses": "Ranks customers.\n\n```\n## not a heading\n```"}
    more = found["additional_information"]
    assert more["caveats_and_recommendations"] == "- one country"
    details = more["custom_details"]
    assert {key: details[key] for key in ("Customers", "Verdict", "Limits")} == {
        "Customers": "Who leaves.",
        "Verdict": "**pass**",
        "Limits": "more",
    }
    assert (details["Run"], details["Commit"]) == (new(1).run, "4e1c2d")
    assert found["evaluation_details"] == [
        {
            "name": step,
            "metric_groups": [{"name": "metrics", "metric_data": [{"name": name, "type": "number", **rest}]}],
        }
        for step, name, rest in [
            ("evaluate", "auc", {"value": 0.875, "notes": "between 0.84 and 0.91, higher is better"}),
            ("train", "rounds", {"value": 40}),
        ]
    ]


texts = st.text(max_size=3000) | st.text("#x \n`ä🦜", max_size=5000)
metrics = st.dictionaries(st.text("abc.", min_size=1, max_size=300), st.builds(Metric, value=st.floats()), max_size=20)


@pytest.mark.soak
@settings(max_examples=40, deadline=None)
@given(texts, texts, metrics)
def test_any_card_is_one_that_the_service_takes(
    sdk: dict[str, Any], written: str, who: str, recorded: dict[str, Metric]
) -> None:
    text = card(msgspec.structs.replace(new(1), card=written, created_by=who, metrics=recorded), archive=ARCHIVE)
    assert "\n" not in text
    assert len(text) <= LONGEST_CARD
    found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    jsonschema.validate(found, sdk)
    jsonschema.validate(found, CARD)
    assert found["model_overview"].keys() == {"model_creator", "model_artifact"}  # all that a package's card has of it


def test_a_long_text_goes_on_in_details_and_loses_nothing() -> None:
    lines = "".join(f"line {number}\n" for number in range(900))
    found = content(card=f"## Limits\n\n{lines}")
    more = found["additional_information"]
    details = {key: text for key, text in more["custom_details"].items() if key.startswith("Limits")}
    assert list(details)[:2] == ["Limits", "Limits (2)"]
    assert "".join([more["caveats_and_recommendations"], *details.values()]) == lines.rstrip("\n")


@pytest.mark.parametrize(
    ("least", "changed"),
    [
        (0.9, {"card": "x" * 200_000}),
        (0.9, {"card": "## A\n" + "ä" * 90_000}),
        (0.4, {"metrics": {f"s.metric_{number}": Metric(value=number) for number in range(2000)}}),
    ],
    ids=["text", "letters that take six characters", "metrics"],
)
def test_what_is_longer_than_a_card_may_be_is_left_out_and_the_card_says_so(
    least: float, changed: dict[str, Any]
) -> None:
    found = content(**changed)
    assert least * LONGEST_CARD < len(json.dumps(found)) <= LONGEST_CARD
    assert f"executed notebook of {new(1).run}" in found["additional_information"]["custom_details"]["Left out"]


def test_the_card_is_reviewed_with_the_version(cloud: SmallSageMaker, tmp_path: Path) -> None:
    registry = in_sagemaker(tmp_path)
    for number in (1, 2):
        registry.register(new(number))
    first = described(cloud)
    assert first["ModelCardStatus"] == "PendingReview"
    assert json.loads(first["ModelCardContent"])["additional_information"]["custom_details"]["Card"] == "Ä small one."
    registry.decide("m", 1, "approved", who="ben", why="reviewed")
    assert described(cloud) == {**first, "ModelCardStatus": "Approved"}
    registry.decide("m", 1, "rejected", who="ben", why="on second thoughts")
    assert described(cloud) == {**first, "ModelCardStatus": "Archived"}
    registry.decide("m", 2, "rejected", who="ben", why="worse")
    assert described(cloud, 2)["ModelCardStatus"] == "Archived"


def test_what_moves_the_score_is_the_version_s_explainability(cloud: SmallSageMaker, tmp_path: Path) -> None:
    registry = in_sagemaker(tmp_path)
    registry.register(new(1))
    explained = {**contents("first"), "contributions.json": b'{"calls": 0.5, "plan": 0.25}'}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, hash_of(explained), explained)
        registry.register(new(2, sha256=hash_of(explained)))
    without, found = (
        cloud.client("sagemaker").describe_model_package(ModelPackageName=ARN.format(number))["ModelMetrics"]
        for number in (1, 2)
    )
    assert without.keys() == {"ModelQuality"}
    report = found["Explainability"]["Report"]
    key = report["S3Uri"].removeprefix(f"s3://{BUCKET}/")
    body: bytes = cloud.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert report["ContentDigest"] == f"sha256:{hashlib.sha256(body).hexdigest()}"
    explanations = json.loads(body)["explanations"]
    assert explanations["kernel_shap"]["label0"]["global_shap_values"] == {"calls": 0.5, "plan": 0.25}


def test_a_version_from_before_there_were_cards_is_decided_on_all_the_same(
    cloud: SmallSageMaker, tmp_path: Path
) -> None:
    registry = in_sagemaker(tmp_path)
    add = registry.groups.add
    registry.groups.add = lambda name, asked: add(  # type: ignore[method-assign]  # as earlier versions asked
        name, {key: value for key, value in asked.items() if key != "ModelCard"}
    )
    registry.register(new(1))
    assert registry.decide("m", 1, "approved", who="ben", why="reviewed").status == "approved"
    assert described(cloud) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"ModelCardContent": json.dumps({"model_overview": {"model_description": "x"}})},
        {"ModelCardContent": json.dumps({"additional_information": {"custom_details": {"x": "x" * 1025}}})},
        {"ModelCardContent": json.dumps({"evaluation_details": [{"metric_groups": []}]})},
        {"ModelCardContent": "# Card"},
        {"ModelCardStatus": "Reviewed"},
    ],
    ids=["another key", "too long", "without a name", "not JSON", "another state"],
)
def test_the_double_refuses_a_card_that_the_service_would(
    cloud: SmallSageMaker, tmp_path: Path, wrong: dict[str, str]
) -> None:
    in_sagemaker(tmp_path).register(new(1))
    client = cloud.client("sagemaker")
    with pytest.raises(client.exceptions.ClientError, match="ValidationException"):
        client.update_model_package(ModelPackageArn=ARN.format(1), ModelCard=wrong)
    assert described(cloud)["ModelCardStatus"] == "PendingReview"

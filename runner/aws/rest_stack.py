"""What infra/rest.yaml has put in front of an endpoint, as API Gateway has it now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from runner.aws.session import Session

DESCRIPTION = "predictions of {}"  # of the API, with the endpoint's name: infra/rest.yaml
MODEL = "Record"


def record_schemas(session: Session, endpoint: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, schema of a record) of each API before the endpoint; none where the caller may not look."""
    from botocore.exceptions import BotoCoreError, ClientError

    gateway = session.client("apigateway")
    position: dict[str, str] = {}
    try:
        while True:
            page = gateway.get_rest_apis(limit=500, **position)
            for api in page.get("items", []):
                if api.get("description") == DESCRIPTION.format(endpoint):
                    schema = gateway.get_model(restApiId=api["id"], modelName=MODEL)["schema"]
                    yield str(api["name"]), json.loads(schema)
            if not page.get("position"):
                return
            position = {"position": page["position"]}
    except (BotoCoreError, ClientError, ValueError):
        return

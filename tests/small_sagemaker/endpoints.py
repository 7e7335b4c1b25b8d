"""Models and endpoints: moto keeps them, this adds what it lacks.

An endpoint is Creating before it is InService, can be updated and can fail, and InvokeEndpoint reaches a real server.
Its machines pull the image, read the archive, write their log and keep what they are asked as the model's role.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import queue
import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from moto.backends import get_backend

from .calls import ACCOUNT, Call, read_body, read_headers
from .errors import ServiceError, refuse
from .gateway import Action, Reply
from .permissions import Permissions
from .policies import Request
from .registry import Registry
from .rights import name_of_role, pull, scaling_role, writing_log
from .transfer import list_prefix, split_uri

REPLY_TIMEOUT_S = 60  # the service's own limit on a model's answer
MAX_BODY_BYTES = 6 * 1024 * 1024
PASSED_ON = ("content-type", "accept", "x-amzn-sagemaker-custom-attributes", "x-amzn-sagemaker-inference-id")
ANSWER_TIMEOUT_S = 60


class Endpoints:
    """`wait_s` is how long creating and updating take at least."""

    def __init__(
        self,
        region: str,
        registry: Registry,
        s3: Any,
        wait_s: float,
        permissions: Permissions,
        client_as: Callable[[str, str], Any],
    ) -> None:
        self._region = region
        self._registry = registry
        self._s3 = s3
        self._permissions = permissions
        self._client_as = client_as  # of a service, for what is done as the role of this ARN
        self._scales = False  # the account has the role that scales endpoints
        self._wait_s = wait_s
        self._urls: dict[str, str] = {}
        self._failures: dict[str, str] = {}
        self._asked: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers: dict[str, queue.Queue[tuple[str | None, str | None]]] = {}
        self.asks_test = False

    def actions(self) -> dict[tuple[str, str], Action]:
        return {
            ("sagemaker", "CreateModel"): self.check_model,
            ("sagemaker", "CreateEndpointConfig"): self.check_config,
            ("sagemaker", "CreateEndpoint"): self.create,
            ("sagemaker", "UpdateEndpoint"): self.update,
            ("sagemaker", "DeleteEndpoint"): self.delete,
            ("sagemaker-runtime", "InvokeEndpoint"): self.invoke,
            ("application-autoscaling", "RegisterScalableTarget"): self.make_scaling_role,
        }

    def make_scaling_role(self, call: Call, environ: dict[str, Any]) -> None:
        """The first registration of an account makes the service-linked role, with the rights of whoever registers."""
        if not self._scales and call.identity:
            self._permissions.require(call.identity, [scaling_role()])
        self._scales = True

    @property
    def _moto(self) -> Any:
        return get_backend("sagemaker")[ACCOUNT][self._region]

    def serve(self, name: str, url: str) -> None:
        """Sends what InvokeEndpoint brings for `name` to the server at `url`."""
        self._urls[name] = url.rstrip("/")

    def fail(self, name: str, reason: str) -> None:
        """Makes the next creation or update of `name` fail; after a failed update the old configuration serves on."""
        self._failures[name] = reason

    def check_model(self, call: Call, environ: dict[str, Any]) -> None:
        wanted = call.parameters
        if wanted["ModelName"] in self._moto._models:
            raise refuse(f"Cannot create already existing model {wanted['ModelName']!r}.")
        for container in [wanted.get("PrimaryContainer"), *wanted.get("Containers", ())]:
            if container is None:
                continue
            url, package = container.get("ModelDataUrl"), container.get("ModelPackageName")
            source = (container.get("ModelDataSource") or {}).get("S3DataSource", {}).get("S3Uri")
            for uri in filter(None, (url, source)):
                if not self._exists(uri, exactly=uri == url):
                    raise refuse(f"Could not find model data at {uri}.")
            if package is not None and self._registry.approval(package) not in (None, "Approved"):
                raise refuse(f"ModelPackage {package} is not in Approved status and cannot be deployed.")

    def _exists(self, uri: str, *, exactly: bool) -> bool:
        bucket, key = split_uri(uri)
        try:
            return any(found == key or not exactly for found in list_prefix(self._s3, bucket, key))
        except self._s3.exceptions.ClientError:
            return False

    def check_config(self, call: Call, environ: dict[str, Any]) -> None:
        name = call.parameters["EndpointConfigName"]
        if name in self._moto.endpoint_configs:
            raise refuse(f"Cannot create already existing endpoint configuration {name!r}.")

    def create(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted, moto = call.parameters, self._moto
        name = wanted["EndpointName"]
        if name in moto.endpoints:
            raise refuse(f"Cannot create already existing endpoint {moto.endpoints[name].arn!r}.")
        self._check_config_exists(wanted["EndpointConfigName"])
        made = moto.create_endpoint(name, wanted["EndpointConfigName"], wanted.get("Tags"))
        self._begin(made, "Creating", None)
        return {"EndpointArn": made.arn}

    def update(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted, moto = call.parameters, self._moto
        found = self._get(wanted["EndpointName"])
        self._check_config_exists(wanted["EndpointConfigName"])
        if found.endpoint_status not in ("InService", "UpdateRollbackFailed"):
            raise refuse(f"Cannot update in-progress endpoint {found.arn!r}: it is {found.endpoint_status}.")
        config = moto.endpoint_configs[wanted["EndpointConfigName"]]
        before = moto.endpoint_configs.get(found.endpoint_config_name)
        if before is not None:
            self._check_change(found, before.production_variants, config.production_variants)
        self._begin(found, "Updating", config)
        return {"EndpointArn": found.arn}

    def _check_change(self, endpoint: Any, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
        """Between instances and serverless an endpoint cannot go, nor to another instance type while it is scaled."""
        if {"ServerlessConfig" in one for one in before} != {"ServerlessConfig" in one for one in after}:
            raise refuse(f"Cannot update endpoint {endpoint.arn!r} between serverless and instance-based variants.")
        old, new = ({one["VariantName"]: one.get("InstanceType") for one in variants} for variants in (before, after))
        scaled = get_backend("applicationautoscaling")[ACCOUNT][self._region].describe_scalable_targets(
            "sagemaker", [f"endpoint/{endpoint.endpoint_name}/variant/{name}" for name in old], None
        )
        registered = {one.resource_id.rpartition("/")[2] for one in scaled}
        if stuck := sorted(name for name in registered if new.get(name) != old[name]):
            raise refuse(
                f"The variant(s) {json.dumps(stuck)} must be deregistered as scalable targets with Application Auto "
                "Scaling before they are removed or their instance type is updated."
            )

    def delete(self, call: Call, environ: dict[str, Any]) -> None:
        found = self._get(call.parameters["EndpointName"])
        if found.endpoint_status in ("Creating", "Updating"):
            raise refuse(f"Cannot update in-progress endpoint {found.arn!r}: it is {found.endpoint_status}.")
        self._urls.pop(call.parameters["EndpointName"], None)

    def _check_config_exists(self, name: str) -> None:
        if name not in self._moto.endpoint_configs:
            arn = f"arn:aws:sagemaker:{self._region}:{ACCOUNT}:endpoint-config/{name}"
            raise refuse(f"Could not find endpoint configuration {arn!r}.")

    def _get(self, name: str) -> Any:
        found = self._moto.endpoints.get(name)
        if found is None:
            raise refuse(f"Could not find endpoint 'arn:aws:sagemaker:{self._region}:{ACCOUNT}:endpoint/{name}'.")
        return found

    def _begin(self, endpoint: Any, status: str, config: Any) -> None:
        endpoint.endpoint_status, endpoint.failure_reason = status, None
        threading.Thread(target=self._finish, args=(endpoint, status, config), daemon=True).start()

    def _finish(self, endpoint: Any, status: str, config: Any) -> None:
        """Brings an endpoint into service, or says why it did not come."""
        name = endpoint.endpoint_name
        time.sleep(self._wait_s)
        reason = self._failures.pop(name, None) or self._start(name, config)
        if reason is None and self.asks_test:
            url, reason = self._ask_test(name, status, config)
            if url is not None:
                self.serve(name, url)
        if reason is None and config is not None:
            endpoint.endpoint_config_name = config.endpoint_config_name
            endpoint.production_variants = endpoint._process_production_variants(config.production_variants)
            endpoint.data_capture_config = config.data_capture_config
        endpoint.failure_reason = reason
        endpoint.last_modified_time = type(endpoint.creation_time).now(endpoint.creation_time.tzinfo)
        endpoint.endpoint_status = "Failed" if reason is not None and status == "Creating" else "InService"

    def _models(self, name: str, config: Any) -> tuple[str, list[dict[str, Any]], list[Any]]:
        """The configuration's name, its variants and their models; the endpoint's own where none is given."""
        config_name = config.endpoint_config_name if config else self._get(name).endpoint_config_name
        variants = self._moto.endpoint_configs[config_name].production_variants
        return config_name, variants, [self._moto._models[variant["ModelName"]] for variant in variants]

    def _start(self, name: str, config: Any) -> str | None:
        """What the machines do before the container's first line; why that failed, or None."""
        for model in self._models(name, config)[2]:
            for container in list_containers(model):
                if "ModelPackageName" in container:
                    container = self._registry.container(container["ModelPackageName"])
                asked = [*pull(container["Image"])]
                if "ModelDataUrl" in container:
                    bucket, key = split_uri(container["ModelDataUrl"])
                    asked.append(Request("s3:GetObject", f"arn:aws:s3:::{bucket}/{key}"))
                    asked += self._permissions.to_open(bucket, key)
                role = name_of_role(model.execution_role_arn)
                self._permissions.may(role, writing_log(f"/aws/sagemaker/Endpoints/{name}"))
                try:
                    self._permissions.require(role, asked)
                except ServiceError as error:
                    return f"The role {model.execution_role_arn} is not enough for model {model.model_name}: {error.message}"
        return None

    def _ask_test(self, name: str, status: str, config: Any) -> tuple[str | None, str | None]:
        config_name, variants, models = self._models(name, config)
        answer: queue.Queue[tuple[str | None, str | None]] = queue.Queue()
        self._answers[name] = answer
        self._asked.put(
            {
                "EndpointName": name,
                "EndpointConfigName": config_name,
                "EndpointStatus": status,
                "ProductionVariants": variants,
                "Models": [{"ModelName": model.model_name, "Containers": list_containers(model)} for model in models],
            }
        )
        try:
            return answer.get(timeout=ANSWER_TIMEOUT_S)
        except queue.Empty:
            return None, "The test did not answer what serves this endpoint"

    def next_asked(self, timeout_s: float) -> dict[str, Any] | None:
        """For the test process: the next endpoint that waits for an answer."""
        try:
            return self._asked.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def answer(self, name: str, url: str | None, reason: str | None) -> None:
        self._answers[name].put((url, reason))

    def invoke(self, call: Call, environ: dict[str, Any]) -> Reply:
        name = call.parameters["EndpointName"]
        found = self._moto.endpoints.get(name)
        if found is None:
            raise ServiceError("ValidationError", f"Endpoint {name} of account {ACCOUNT} not found.")
        if found.endpoint_status not in ("InService", "Updating"):
            raise ServiceError("ValidationError", f"Endpoint {name} of account {ACCOUNT} is {found.endpoint_status}.")
        body = read_body(environ)
        if len(body) > MAX_BODY_BYTES:
            raise ServiceError("ValidationError", f"Request body is larger than {MAX_BODY_BYTES} bytes.", status=413)
        status, headers, answer = self._post(name, body, read_headers(environ))
        if status >= 400:
            kind = "client" if status < 500 else "server"
            text = answer.decode(errors="replace")
            raise ServiceError(
                "ModelError",
                f'Received {kind} error ({status}) from primary with message "{text}".',
                OriginalStatusCode=status,
                OriginalMessage=text,
                LogStreamArn=f"arn:aws:logs:{self._region}:{ACCOUNT}:log-group:/aws/sagemaker/Endpoints/{name}",
            )
        variant = found.production_variants[0]["VariantName"] if found.production_variants else "AllTraffic"
        wanted = found.data_capture_config or {}
        if wanted.get("EnableCapture") and random.uniform(0, 100) < wanted["InitialSamplingPercentage"]:
            sent = read_headers(environ)
            asked = _captured(wanted, "INPUT", sent.get("content-type") or "", body)
            answered = {key.lower(): value for key, value in headers}.get("content-type", "")
            kept = {"endpointInput": asked, "endpointOutput": _captured(wanted, "OUTPUT", answered, answer)}
            self._capture(found, variant, kept, sent.get("x-amzn-sagemaker-inference-id"))
        return status, [*headers, ("x-Amzn-Invoked-Production-Variant", variant)], answer

    def _capture(self, endpoint: Any, variant: str, kept: dict[str, Any], inference_id: str | None) -> None:
        """A line for what was asked and answered; the service answers its caller, whether or not the role may write."""
        wanted, name = endpoint.data_capture_config, endpoint.endpoint_name
        bucket, prefix = split_uri(wanted["DestinationS3Uri"])
        now = time.time()
        moment = time.strftime("%Y/%m/%d/%H/%M-%S", time.gmtime(now))
        key = f"{prefix.rstrip('/')}/{name}/{variant}/{moment}-{int(now % 1 * 1000):03d}-{uuid.uuid4()}.jsonl"
        event = {"eventId": str(uuid.uuid4()), "inferenceTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))}
        event |= {"inferenceId": inference_id} if inference_id else {}
        line = {"captureData": kept, "eventMetadata": event, "eventVersion": "0"}
        (model,) = {model.execution_role_arn for model in self._models(name, None)[2]}
        encryption = (
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": wanted["KmsKeyId"]} if "KmsKeyId" in wanted else {}
        )
        with contextlib.suppress(self._s3.exceptions.ClientError):
            self._client_as("s3", model).put_object(
                Bucket=bucket, Key=key, Body=json.dumps(line).encode() + b"\n", **encryption
            )

    def _post(self, name: str, body: bytes, headers: dict[str, str]) -> tuple[int, list[tuple[str, str]], bytes]:
        if name not in self._urls:
            raise ServiceError("ModelError", "No server is bound to this endpoint.", OriginalStatusCode=503)
        address = urlsplit(self._urls[name])
        sent = {key: headers[key] for key in PASSED_ON if headers.get(key)}
        connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=REPLY_TIMEOUT_S)
        try:
            connection.request("POST", f"{address.path}/invocations", body, sent)
            reply = connection.getresponse()
            answer = reply.read()
        except OSError as error:
            text = f"Your invocation failed before a response came from container primary: {error}"
            raise ServiceError("ModelError", text, OriginalStatusCode=0, OriginalMessage=str(error)) from error
        finally:
            connection.close()
        kept = ("content-type", "x-amzn-sagemaker-custom-attributes")
        return reply.status, [(key, value) for key, value in reply.getheaders() if key.lower() in kept], answer


def _captured(wanted: dict[str, Any], mode: str, content_type: str, content: bytes) -> dict[str, str]:
    """As text where the configuration names its content type, else in base64."""
    named, plain = wanted.get("CaptureContentTypeHeader") or {}, content_type.partition(";")[0].strip().lower()
    for encoding in ("CSV", "JSON"):
        if plain in named.get(f"{encoding.title()}ContentTypes", ()):
            with contextlib.suppress(UnicodeDecodeError):
                return {
                    "observedContentType": content_type,
                    "mode": mode,
                    "data": content.decode(),
                    "encoding": encoding,
                }
    data = base64.b64encode(content).decode()
    return {"observedContentType": content_type, "mode": mode, "data": data, "encoding": "BASE64"}


def list_containers(model: Any) -> list[dict[str, Any]]:
    return [container for container in (model.primary_container, *(model.containers or ())) if container]

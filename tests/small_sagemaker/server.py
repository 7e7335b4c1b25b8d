"""Puts the parts together in the server's process."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import boto3
from botocore.config import Config
from moto.moto_server.werkzeug_app import MotoRequestHandler
from werkzeug.serving import BaseWSGIServer, make_server

from . import stacks  # noqa: F401  # moto finds what is in it
from .builds import Builds
from .calls import ACCOUNT, SERVICE_KEY, list_routes, load_model
from .deliveries import Deliveries
from .endpoints import Endpoints
from .errors import ServiceError, refuse
from .faults import Faults
from .gateway import Action, Gateway
from .jobs import Jobs, Settings
from .pipelines import Pipelines
from .policies import Request
from .processing import ProcessingActions
from .registry import Registry
from .rights import name_of_role
from .tags import Tags
from .transfer import split_uri

IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com/(?P<repository>[^:@]+)(?::(?P<tag>[^@]+)|@(?P<digest>.+))?"
)


def load() -> None:
    """Reads what a server, and its clients, would read when they are first asked."""
    for service in ("s3", "sagemaker", "logs", "ecr", "events", "iam", "sts"):
        load_model(service)
        boto3.client(service, region_name="eu-west-1")
    list_routes("s3")


class QuietHandler(MotoRequestHandler):
    """Says nothing about requests, and nothing about clients that hang up."""

    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: object) -> None:
        return


class Part(Protocol):
    def actions(self) -> Mapping[tuple[str, str], Action]: ...


class Server:
    """Listens on a free port of 127.0.0.1, and on the same port in each container's network."""

    def __init__(self, settings: Settings) -> None:
        self.faults = Faults()
        self.gateway = Gateway(self.faults)
        self._main = make_server("127.0.0.1", 0, self.gateway, threaded=True, request_handler=QuietHandler)
        self.port = self._main.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._settings = settings
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, str], Any] = {}
        tags = Tags()
        self.jobs = Jobs(settings, self.faults, tags, self.port, self.serve, self.gateway.troubles.append)
        self.jobs.s3, self.jobs.client_as = self._client("s3"), self._client_as
        self.jobs.permissions = self.gateway.permissions
        self._events = self._client("events")
        self._ecr = self._client("ecr")
        registry = Registry(settings.name_arn, tags, self._tell_package_state, self._look_at_container)
        self.endpoints = Endpoints(
            settings.region, registry, self.jobs.s3, settings.pending_s, self.gateway.permissions, self._client_as
        )
        pipelines = Pipelines(self.jobs, settings.name_arn, tags)
        parts: tuple[Part, ...] = (
            self.gateway.permissions,
            tags,
            registry,
            self.endpoints,
            pipelines,
            ProcessingActions(self.jobs),
            Builds(settings.region, self.url, self._client_as, settings.pending_s),
            Deliveries(),
        )
        for part in parts:
            self.gateway.actions |= part.actions()
        self._start(self._main)

    def _client_as(self, service: str, role: str) -> Any:
        """What the service does in the name of a role is asked of the role's policies."""
        with self._lock:
            found = self._clients.get((service, role))
            if found is None:
                key = f"{SERVICE_KEY}.{name_of_role(role)}"
                found = self._clients[service, role] = self._client(service, key)
            return found

    def _client(self, service: str, key: str = SERVICE_KEY) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=self._settings.region,
            aws_access_key_id=key,
            aws_secret_access_key="secret",
            config=Config(max_pool_connections=50, retries={"total_max_attempts": 2}),
        )

    def _tell_package_state(self, package: dict[str, Any]) -> None:
        """Sends the event a change of a model package makes, for rules on the default bus."""
        kept = (
            "ModelPackageGroupName", "ModelPackageVersion", "ModelPackageArn", "ModelApprovalStatus",
            "LastModifiedTime", "UpdatedModelPackageFields",
        )  # fmt: skip
        entry = {
            "Source": "aws.sagemaker",
            "DetailType": "SageMaker Model Package State Change",
            "Detail": json.dumps({key: package[key] for key in kept if key in package}),
            "Resources": [package["ModelPackageArn"]],
        }
        try:
            self._events.put_events(Entries=[entry])
        except self._events.exceptions.ClientError as error:  # a rule has a target that moto reaches none of
            if error.response["Error"]["Code"] != "NotImplemented":
                raise

    def _look_at_container(self, container: dict[str, Any]) -> None:
        """Raises ValidationException for an image or an archive that is not there; other accounts' images are."""
        image = container["Image"]
        if (found := IMAGE.fullmatch(image)) is None:
            raise refuse(
                f"Invalid image URI {image}. Please provide a valid Amazon Elastic Container Registry path of the form "
                "<registry>.dkr.ecr.<region>.amazonaws.com/<repository>[:tag|@digest]."
            )
        if found["account"] == ACCOUNT:
            number = {"imageDigest": found["digest"]} if found["digest"] else {"imageTag": found["tag"] or "latest"}
            try:
                self._ecr.describe_images(repositoryName=found["repository"], imageIds=[number])
            except self._ecr.exceptions.ClientError:
                raise refuse(f"Requested image {image} not found.") from None
        if "ModelDataUrl" in container:
            bucket, key = split_uri(container["ModelDataUrl"])
            try:
                self.jobs.s3.head_object(Bucket=bucket, Key=key)
            except self.jobs.s3.exceptions.ClientError:
                raise refuse(f"Could not find model data at {container['ModelDataUrl']}.") from None

    @staticmethod
    def _start(server: BaseWSGIServer) -> None:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def serve(self, listener: socket.socket) -> Callable[[], None]:
        """Answers on a socket that already listens; what comes back ends that."""
        server = make_server(
            "127.0.0.1", self.port, self.gateway, threaded=True, request_handler=QuietHandler, fd=listener.fileno()
        )
        listener.close()
        self._start(server)

        def stop() -> None:
            server.shutdown()
            server.server_close()

        return stop

    def methods(self) -> dict[str, Callable[..., Any]]:
        """What the test process may call."""
        faults = {f"faults.{name}": getattr(self.faults, name) for name in FAULT_METHODS}
        return {
            **faults,
            "grant": self.gateway.permissions.grant,
            "refusal": self.refusal,
            "attach": self.gateway.permissions.attach,
            "asked": self.gateway.permissions.asked,
            "calls": lambda: list(self.gateway.calls),
            "service_calls": lambda: list(self.gateway.service_calls),
            "forget_calls": self.forget_calls,
            "serve_endpoint": self.endpoints.serve,
            "fail_endpoint": self.endpoints.fail,
            "ask_test": self.ask_test,
            "next_endpoint": self.endpoints.next_asked,
            "answer_endpoint": self.endpoints.answer,
            "troubles": lambda: list(self.gateway.troubles),
            "jobs": lambda: [job.describe() for job in self.jobs.list_all()],
        }

    def refusal(self, name: str, asked: list[Request]) -> str:
        """What the identity is told where it may not do all that was asked; else ""."""
        try:
            self.gateway.permissions.require(name, asked)
        except ServiceError as error:
            return error.message
        return ""

    def forget_calls(self) -> None:
        self.gateway.calls.clear()
        self.gateway.service_calls.clear()

    def ask_test(self) -> None:
        self.endpoints.asks_test = True

    def close(self) -> None:
        self.jobs.close()
        with contextlib.suppress(OSError):
            self._main.shutdown()
            self._main.server_close()


FAULT_METHODS = ("add", "rate", "job", "delay_logs", "hits", "remove", "clear")

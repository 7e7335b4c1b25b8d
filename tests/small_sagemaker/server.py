"""Puts the parts together in the server's process."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import boto3
from botocore.config import Config
from moto.moto_server.werkzeug_app import MotoRequestHandler
from werkzeug.serving import BaseWSGIServer, make_server

from .calls import SERVICE_KEY
from .endpoints import Endpoints
from .faults import Faults
from .gateway import Action, Gateway
from .jobs import Jobs, Settings
from .pipelines import Pipelines
from .processing import ProcessingActions
from .registry import Registry
from .tags import Tags


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
        tags = Tags()
        self.jobs = Jobs(settings, self.faults, tags, self.port, self.serve, self.gateway.troubles.append)
        self.jobs.s3, self.jobs.logs = self._client("s3"), self._client("logs")
        self._events = self._client("events")
        registry = Registry(settings.name_arn, tags, self._tell_package_state)
        self.endpoints = Endpoints(settings.region, registry, self.jobs.s3, settings.pending_s)
        pipelines = Pipelines(self.jobs, settings.name_arn, tags)
        parts: tuple[Part, ...] = (
            self.gateway.permissions,
            tags,
            registry,
            self.endpoints,
            pipelines,
            ProcessingActions(self.jobs),
        )
        for part in parts:
            self.gateway.actions |= part.actions()
        self._start(self._main)

    def _client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=self._settings.region,
            aws_access_key_id=SERVICE_KEY,
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
        self._events.put_events(Entries=[entry])

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

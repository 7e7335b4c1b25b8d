"""A target in SageMaker: an endpoint that goes from one configuration to the next.

A change is an event before it is made ("deployment begun") and after ("deployed", "deployment failed"), so that every
machine sees what is under way, and the next command finishes what was interrupted: it looks at the endpoint's state,
sends it the sample record, and keeps it or goes back. SageMaker starts the new machines beside the old ones
(blue/green) and keeps the old ones where the new do not answer /ping; whether they score as recorded is checked here,
after the switch; if they do not, the endpoint goes back.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.endpoint_leftovers import remove_leftovers
from runner.aws.endpoint_request import (
    EndpointRequest,
    ceiling,
    check_equal,
    endpoint_name,
    endpoint_request,
    machines,
    tag_list,
)
from runner.aws.endpoint_scaling import EndpointScaling
from runner.aws.own_image import serving
from runner.aws.package import ModelSource, check_image, package, signature
from runner.aws.processing.prices import Prices
from runner.aws.registered_archive import check_archive
from runner.aws.registry import SageMakerRegistry
from runner.aws.session import AwsError, Session
from runner.aws.settings import settings
from runner.errors import Refused, RemoteError, RunnerError, Tampered, UsageError
from runner.failpoint import reach
from runner.model.captured import SAMPLE_ID
from runner.model.compatibility import signature_in
from runner.model.deployment import Health, locked
from runner.model.files import check_bytes
from runner.model.sample import check_answer, sample_body
from runner.model.served import CHANGES, Deployment, at_target, of_event, recorded, write_events
from runner.model.signature import Signature
from runner.model.versions import Event, ModelVersion, Registry
from runner.records import Pipeline, SageMakerTargetSpec, utc_text

BEGUN, FAILED = "deployment begun", "deployment failed"
BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
UP = "InService"
WAIT_S = 45 * 60.0  # for an endpoint to finish a change
QUIET_S = 300.0  # without a sign of whoever began a deployment elsewhere, before another takes over
NAME_TAKEN = "already existing"  # the service says it in words only


class SageMakerTarget:
    """Implements `runner.model.deployment.Deployer`; asks nothing of AWS before one of its methods is called."""

    def __init__(
        self,
        name: str,
        spec: SageMakerTargetSpec,
        session: Session,
        pipeline: Pipeline,
        *,
        registry: Registry,
        model_folder: Callable[[ModelVersion], Path],
        root: Path,
        folder: Path,
    ) -> None:
        self.name, self.spec, self.session, self.registry = name, spec, session, registry
        self.aws, self.project = settings(pipeline), pipeline.name
        self.bucket = Bucket(session, self.aws.bucket, self.aws.prefix)
        self.endpoint = endpoint_name(pipeline.name, name, spec)
        self.scaling = EndpointScaling(session, self.endpoint, spec.scaling)
        self.model_folder, self.root, self.folder = model_folder, root, folder
        self.quiet_s = QUIET_S

    def changing(self, who: str) -> AbstractContextManager[None]:
        return locked(self.folder, self.name, who)  # on this machine; the history decides between machines

    def finish(self) -> None:
        """Complete, or take back, what was interrupted. Raises Refused where somebody is at work."""
        while unfinished := self._unfinished():
            event = unfinished[0]
            if self._alive(event, self._describe()):
                raise Refused(
                    f"{event.name}/{event.version} is being deployed to {self.name} by {event.who} since {event.at}."
                )
            change = of_event(self.registry, event)
            previous, config = str(event.data["previous"]), str(event.data["config"])
            description = self._settled()
            try:
                if description is None or not _serves(description, config):
                    raise Refused("it was interrupted")
                self._check_answer(self.registry.get(change.name, change.version))
                self.scaling.apply()
            except RunnerError as error:
                self._go_back(previous, config)
                self._record(change, FAILED, f"{error}")
            else:
                at = utc_text(description["LastModifiedTime"])
                write_events(self.registry, msgspec.structs.replace(change, at=at, place=description["EndpointArn"]))

    def last(self) -> Deployment | None:
        return recorded(self.registry, self.name)

    def deploy(self, change: Deployment, version: ModelVersion) -> Deployment:
        description = self._describe()
        status = description["EndpointStatus"] if description is not None else ""
        if status in BUSY:
            raise Refused(f"The endpoint {self.endpoint} is {status}. Try again when it has settled.")
        self._check_kind(description)
        source, files = self._source(version, upload=True)
        request = self._request(version, source, files)
        if description is not None and status == "Failed":  # was never in service
            self._go_back("", description["EndpointConfigName"])
            description = None
        previous = description["EndpointConfigName"] if description is not None else ""
        self._begin(change, request, previous)
        try:
            self._create_parts(request)
            reach("target ready")
            self._switch(request.config_name, description)
            serving = self._await_config(request.config_name)
            self._check_answer(version)
            self.scaling.apply()
        except RunnerError as error:
            self._go_back(previous, request.config_name)
            self._record(change, FAILED, str(error))
            if type(error) is not Refused:
                raise
            goes_on = f" {change.replaced} goes on." if change.replaced else ""
            raise Refused(f"{self.name}: {error}{goes_on}") from error
        self._remove_leftovers({previous, request.config_name} - {""})
        return msgspec.structs.replace(change, at=utc_text(), place=serving["EndpointArn"])

    def remove(self, change: Deployment) -> Deployment:
        description, place = self._describe(), ""
        if description is not None:
            place = description["EndpointArn"]
            self.scaling.end()
            self._go_back("", description["EndpointConfigName"])
        self._remove_leftovers(set())
        return msgspec.structs.replace(change, at=utc_text(), place=place)

    def restart(self, last: Deployment, version: ModelVersion) -> Deployment:
        del last, version
        raise UsageError(f"{self.name} is in SageMaker, which keeps it up; runner deploy NAME/VERSION --to {self.name}")

    def health(self) -> Health:
        description = self._describe()
        unfinished = self._unfinished()[:1]
        begun = "".join(f"{event.name}/{event.version} was begun by {event.who} at {event.at}" for event in unfinished)
        if description is None:
            return Health(status="down", detail=f"there is no endpoint {self.endpoint}")
        status, last = description["EndpointStatus"], self.last()
        if status in BUSY:
            return Health(status="changing", detail=begun or status)
        if status != UP or last is None:
            reason = f"{status}: {description.get('FailureReason', '')}".removesuffix(": ")
            return Health(status="unhealthy", detail=reason)
        try:
            self._check_answer(self.registry.get(last.name, last.version))
        except RunnerError as error:
            return Health(status="unhealthy", detail=f"{error}")
        return Health(status="serving", detail=begun)

    def signature(self, version: ModelVersion) -> Signature:
        if version.location:
            return signature(self.session, version)
        return signature_in(self.model_folder(version), version)

    def plan(self, version: ModelVersion) -> Sequence[str]:
        source, files = self._source(version)
        request, description, limits = self._request(version, source, files), self._describe(), self.spec.scaling
        self._check_kind(description)
        change, otherwise = f"create the endpoint {self.endpoint}", "remove it"
        if description is not None:
            change = f"update the endpoint {self.endpoint}, which has {description['EndpointConfigName']} now"
            otherwise = "go back"
        prices = Prices.read(self.root / self.aws.prices if self.aws.prices else None)
        return [
            f"make the model {request.model_name} of {source.package or source.archive}",
            f"make the configuration {request.config_name}: {machines(self.spec)}",
            change,
            f"send it its sample record and compare the answer; {otherwise} where it differs",
            *([f"scale it to {limits.requests_per_minute:g} requests a minute each"] if limits is not None else []),
            ceiling(self.spec, prices),
        ]

    # What is deployed

    def _source(
        self, version: ModelVersion, *, upload: bool = False, running: bool = False
    ) -> tuple[ModelSource, dict[str, bytes]]:
        """The model's archive and what is in it. Raises Tampered where that is not what was registered."""
        if isinstance(self.registry, SageMakerRegistry):
            return check_archive(self.registry, version, running=running)
        folder = self.model_folder(version)
        files = check_bytes(version, folder)
        archive = package(folder)
        key = f"deployed/{archive.sha256}/model.tar.gz"  # not among models/, which who deploys may not write
        if archive.folder_sha256 != version.sha256:
            raise Tampered(f"{folder} changed while it was read.")
        if upload:
            self.bucket.put(key, archive.archive)
        return ModelSource(self.bucket.address(key), archive.sha256), files

    def _request(self, version: ModelVersion, source: ModelSource, files: Mapping[str, bytes]) -> EndpointRequest:
        capture_to = self.bucket.address(f"captured/{self.name}/")
        if self.spec.serving_image is not None or not source.package:  # a package names its own
            image, key = self.spec.serving_image, f"[targets.{self.name}] serving_image"
            if image is None:
                image, key = self.aws.serving_image, "[sagemaker] serving_image"
            address = serving(self.session, self.project, self.aws, self.root, image, what=key)
            source = replace(source, package="", image=address)
        check_image(files, source.image or source.packaged_image, version.label, f"[targets.{self.name}] serving_image")
        return endpoint_request(self.project, self.name, self.spec, version, source, self.aws, capture_to=capture_to)

    def _create_parts(self, request: EndpointRequest) -> None:
        """The model and the configuration, unless they are there. Raises Refused where something else has the name."""
        about = f"model {request.model_name}"
        if not self._create("create_model", about, request.model):
            existing = self._call("describe_model", about, ModelName=request.model_name)
            check_equal(about, request.model, existing)
        about = f"endpoint configuration {request.config_name}"
        if not self._create("create_endpoint_config", about, request.config):
            existing = self._call("describe_endpoint_config", about, EndpointConfigName=request.config_name)
            check_equal(about, request.config, existing)

    def _create(self, action: str, about: str, arguments: dict[str, Any]) -> bool:
        """False where there is something of this name."""
        try:
            self._call(action, about, **arguments)
        except AwsError as error:
            if NAME_TAKEN not in str(error):
                raise
            return False
        return True

    def _check_answer(self, version: ModelVersion) -> None:
        """Raises Refused unless it scores the version's sample as recorded, by the bytes that were registered."""
        _, files = self._source(version, running=True)
        signature = msgspec.json.decode(files["signature.json"])
        about, types = f"endpoint {self.endpoint}", {"ContentType": "application/json", "Accept": "text/csv"}
        request = {"EndpointName": self.endpoint, "Body": sample_body(signature), "InferenceId": SAMPLE_ID, **types}
        reply = self.session.call("sagemaker-runtime", "invoke_endpoint", about=about, **request)
        check_answer(signature, reply["Body"].read(), version.label)

    # The endpoint

    def _describe(self) -> dict[str, Any] | None:
        return self.session.find(
            "sagemaker", "describe_endpoint", about=f"endpoint {self.endpoint}", EndpointName=self.endpoint
        )

    def _settled(self) -> dict[str, Any] | None:
        """Its description once it is not changing. Raises RemoteError where that takes too long."""
        until = time.monotonic() + WAIT_S
        while (description := self._describe()) is not None and description["EndpointStatus"] in BUSY:
            if time.monotonic() > until:
                raise RemoteError(
                    f"The endpoint {self.endpoint} is {description['EndpointStatus']} for {WAIT_S / 60:.0f} minutes. "
                    "The change continues; `runner deployments` shows its result, the next deployment finishes it."
                )
            time.sleep(self.aws.poll_s)
        return description

    def _switch(self, config: str, description: dict[str, Any] | None) -> None:
        """Start its change to the configuration; `description` is of the endpoint now."""
        about = f"endpoint {self.endpoint}"
        if description is None:
            own_tags = self.spec.tags if self.spec.tags is not None else self.aws.tags
            tags = tag_list({**own_tags, "runner:project": self.project, "runner:target": self.name})
            arguments = {"EndpointName": self.endpoint, "EndpointConfigName": config, "Tags": tags}
            self._create(
                "create_endpoint", about, arguments
            )  # of one that is there the configuration is compared later
        elif description["EndpointConfigName"] != config:
            types = {self._variant(name).get("InstanceType") for name in (config, description["EndpointConfigName"])}
            if len(types) > 1:
                self.scaling.pause()
            retained: dict[str, Any] = {}
            if self.spec.scaling is not None:  # as many machines as the load has started
                but = [{"VariantPropertyType": "DataCaptureConfig"}]
                retained = {"RetainAllVariantProperties": True, "ExcludeRetainedVariantProperties": but}
            self._call("update_endpoint", about, EndpointName=self.endpoint, EndpointConfigName=config, **retained)

    def _await_config(self, config: str) -> dict[str, Any]:
        """Its description with the configuration. Raises Refused where it kept another."""
        description = self._settled()
        if description is None or not _serves(description, config):
            status = "it is gone" if description is None else description["EndpointStatus"]
            reason = (description or {}).get("FailureReason", status)
            raise Refused(f"The endpoint {self.endpoint} did not come up with {config}: {reason}.")
        return description

    def _go_back(self, config: str, tried: str) -> None:
        """To the earlier configuration; where that is "", delete the endpoint, if it has the one that was tried."""
        description = self._settled()
        if description is not None:
            failed = description["EndpointStatus"] == "Failed"  # which can only be deleted
            if failed or (not config and description["EndpointConfigName"] == tried):
                self._call("delete_endpoint", f"endpoint {self.endpoint}", EndpointName=self.endpoint)
                description = self._settled()
        if not config:
            return
        if description is None or description["EndpointConfigName"] != config:
            self._switch(config, description)
            self._await_config(config)
        if self.scaling.paused:
            self.scaling.apply()

    def _check_kind(self, description: dict[str, Any] | None) -> None:
        """Raises Refused where it would have to change between instances and serverless, which SageMaker cannot do."""
        variant = self._variant(description["EndpointConfigName"]) if description is not None else {}
        is_serverless, asked = "ServerlessConfig" in variant, self.spec.serverless is not None
        if variant and is_serverless is not asked:
            kinds = ("instances", "serverless")
            raise Refused(
                f"The endpoint {self.endpoint} is one of {kinds[is_serverless]}, and SageMaker does not make it one of "
                f"{kinds[asked]}. Nothing was changed. Give the target another endpoint "
                f'([targets.{self.name}] endpoint = "…"), or remove it first: runner undeploy {self.name}'
            )

    def _variant(self, config: str) -> dict[str, Any]:
        """What the configuration runs on; empty where there is no such configuration."""
        about = f"configuration {config}"
        description = self.session.find("sagemaker", "describe_endpoint_config", about=about, EndpointConfigName=config)
        variant: dict[str, Any] = description["ProductionVariants"][0] if description is not None else {}
        return variant

    def _remove_leftovers(self, keep: set[str]) -> None:
        remove_leftovers(self.session, self.registry, self.name, keep=keep, begun=BEGUN)

    # What is on record

    def _begin(self, change: Deployment, request: EndpointRequest, previous: str) -> None:
        """Raises Refused where somebody else began first."""
        data = {
            "kind": change.kind,
            "config": request.config_name,
            "previous": previous,
            "replaced": change.replaced,
            **({"schema_change": change.schema_change} if change.schema_change else {}),
            "process": f"{os.getpid()}@{socket.gethostname()}",
        }
        own = self._record(change, BEGUN, change.why, data)
        # of one model the first continues; of two, neither, as nothing says which was first: clocks differ
        rivals = [event for event in self._unfinished() if event.name != own.name or event.seq < own.seq]
        if rivals:
            self._record(change, FAILED, f"{rivals[0].who} began as well")
            raise Refused(f"{rivals[0].name}/{rivals[0].version} is being deployed to {self.name} by {rivals[0].who}.")

    def _unfinished(self) -> list[Event]:
        """The deployments that were begun and have not ended, in the order in which to finish them."""
        events = at_target(self.registry, self.name, (*CHANGES, BEGUN, FAILED))
        ended = {event.data.get("deployment") for event in events if event.kind != BEGUN}
        begun = (event for event in events if event.kind == BEGUN and event.data["deployment"] not in ended)
        return sorted(begun, key=lambda event: (event.name, event.seq))

    def _alive(self, event: Event, description: dict[str, Any] | None) -> bool:
        """Whether whoever began it may still be at work."""
        pid, _, host = str(event.data["process"]).partition("@")
        if host == socket.gethostname() and (int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists()):
            return False
        if description is not None and description["EndpointStatus"] in BUSY:
            return True
        changed = utc_text(description["LastModifiedTime"]) if description is not None else ""
        quiet = datetime.now(UTC) - datetime.fromisoformat(max(event.at, changed))
        return quiet.total_seconds() < self.quiet_s

    def _record(self, change: Deployment, kind: str, why: str, data: dict[str, Any] | None = None) -> Event:
        data = {"target": self.name, "deployment": change.id, **(data or {})}
        return self.registry.record(change.name, change.version, kind, who=change.who, why=why, data=data)

    def _call(self, action: str, about: str, **arguments: Any) -> dict[str, Any]:
        return self.session.call("sagemaker", action, about=about, **arguments)


def _serves(description: dict[str, Any], config: str) -> bool:
    return bool(description["EndpointStatus"] == UP and description["EndpointConfigName"] == config)

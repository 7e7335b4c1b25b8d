"""A target in SageMaker: an endpoint that goes from one configuration to the next.

A change is an event before it is made ("deployment begun") and after ("deployed", "deployment failed"), so that every
machine sees what is under way, and the next command finishes what somebody died in: it looks at what the endpoint has
come to, sends it the sample record, and keeps it or goes back. SageMaker brings up the new machines beside the old
ones (blue/green) and keeps the old ones where the new do not answer /ping; whether they score as recorded is asked
here, after the switch, and answered by going back.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.endpoint_leftovers import remove_leftovers
from runner.aws.endpoint_request import (
    Source,
    Wish,
    ceiling,
    endpoint_name,
    machines,
    same,
    scaling,
    wish,
)
from runner.aws.endpoint_scaling import Scaling
from runner.aws.own_image import serving
from runner.aws.package import package, signature
from runner.aws.processing.prices import Prices
from runner.aws.registered_archive import check_archive
from runner.aws.registry import SageMakerRegistry
from runner.aws.session import AwsError, Session
from runner.aws.settings import settings
from runner.errors import Refused, RemoteError, RunnerError, Tampered, UsageError
from runner.failpoint import reach
from runner.model.approval import check_bytes
from runner.model.compatibility import signature_in
from runner.model.deployment import Health, locked
from runner.model.sample import check_answer, sample_body
from runner.model.served import CHANGES, Deployment, at_target, of_event, recorded, written
from runner.model.signature import Signature
from runner.model.versions import Event, ModelVersion, Registry
from runner.records import Pipeline, Target

BEGUN, FAILED = "deployment begun", "deployment failed"
BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
UP = "InService"
WAIT_S = 45 * 60.0  # for an endpoint to come to what it was told
QUIET_S = 300.0  # without a sign of whoever began a deployment elsewhere, before another takes over
ABSENT = ("Could not find", "does not exist")  # the service says it in words only
TAKEN = "already existing"


class SageMakerTarget:
    """Implements `runner.model.deployment.Deployer`; asks nothing of AWS before one of its methods is called."""

    def __init__(
        self,
        name: str,
        spec: Target,
        session: Session,
        pipeline: Pipeline,
        *,
        registry: Registry,
        model_folder: Callable[[ModelVersion], Path],
        root: Path,
        folder: Path,
        quiet_s: float = QUIET_S,
    ) -> None:
        self.name, self.spec, self.session, self.registry = name, spec, session, registry
        self.chosen, self.project = settings(pipeline), pipeline.name
        self.bucket = Bucket(session, self.chosen.bucket, self.chosen.prefix)
        self.endpoint = endpoint_name(pipeline.name, name, spec)
        self.scaling = Scaling(session, self.endpoint, spec)
        self.model_folder, self.root, self.folder, self.quiet_s = model_folder, root, folder, quiet_s

    def changing(self, who: str) -> AbstractContextManager[None]:
        return locked(self.folder, self.name, who)  # on this machine; the history decides between machines

    def finish(self) -> None:
        """Complete, or take back, what somebody died in. Raises Refused where somebody is at work."""
        while (event := self._pending()) is not None:
            found = self._describe()
            if self._alive(event, found):
                raise Refused(
                    f"{event.name}/{event.version} is being deployed to {self.name} by {event.who} since {event.at}."
                )
            change = of_event(self.registry, event)
            previous, config = str(event.data["previous"]), str(event.data["config"])
            found = self._settled()
            try:
                if found is None or found["EndpointStatus"] != UP or found["EndpointConfigName"] != config:
                    raise Refused("it was interrupted")
                self._prove(self.registry.get(change.name, change.version))
                self.scaling.apply()
            except RunnerError as error:
                self._back(previous, config)
                self._record(change, FAILED, f"{error}")
            else:
                at = _utc(found["LastModifiedTime"])
                made = msgspec.structs.replace(change, at=at, place=found["EndpointArn"])
                written(self.registry, made)

    def last(self) -> Deployment | None:
        return recorded(self.registry, self.name)

    def deploy(self, change: Deployment, version: ModelVersion) -> Deployment:
        found = self._describe()
        if found is not None and found["EndpointStatus"] in BUSY:
            raise Refused(f"The endpoint {self.endpoint} is {found['EndpointStatus']}. Try again when it has settled.")
        self._check_kind(found)
        source, _ = self._source(version, upload=True)
        wanted = self._wish(version, source)
        if found is not None and found["EndpointStatus"] == "Failed":  # was never in service
            self._back("", found["EndpointConfigName"])
            found = None
        previous = found["EndpointConfigName"] if found is not None else ""
        self._begin(change, wanted, previous)
        try:
            self._make(wanted)
            reach("target ready")
            self._go(wanted.config_name, found)
            now = self._arrived(wanted.config_name)
            self._prove(version)
            self.scaling.apply()
        except RunnerError as error:
            self._back(previous, wanted.config_name)
            self._record(change, FAILED, str(error))
            if type(error) is not Refused:
                raise
            goes_on = f" {change.replaced} goes on." if change.replaced else ""
            raise Refused(f"{self.name}: {error}{goes_on}") from error
        self._tidy({previous, wanted.config_name} - {""})
        return msgspec.structs.replace(change, at=_now(), place=now["EndpointArn"])

    def remove(self, change: Deployment) -> Deployment:
        found = self._describe()
        if found is not None:
            self.scaling.end()
            self._back("", found["EndpointConfigName"])
        self._tidy(set())
        return msgspec.structs.replace(change, at=_now(), place=found["EndpointArn"] if found is not None else "")

    def restart(self, last: Deployment, version: ModelVersion) -> Deployment:
        del last, version
        raise UsageError(f"{self.name} is in SageMaker, which keeps it up; runner deploy NAME/VERSION --to {self.name}")

    def health(self) -> Health:
        found, event = self._describe(), self._pending()
        begun = f"{event.name}/{event.version} was begun by {event.who} at {event.at}" if event is not None else ""
        if found is None:
            return Health(status="down", said=f"there is no endpoint {self.endpoint}")
        if found["EndpointStatus"] in BUSY:
            return Health(status="changing", said=begun or found["EndpointStatus"])
        last = self.last()
        if found["EndpointStatus"] != UP or last is None:
            said = f"{found['EndpointStatus']}: {found.get('FailureReason', '')}".removesuffix(": ")
            return Health(status="unhealthy", said=said)
        try:
            self._prove(self.registry.get(last.name, last.version))
        except RunnerError as error:
            return Health(status="unhealthy", said=f"{error}")
        return Health(status="serving", said=begun)

    def signature(self, version: ModelVersion) -> Signature:
        if version.location:
            return signature(self.session, version)
        return signature_in(self.model_folder(version), version)

    def plan(self, version: ModelVersion) -> Sequence[str]:
        source, _ = self._source(version, upload=False)
        wanted, found = self._wish(version, source), self._describe()
        self._check_kind(found)
        made = scaling(self.endpoint, self.spec)
        doing = "create" if found is None else "update"
        prices = Prices.read(self.root / self.chosen.prices if self.chosen.prices else None)
        return [
            f"make the model {wanted.model_name} of {source.package or source.archive}",
            f"make the configuration {wanted.config_name}: {machines(self.spec)}",
            f"{doing} the endpoint {self.endpoint}"
            + (f", which has {found['EndpointConfigName']} now" if found is not None else ""),
            "send it its sample record and compare the answer"
            + ("; go back where it differs" if found is not None else "; remove it where it differs"),
            *([f"scale it to {self.spec.scaling.requests_per_minute:g} requests a minute each"] if made and self.spec.scaling else []),
            ceiling(self.spec, prices),
        ]  # fmt: skip

    # What is deployed

    def _source(self, version: ModelVersion, *, upload: bool) -> tuple[Source, dict[str, bytes]]:
        """The model's archive and what is in it. Raises Tampered where that is not what was registered."""
        if isinstance(self.registry, SageMakerRegistry):
            return check_archive(self.registry, version)
        folder = self.model_folder(version)
        files = check_bytes(version, folder)
        made = package(folder)
        key = f"deployed/{made.sha256}/model.tar.gz"  # not among models/, which who deploys may not write
        if made.folder_sha256 != version.sha256:
            raise Tampered(f"{folder} changed while it was read.")
        if upload:
            self.bucket.put(key, made.archive)
        return Source(self.bucket.address(key), made.sha256, "", ""), files

    def _wish(self, version: ModelVersion, source: Source) -> Wish:
        capture_to = self.bucket.address(f"captured/{self.name}/")
        if self.spec.serving_image is not None or not source.package:  # a package names its own
            asked, what = self.spec.serving_image, f"[targets.{self.name}] serving_image"
            if asked is None:
                asked, what = self.chosen.serving_image, "[sagemaker] serving_image"
            image = serving(self.session, self.project, self.chosen, self.root, asked, what=what)
            source = replace(source, package="", image=image)
        return wish(self.project, self.name, self.spec, version, source, self.chosen, capture_to=capture_to)

    def _make(self, wanted: Wish) -> None:
        """The model and the configuration, unless they are there. Raises Refused where something else has the name."""
        about = f"model {wanted.model_name}"
        if not self._made("create_model", about, wanted.model):
            found = self._call("describe_model", about, ModelName=wanted.model_name)
            same(about, wanted.model, found)
        about = f"endpoint configuration {wanted.config_name}"
        if not self._made("create_endpoint_config", about, wanted.config):
            found = self._call("describe_endpoint_config", about, EndpointConfigName=wanted.config_name)
            same(about, wanted.config, found)

    def _made(self, action: str, about: str, arguments: dict[str, Any]) -> bool:
        try:
            self._call(action, about, **arguments)
        except AwsError as error:
            if TAKEN not in str(error):
                raise
            return False
        return True

    def _prove(self, version: ModelVersion) -> None:
        """The endpoint scores the version's sample as recorded, from the bytes that were registered."""
        _, files = self._source(version, upload=False)
        signature = msgspec.json.decode(files["signature.json"])
        reply = self.session.call(
            "sagemaker-runtime", "invoke_endpoint", about=f"endpoint {self.endpoint}", EndpointName=self.endpoint,
            Body=sample_body(signature), ContentType="application/json", Accept="text/csv",
        )  # fmt: skip
        check_answer(signature, reply["Body"].read(), version.label)

    # The endpoint

    def _describe(self) -> dict[str, Any] | None:
        try:
            return self._call("describe_endpoint", f"endpoint {self.endpoint}", EndpointName=self.endpoint)
        except AwsError as error:
            if any(words in str(error) for words in ABSENT):
                return None
            raise

    def _settled(self) -> dict[str, Any] | None:
        """Once it is no longer on its way somewhere. Raises RemoteError where that takes too long."""
        until = time.monotonic() + WAIT_S
        while (found := self._describe()) is not None and found["EndpointStatus"] in BUSY:
            if time.monotonic() > until:
                raise RemoteError(
                    f"The endpoint {self.endpoint} is {found['EndpointStatus']} for {WAIT_S / 60:.0f} minutes. "
                    "It goes on; `runner deployments` says what came of it, the next deployment finishes it."
                )
            time.sleep(self.chosen.poll_s)
        return found

    def _go(self, config: str, found: dict[str, Any] | None) -> None:
        """Tell it to go to the configuration."""
        about = f"endpoint {self.endpoint}"
        if found is None:
            tags = [{"Key": "runner:project", "Value": self.project}, {"Key": "runner:target", "Value": self.name}]
            chosen = self.spec.tags if self.spec.tags is not None else self.chosen.tags
            tags += [{"Key": key, "Value": value} for key, value in sorted(chosen.items())]
            wanted = {"EndpointName": self.endpoint, "EndpointConfigName": config, "Tags": tags}
            self._made("create_endpoint", about, wanted)  # else it is looked at whether what is there has this one
        elif found["EndpointConfigName"] != config:
            types = {self._variant(one).get("InstanceType") for one in (config, found["EndpointConfigName"])}
            if len(types) > 1:
                self.scaling.pause()
            kept: dict[str, Any] = {}
            if self.spec.scaling is not None:  # as many machines as the load has brought up
                kept = {
                    "RetainAllVariantProperties": True,
                    "ExcludeRetainedVariantProperties": [{"VariantPropertyType": "DataCaptureConfig"}],
                }
            self._call("update_endpoint", about, EndpointName=self.endpoint, EndpointConfigName=config, **kept)

    def _arrived(self, config: str) -> dict[str, Any]:
        """Raises Refused where it did not get there, and is where it was."""
        found = self._settled()
        if found is None or found["EndpointStatus"] != UP or found["EndpointConfigName"] != config:
            said = found.get("FailureReason", found["EndpointStatus"]) if found is not None else "it is gone"
            raise Refused(f"The endpoint {self.endpoint} did not come up with {config}: {said}.")
        return found

    def _back(self, config: str, tried: str) -> None:
        """To the configuration of before; "" is none, and takes away an endpoint of the one that was tried, no other."""
        found = self._settled()
        failed = found is not None and found["EndpointStatus"] == "Failed"  # which can only be deleted
        if found is not None and (failed or (not config and found["EndpointConfigName"] == tried)):
            self._call("delete_endpoint", f"endpoint {self.endpoint}", EndpointName=self.endpoint)
            found = self._settled()
        if config and (found is None or found["EndpointConfigName"] != config):
            self._go(config, found)
            self._arrived(config)
        if config and self.scaling.paused:
            self.scaling.apply()

    def _check_kind(self, found: dict[str, Any] | None) -> None:
        """Raises Refused where it would have to change between instances and serverless, which SageMaker does not do."""
        variant = self._variant(found["EndpointConfigName"]) if found is not None else {}
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
        try:
            found = self._call("describe_endpoint_config", f"configuration {config}", EndpointConfigName=config)
        except AwsError as error:
            if any(words in str(error) for words in ABSENT):
                return {}
            raise
        made: dict[str, Any] = found["ProductionVariants"][0]
        return made

    def _tidy(self, keep: set[str]) -> None:
        remove_leftovers(self.session, self.registry, self.name, keep=keep, begun=BEGUN)

    # What is on record

    def _begin(self, change: Deployment, wanted: Wish, previous: str) -> None:
        """Raises Refused where somebody else began first."""
        data = {
            "kind": change.kind, "config": wanted.config_name, "previous": previous, "replaced": change.replaced,
            **({"schema_change": change.schema_change} if change.schema_change else {}),
            "process": f"{os.getpid()}@{socket.gethostname()}",
        }  # fmt: skip
        own = self._record(change, BEGUN, change.why, data)
        # of one model the first goes on; of two, neither, as nothing says which was first: clocks differ
        rivals = [one for one in self._open() if one.name != own.name or one.seq < own.seq]
        if rivals:
            self._record(change, FAILED, f"{rivals[0].who} began as well")
            raise Refused(f"{rivals[0].name}/{rivals[0].version} is being deployed to {self.name} by {rivals[0].who}.")

    def _pending(self) -> Event | None:
        """The deployment that was begun and has not ended; of several, the one to finish first."""
        return next(iter(self._open()), None)

    def _open(self) -> list[Event]:
        events = at_target(self.registry, self.name, (*CHANGES, BEGUN, FAILED))
        ended = {event.data.get("deployment") for event in events if event.kind != BEGUN}
        found = [event for event in events if event.kind == BEGUN and event.data["deployment"] not in ended]
        return sorted(found, key=lambda event: (event.name, event.seq))

    def _alive(self, event: Event, found: dict[str, Any] | None) -> bool:
        """Whether whoever began it may still be at work."""
        pid, _, host = str(event.data["process"]).partition("@")
        if host == socket.gethostname() and (int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists()):
            return False
        if found is not None and found["EndpointStatus"] in BUSY:
            return True
        changed = _utc(found["LastModifiedTime"]) if found is not None else ""
        quiet = datetime.now(UTC) - datetime.fromisoformat(max(event.at, changed))
        return quiet.total_seconds() < self.quiet_s

    def _record(self, change: Deployment, kind: str, why: str, data: dict[str, Any] | None = None) -> Event:
        more = {"target": self.name, "deployment": change.id, **(data or {})}
        return self.registry.record(change.name, change.version, kind, who=change.who, why=why, data=more)

    def _call(self, action: str, about: str, **arguments: Any) -> dict[str, Any]:
        return self.session.call("sagemaker", action, about=about, **arguments)


def _now() -> str:
    return _utc(datetime.now(UTC))


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

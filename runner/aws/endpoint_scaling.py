"""How many machines an endpoint has: registered for scaling as its target says, or not at all."""

from __future__ import annotations

from runner.aws.endpoint_request import DIMENSION, resource, scaling
from runner.aws.session import Session
from runner.records import SageMakerTargetSpec

SERVICE = "application-autoscaling"
WHAT = {"ServiceNamespace": "sagemaker", "ScalableDimension": DIMENSION}


class Scaling:
    """`paused` is whether this object has ended a scaling that is to go on."""

    def __init__(self, session: Session, endpoint: str, spec: SageMakerTargetSpec) -> None:
        self._session, self._endpoint, self._made = session, endpoint, scaling(endpoint, spec)
        self._about = f"scaling of {endpoint}"
        self.paused = False

    def apply(self) -> None:
        """As the target says; what is the same already stays."""
        if self._made is None:
            self.end()
        else:
            target, policy = self._made
            self._session.call(SERVICE, "register_scalable_target", about=self._about, **target)
            self._session.call(SERVICE, "put_scaling_policy", about=self._about, **policy)
        self.paused = False

    def pause(self) -> None:
        """SageMaker changes the instance type of no endpoint that is registered: end it, update, register again."""
        self.paused = self.end() or self.paused

    def end(self) -> bool:
        """Whether there was any."""
        ids = [resource(self._endpoint)]
        there = self._session.call(SERVICE, "describe_scalable_targets", about=self._about, ResourceIds=ids, **WHAT)
        if not there.get("ScalableTargets"):
            return False
        self._session.call(SERVICE, "deregister_scalable_target", about=self._about, ResourceId=ids[0], **WHAT)
        return True

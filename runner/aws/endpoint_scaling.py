"""How many machines an endpoint has: registered for scaling as its target says, or not at all."""

from __future__ import annotations

from typing import Any

from runner.aws.endpoint_request import VARIANT
from runner.aws.session import Session
from runner.records import Scaling

SCALE_OUT_S, SCALE_IN_S = 60, 300
SUBJECT = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}


class EndpointScaling:
    """`paused` is whether this object has ended a scaling that is to be registered again."""

    def __init__(self, session: Session, endpoint: str, spec: Scaling | None) -> None:
        self._session, self._endpoint, self._spec = session, endpoint, spec
        self._resource = f"endpoint/{endpoint}/variant/{VARIANT}"
        self.paused = False

    def apply(self) -> None:
        """Register what the target says, or end a scaling where it says nothing. Idempotent."""
        if self._spec is None:
            self.end()
        else:
            limits = {"MinCapacity": self._spec.min, "MaxCapacity": self._spec.max}
            self._call("register_scalable_target", ResourceId=self._resource, **limits)
            self._call(
                "put_scaling_policy",
                ResourceId=self._resource,
                PolicyName=f"{self._endpoint}-requests",
                PolicyType="TargetTrackingScaling",
                TargetTrackingScalingPolicyConfiguration={
                    "TargetValue": self._spec.requests_per_minute,
                    "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
                    "ScaleInCooldown": SCALE_IN_S,
                    "ScaleOutCooldown": SCALE_OUT_S,
                },
            )
        self.paused = False

    def pause(self) -> None:
        """SageMaker changes the instance type of no endpoint that is registered: end it, update, register again."""
        self.paused = self.end() or self.paused

    def end(self) -> bool:
        """Whether there was any."""
        registered = self._call("describe_scalable_targets", ResourceIds=[self._resource]).get("ScalableTargets")
        if registered:
            self._call("deregister_scalable_target", ResourceId=self._resource)
        return bool(registered)

    def _call(self, action: str, **arguments: Any) -> dict[str, Any]:
        about = f"scaling of {self._endpoint}"
        return self._session.call("application-autoscaling", action, about=about, **SUBJECT, **arguments)

"""Calls to AWS with patience: what is transient is tried again for two minutes, what is not fails at once with a
sentence that names the action, the resource and the remedy.

botocore's own retries are off (three attempts within half a second give up far too early). All clients of a process
share one pace: a throttled call slows every thread down, so that fifty waiting steps do not knock in turn.
"""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

from runner.errors import RemoteError

PATIENCE_S = 150.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
SLOWEST_GAP_S = 1.0
THROTTLED = (
    "Throttling", "ThrottlingException", "ThrottledException", "TooManyRequestsException", "RequestLimitExceeded",
    "SlowDown", "RequestThrottled", "RequestThrottledException", "429",
)  # fmt: skip
TRANSIENT = (
    "InternalError", "InternalFailure", "InternalServerError", "InternalServerException", "ServiceUnavailable",
    "ServiceUnavailableException", "RequestTimeout", "500", "502", "503", "504", "OperationAborted",
    "ConditionalRequestConflict",
)  # fmt: skip
# and all codes with "expired" in them
EXPIRED = ("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch")
DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden")
QUOTA = ("ResourceLimitExceeded", "LimitExceededException", "QuotaExceeded")
ABSENT = ("404", "NoSuchKey", "NoSuchBucket", "NotFound", "ResourceNotFound", "ResourceNotFoundException")
ABSENT_WORDS = ("Could not find", "does not exist", "not found")  # where a service's code does not tell


class AwsError(RemoteError):
    """A call that failed for good. `code` is the service's own."""

    headline = "AWS refused or failed"

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def absent(self) -> bool:
        """Whether there is no such resource."""
        return self.code in ABSENT or any(words in str(self) for words in ABSENT_WORDS)


class Session:
    """The clients of one region. Safe for many threads."""

    def __init__(
        self,
        region: str | None = None,
        *,
        patience_s: float = PATIENCE_S,
        anonymous: bool = False,
        kms_key: str | None = None,
    ) -> None:
        """Raises AwsError where there are no credentials or no region; `anonymous` does without, for public buckets.

        `kms_key` encrypts every object that is written.
        """
        self._session = _fresh(region)
        if self._session.region_name is None and anonymous:
            self._session = _fresh("us-east-1")
        self._unsigned = anonymous and self._session.get_credentials() is None
        if self._session.region_name is None:
            raise AwsError(
                'No AWS region is set. Write [sagemaker] region = "…" in pipeline.toml, or set AWS_REGION.',
                code="NoRegion",
            )
        if self._session.get_credentials() is None and not self._unsigned:
            raise AwsError(
                "There are no AWS credentials here. Log in (`aws sso login`, `aws configure`) or set AWS_PROFILE.",
                code="NoCredentials",
            )
        self.region: str = self._session.region_name
        self.patience_s = patience_s
        self.kms_key = kms_key
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._gap_s = 0.0  # between two calls to one service's control plane, once it has throttled
        self._next = 0.0

    def regions(self, service: str) -> set[str]:
        """Where botocore knows the service to be."""
        partitions = ("aws", "aws-cn", "aws-us-gov")
        return {name for part in partitions for name in self._session.get_available_regions(service, part)}

    def client(self, service: str) -> Any:
        with self._lock:
            if service not in self._clients:
                from botocore import UNSIGNED
                from botocore.config import Config

                settings = Config(
                    retries={"total_max_attempts": 1},
                    connect_timeout=min(10, max(1, self.patience_s)),
                    read_timeout=60,
                    max_pool_connections=64,
                )
                if self._unsigned:
                    settings = settings.merge(Config(signature_version=UNSIGNED))
                self._clients[service] = self._session.client(service, config=settings)
            return self._clients[service]

    def call(self, service: str, action: str, *, about: str, **arguments: Any) -> dict[str, Any]:
        """The reply of `action` (botocore's method name). `about` is the resource, for the sentence of an error.

        Raises AwsError: after `patience_s` for what is transient, at once for everything else.
        """
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.exceptions import ConnectionError as BotocoreConnectionError

        method = getattr(self.client(service), action)
        began, wait_s = time.monotonic(), FIRST_WAIT_S
        cause: Exception
        while True:
            self._take_turn(service)
            try:
                reply: dict[str, Any] = method(**arguments)
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                if code in THROTTLED:
                    self._slow_down(service)
                elif code not in TRANSIENT and not (status >= 500 and code not in QUOTA):
                    raise AwsError(_sentence(action, about, code, error), code=code) from error
                cause, outcome = error, f"was answered {code}"
            except BotoCoreError as error:
                code = type(error).__name__
                # else the request may have arrived, or may arrive when it is repeated
                if not isinstance(error, BotocoreConnectionError | HTTPClientError):
                    raise AwsError(_sentence(action, about, code, error), code=code) from error
                cause, outcome = error, f"had no connection ({code})"
            else:
                self._speed_up(service)
                return reply
            if time.monotonic() - began + wait_s > self.patience_s:
                raise AwsError(
                    f"{about}: {action} {outcome} for {self.patience_s:.0f} s. "
                    "What was started goes on; try again later, for example with `runner resume latest`.",
                    code=code,
                ) from cause
            time.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)

    def find(self, service: str, action: str, *, about: str, **arguments: Any) -> dict[str, Any] | None:
        """As `call`; None where there is no such resource."""
        try:
            return self.call(service, action, about=about, **arguments)
        except AwsError as error:
            if error.absent:
                return None
            raise

    def pages(self, service: str, action: str, *, about: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Each reply of an action that lists, until there are no more."""
        sent, received = ("ContinuationToken", "NextContinuationToken") if service == "s3" else ("NextToken",) * 2
        while True:
            page = self.call(service, action, about=about, **arguments)
            yield page
            if not page.get(received):
                return
            arguments[sent] = page[received]

    def _take_turn(self, service: str) -> None:
        if service == "s3":
            return
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + self._gap_s
        time.sleep(at - now)

    def _slow_down(self, service: str) -> None:
        if service != "s3":
            with self._lock:
                self._gap_s = min(SLOWEST_GAP_S, max(0.05, self._gap_s * 1.5))

    def _speed_up(self, service: str) -> None:
        if service != "s3" and self._gap_s:
            with self._lock:
                self._gap_s = self._gap_s * 0.97 if self._gap_s > 0.02 else 0.0


def _fresh(region: str | None) -> Any:
    """A session that reads credentials and settings anew, and has the services' models that another one has read."""
    import boto3  # 0.25 s, and only where AWS is asked
    import botocore.session

    core = botocore.session.Session()
    core.register_component("data_loader", _models())
    return boto3.Session(region_name=region, botocore_session=core)


@functools.cache
def _models() -> Any:
    """Reading SageMaker's and S3's models takes 0.2 s for each loader."""
    import botocore.session

    return botocore.session.Session().get_component("data_loader")


def domain(region: str) -> str:
    """What the names of AWS's services end with in the region."""
    return "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"


def _sentence(action: str, about: str, code: str, error: Exception) -> str:
    response = getattr(error, "response", None)
    message = response.get("Error", {}).get("Message", "") if isinstance(response, dict) else str(error)
    if code in EXPIRED or "expired" in code.lower():
        remedy = "The credentials are not valid any more: log in again, then `runner resume latest`."
    elif code in DENIED:
        permission = "".join(part.capitalize() for part in action.split("_"))
        remedy = (
            f"Grant the caller {permission} on it; infra/ has the policies, `runner doctor --on sagemaker` checks them."
        )
    elif code in QUOTA:
        remedy = "Ask for a higher quota in Service Quotas, or choose another instance in [sagemaker] instance."
    elif code in ABSENT:
        remedy = "Check the name and the region."
    else:
        remedy = ""
    return " ".join(f"{about}: {action} was answered {code}: {message.strip()} {remedy}".split())

"""The double as a test sees it: starts the server's process, and asks it things."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import secrets
import select
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from support.forkers import Forker

from .calls import CLIENT_KEY, Call
from .container import check_permitted
from .control import Control
from .images import Image
from .jobs import Settings
from .policies import Request

END_S = 15
# gets what CreateEndpoint or UpdateEndpoint brings, gives the address of the server for it; raising makes it Failed
OnEndpoint = Callable[[dict[str, Any]], str | None]


# the process that all servers of these tests are forks of (__main__.py)
FORKER = Forker(
    "PYTEST_SMALL_SAGEMAKER", (sys.executable, "-m", str(__package__).rpartition(".")[2]), str(Path(__file__).parents[1]),
    {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
)  # fmt: skip


class RemoteFaults:
    """`Faults` of the server, method by method; see there."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def add(
        self,
        action: str,
        error: str = "",
        *,
        times: int | None = 1,
        skip: int = 0,
        match: str | Mapping[str, str] | None = None,
        caller: str | None = None,
        message: str | None = None,
        status: int | None = None,
        delay_s: float = 0.0,
    ) -> int:
        number: int = self._control.call(
            "faults.add", action, error, times=times, skip=skip, match=match, caller=caller, message=message,
            status=status, delay_s=delay_s,
        )  # fmt: skip
        return number

    def rate(self, actions: Sequence[str] | str, per_second: float) -> None:
        self._control.call("faults.rate", actions, per_second)

    def job(self, name_contains: str, fail: str, *, times: int | None = 1, after_s: float = 0.0) -> None:
        self._control.call("faults.job", name_contains, fail, times=times, after_s=after_s)

    def interrupt(
        self, name_contains: str, at_line: str = "", *, warned: bool = False, after_s: float = 0.0, times: int = 1
    ) -> None:
        self._control.call("faults.interrupt", name_contains, at_line, warned=warned, after_s=after_s, times=times)

    def delay_logs(self, seconds: float, *, name_contains: str = "") -> None:
        self._control.call("faults.delay_logs", seconds, name_contains=name_contains)

    def hits(self, number: int) -> int:
        hits: int = self._control.call("faults.hits", number)
        return hits

    def remove(self, number: int) -> None:
        self._control.call("faults.remove", number)

    def clear(self) -> None:
        self._control.call("faults.clear")


class SmallSageMaker:
    """A small SageMaker with S3, Logs, IAM, STS, ECR and EventBridge beside it, on a port of this machine.

    `on_endpoint` is called, in a thread, when an endpoint is created or updated. `images` names an Image for each image address, "*" for every other one; without any, a container has only the
    system's programs. `quotas` limits the instances
    of a type that processing jobs have at a time (of training jobs: by the quota's name), `roles` lists the roles that exist (None: all do).
    Raises NotPermittedError where this machine cannot run containers.
    """

    def __init__(
        self,
        images: Mapping[str, Image] | None = None,
        *,
        region: str = "eu-west-1",
        pending_s: float = 0.05,
        grace_s: float = 3.0,
        poll_s: float = 0.1,
        quotas: Mapping[str, int] | None = None,
        roles: Sequence[str] | None = None,
        on_endpoint: OnEndpoint | None = None,
    ) -> None:
        known = {"*": Image("/usr")} if images is None else dict(images)
        check_permitted(known.values())
        settings = Settings(
            known, region, pending_s, grace_s, poll_s, dict(quotas or {}), tuple(roles) if roles is not None else None
        )
        self.region = region
        self._closing = threading.Event()
        self._closed = False
        self._clients: dict[tuple[str, str], Any] = {}
        self._answers: threading.Thread | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="small-sagemaker-"))
        address, key = str(self._folder / "control"), secrets.token_bytes(16)
        asked = {
            "folder": str(self._folder),
            "control": address,
            "key": base64.b64encode(key).decode(),
            "settings": base64.b64encode(pickle.dumps(settings)).decode(),
        }
        errors = self._folder / "stderr"
        (stdin, self._stdin), (self._stdout, stdout) = os.pipe(), os.pipe()
        with open(errors, "w") as stderr:
            FORKER.ask(json.dumps(asked).encode(), [stdin, stdout, stderr.fileno()])
        os.close(stdin)
        os.close(stdout)
        said = self._read_line()
        if not said:
            reason = errors.read_text()
            self.close()
            raise RuntimeError(f"the server did not start: {reason}")
        started = json.loads(said)
        self.url: str = started["url"]
        self._pid: int = started["pid"]
        self._control = Control(address, key)
        self.faults = RemoteFaults(self._control)
        if on_endpoint is not None:
            self._control.call("ask_test")
            self._answers = threading.Thread(target=self._answer_endpoints, args=(on_endpoint,), daemon=True)
            self._answers.start()

    def _read_line(self) -> bytes:
        """What the server says of itself; nothing where it has ended."""
        said = b""
        while not said.endswith(b"\n") and (part := os.read(self._stdout, 4096)):
            said += part
        return said

    @property
    def environment(self) -> dict[str, str]:
        """What a client's process needs, over whatever else it has; it calls as the identity `caller`."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": f"{CLIENT_KEY}.caller",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str, *, access_key: str = CLIENT_KEY, **named: Any) -> Any:
        """A boto3 client that speaks to this server, as the account's administrator unless the key names somebody."""
        import boto3  # takes half a second, and many tests need none

        made = self._clients.get((service, access_key)) if not named else None
        if made is None:
            made = boto3.client(
                service,
                endpoint_url=self.url,
                region_name=self.region,
                aws_access_key_id=access_key,
                aws_secret_access_key="secret",
                **named,
            )
        if not named:
            self._clients[service, access_key] = made
        return made

    def grant(self, name: str, statements: Sequence[Mapping[str, Any]], arn: str | None = None) -> None:
        """Gives the identity `name` these statements and no others; one that was given none may do nothing."""
        self._control.call("grant", name, list(statements), arn)

    def attach(self, identities: Mapping[str, tuple[str, Sequence[Mapping[str, Any]]]]) -> None:
        """As `grant`, for several: their ARNs and statements."""
        self._control.call("attach", identities)

    def asked(self, name: str) -> list[Request]:
        """Every different thing that was asked of the identity's policies, by its calls and for it."""
        found: list[Request] = self._control.call("asked", name)
        return found

    def require(self, name: str, asked: Sequence[Request]) -> None:
        """For what a service that is not here does as a role. Raises PermissionError with what the service would say."""
        if said := self._control.call("refusal", name, list(asked)):
            raise PermissionError(said)

    @property
    def calls(self) -> list[Call]:
        """Every API call of clients and containers, in the order of their arrival."""
        found: list[Call] = self._control.call("calls")
        return found

    @property
    def service_calls(self) -> list[Call]:
        """The calls the service made itself: inputs, outputs, logs."""
        found: list[Call] = self._control.call("service_calls")
        return found

    def forget_calls(self) -> None:
        self._control.call("forget_calls")

    def jobs(self) -> list[dict[str, Any]]:
        """What DescribeProcessingJob says of each job, without a call being recorded."""
        found: list[dict[str, Any]] = self._control.call("jobs")
        return found

    def serve_endpoint(self, name: str, url: str) -> None:
        """Makes InvokeEndpoint of `name` post to `url`/invocations."""
        self._control.call("serve_endpoint", name, url)

    def fail_endpoint(self, name: str, reason: str) -> None:
        """Makes the next creation or update of the endpoint fail with this reason."""
        self._control.call("fail_endpoint", name, reason)

    def troubles(self) -> list[str]:
        """Tracebacks of the double itself; leaving `with` raises RuntimeError where there are any."""
        found: list[str] = self._control.call("troubles")
        return found

    def _answer_endpoints(self, on_endpoint: OnEndpoint) -> None:
        with contextlib.suppress(EOFError, OSError):
            while not self._closing.is_set():
                asked = self._control.call("next_endpoint", 0.2)
                if asked is None:
                    continue
                try:
                    url, reason = on_endpoint(asked), None
                except Exception as error:
                    url, reason = None, f"{type(error).__name__}: {error}"
                self._control.call("answer_endpoint", asked["EndpointName"], url, reason)

    def close(self) -> None:
        """Ends every job and the server, and removes their folders. May be called twice."""
        self._closing.set()
        if self._answers is not None:
            self._answers.join(5)
        if not self._closed:
            self._closed = True
            for client in self._clients.values():
                client.close()
            os.close(self._stdin)
            if not select.select([self._stdout], [], [], END_S)[0]:  # its end, as it says nothing more
                os.kill(self._pid, signal.SIGKILL)
            os.close(self._stdout)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> SmallSageMaker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            troubles = [] if kind is not None else self.troubles()
        finally:
            self.close()
        if troubles:
            raise RuntimeError("the double itself went wrong:\n" + "\n".join(troubles))

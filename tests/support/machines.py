"""The machines of an endpoint: a server of the model's archive for each configuration."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from small_sagemaker import SERVICE_KEY, Image, SmallSageMaker
from small_sagemaker.serving import ServingContainer

from runner.scoring import inference


class Container(BaseHTTPRequestHandler):
    """What SageMaker's image answers, without the ten seconds in which it starts: deployments ask only for the sample."""

    scorer: Any
    wrong: set[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        scores = self.scorer.score(self.scorer.table(body, self.headers["Content-Type"]))
        answer, kind = self.scorer.reply(scores, self.headers["Accept"])
        if self.scorer.model in self.wrong:
            answer = b"0.123\n"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        return


class Machines:
    """Starts a server of the model's archive for each configuration an endpoint is to have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cloud: SmallSageMaker | None = None
        self.wrong: set[str] = set()  # NAME/VERSION that answers something else
        self.broken: set[str] = set()  # that does not come up
        self.held: dict[str, threading.Event] = {}  # that comes up once the event is set
        self.image: Image | None = None  # AWS's, to start a container of it instead
        self.containers: list[ServingContainer] = []
        self._servers: list[ThreadingHTTPServer] = []

    def __call__(self, asked: dict[str, Any]) -> str:
        assert self.cloud is not None
        sagemaker, s3 = (self.cloud.client(service, access_key=SERVICE_KEY) for service in ("sagemaker", "s3"))
        (container,) = asked["Models"][0]["Containers"]
        label = container["Environment"]["RUNNER_MODEL"]
        if label in self.held:
            assert self.held[label].wait(100)
        if label in self.broken:
            raise ValueError("it did not answer /ping")
        address = container.get("ModelDataUrl")
        if address is None:
            described = sagemaker.describe_model_package(ModelPackageName=container["ModelPackageName"])
            address = described["InferenceSpecification"]["Containers"][0]["ModelDataUrl"]
        place = urlsplit(address)
        data = s3.get_object(Bucket=place.netloc, Key=place.path[1:])["Body"].read()
        if self.image is not None:
            self.containers.append(ServingContainer(self.image, data, container["Environment"]))
            return self.containers[-1].url
        folder = self.folder / hashlib.sha256(data).hexdigest()
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(folder, filter="data")
        scorer = inference.loaded(folder, container["Environment"])
        kind = type("Kind", (Container,), {"scorer": scorer, "wrong": self.wrong})
        server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self._servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    def close(self) -> None:
        for container in self.containers:
            container.close()
        for server in self._servers:
            server.shutdown()
            server.server_close()

"""CodePipeline, as far as somebody starts a pipeline: each client token starts one execution."""

from __future__ import annotations

import threading
from typing import Any

from .calls import Call
from .gateway import Action


class Deliveries:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: list[str] = []

    def actions(self) -> dict[tuple[str, str], Action]:
        return {("codepipeline", "StartPipelineExecution"): self.start}

    def start(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            token = call.parameters.get("clientRequestToken", f"none {len(self._tokens)}")
            if token not in self._tokens:
                self._tokens.append(token)
            return {"pipelineExecutionId": f"execution-{self._tokens.index(token) + 1}"}

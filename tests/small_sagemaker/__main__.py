"""The server's process: settings come in on stdin, the address goes out on stdout, and stdin's end ends it."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import sys

from .control import ControlServer
from .server import Server

asked = json.loads(sys.stdin.readline())
server = Server(pickle.loads(base64.b64decode(asked["settings"])))
ControlServer(asked["control"], base64.b64decode(asked["key"]), server.methods())
print(json.dumps({"url": server.url}), flush=True)
sys.stdin.read()
server.close()
shutil.rmtree(asked["folder"], ignore_errors=True)  # the test's process may be gone
os._exit(0)  # threads of jobs that were killed may still be closing their connections

"""A container sees what a container sees."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest

from . import JOB_KEY, Image, SmallSageMaker, own_image
from .images import User
from .trying import BUCKET, EVERYTHING, give, put, read_log, run_job


def test_a_container_sees_its_own_files_and_nothing_of_this_machine(sagemaker: Any, logs: Any, tmp_path: Path) -> None:
    seen = f"ls -A /tmp {tmp_path.parent} {Path(__file__).parent}; ls /opt; touch /usr/x; touch /tmp/x && ls /tmp"
    run_job(sagemaker, "sees", seen)
    said = read_log(logs, "sees")
    assert [line for line in said if "No such file" in line and "tests" in line]
    assert "ml" in said
    assert any("Read-only file system" in line for line in said)
    assert said[-1] == "x"
    assert not Path("/opt/ml").exists()


def test_a_container_has_a_host_file_and_a_job_file(sagemaker: Any, logs: Any) -> None:
    run_job(sagemaker, "configured", "cat /opt/ml/config/resourceconfig.json; echo; cat /opt/ml/config/proc*.json")
    host, job = [json.loads(line) for line in read_log(logs, "configured")]
    assert host["current_host"] == "algo-1"
    assert job["ProcessingJobName"] == "configured"


HELLO = """
import json, socket, sys, time
place = json.load(open("/opt/ml/config/resourceconfig.json"))
if place["current_host"] == "algo-1":
    private = socket.create_server(("127.0.0.1", 7001))
    server = socket.create_server(("algo-1", 7000))
    for _ in place["hosts"][1:]:
        connection, (address, _) = server.accept()
        print(connection.makefile().readline().strip(), address)
else:
    while True:
        try:
            connection = socket.create_connection(("algo-1", 7000), 1)
            break
        except OSError:
            time.sleep(0.05)
    connection.sendall(place["current_host"].encode() + b"\\n")
    try:
        socket.create_connection(("127.0.0.1", 7001), 1)
    except OSError as error:
        print(json.dumps(place), type(error).__name__)
"""


def test_the_machines_of_a_job_reach_each_other_by_name_and_see_no_others_loopback(
    cloud: SmallSageMaker, s3: Any, sagemaker: Any, logs: Any
) -> None:
    script = "python3 -u /opt/ml/processing/input/in/hello.py"
    given = give(put(s3, "hello/hello.py", HELLO))
    job = run_job(sagemaker, "three", script, machines=3, ProcessingInputs=given)
    assert job["ProcessingJobStatus"] == "Completed", read_log(logs, "three", "algo-1-")
    assert sorted(read_log(logs, "three", "algo-1-")) == ["algo-2 10.11.0.2", "algo-3 10.11.0.3"]
    place, error = read_log(logs, "three", "algo-3-")[0].rsplit(" ", 1)
    assert json.loads(place) == {"current_host": "algo-3", "hosts": ["algo-1", "algo-2", "algo-3"]}
    assert error == "ConnectionRefusedError"


def test_a_job_fails_with_any_of_its_machines_and_the_others_end(sagemaker: Any, logs: Any) -> None:
    script = "grep -q 'current_host\": \"algo-2' /opt/ml/config/resourceconfig.json && exit 3; sleep 600"
    job = run_job(sagemaker, "one-fails", script, machines=2)
    assert job["ProcessingJobStatus"] == "Failed"
    assert "exit code: 3" in job["FailureReason"]


def test_a_container_has_the_environment_it_was_given_and_no_more(sagemaker: Any, logs: Any) -> None:
    run_job(sagemaker, "environment", "env | sort", Environment={"MINE": "1"})
    names = {line.partition("=")[0] for line in read_log(logs, "environment")} - {"_", "SHLVL", "PWD"}
    assert names == {
        "AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED", "AWS_ENDPOINT_URL", "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY", "HOME", "LANG", "MINE", "PATH", "PROCESSING_JOB_ARN",
    }  # fmt: skip


def test_a_container_reaches_the_services_and_nothing_else(cloud: SmallSageMaker, sagemaker: Any, logs: Any) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        script = (
            'python -c \'import boto3; print(len(boto3.client("s3").list_buckets()["Buckets"]))\'; '
            f"(echo > /dev/tcp/127.0.0.1/{other.server_port}) 2>&1 | grep -q refused && echo refused; "
            "(echo > /dev/tcp/1.1.1.1/80) 2>&1 | grep -q unreachable && echo unreachable"
        )
        run_job(sagemaker, "network", script)
    assert read_log(logs, "network") == ["1", "refused", "unreachable"]
    assert [call.action for call in cloud.calls if call.access_key == JOB_KEY] == ["ListBuckets"]


def test_processes_a_container_leaves_behind_end_with_it(sagemaker: Any, logs: Any) -> None:
    run_job(sagemaker, "leaves", "setsid sleep 98765 & sleep 0.1; echo done")
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    assert not [line for line in found if b"sleep\x0098765" in line]


def test_the_images_programs_come_first(cloud: SmallSageMaker, sagemaker: Any, logs: Any) -> None:
    run_job(sagemaker, "programs", "python -c 'import sys; print(sys.prefix)'; python -c 'import runner'")
    said = read_log(logs, "programs")
    assert said[0] == sys.prefix
    assert "No module named 'runner'" in said[-1]


def test_a_container_runs_as_the_user_of_its_image_and_opt_ml_is_roots() -> None:
    script = (
        "id -u; echo $HOME; for d in /opt/ml/processing/input/in /opt/ml/output /opt/ml/processing $HOME /usr /tmp; do "
        "touch $d/x 2>/dev/null && echo $d; done; sudo -n id -u 2>/dev/null || echo no sudo"
    )
    told: dict[str, list[str]] = {
        "root": ["0", "/root", "/opt/ml/processing/input/in", "/opt/ml/output", "/opt/ml/processing", "/root", "/tmp"],
        "1000": ["1000", "/", "/tmp", "no sudo"],
        "sagemaker-user": ["1000", "/home/sagemaker-user", "/home/sagemaker-user", "/tmp", "0"],
    }
    users: tuple[User, ...] = ("root", "1000", "sagemaker-user")
    made = SmallSageMaker({user: Image(sys.prefix, user=user) for user in users}, grace_s=0.3, poll_s=0.05)
    with made as cloud:
        cloud.grant("jobs", EVERYTHING)
        s3, sagemaker = cloud.client("s3"), cloud.client("sagemaker")
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": cloud.region})
        given = give(put(s3, "in/a"))
        for user in users:
            run_job(
                sagemaker,
                user,
                AppSpecification={"ImageUri": user, "ContainerEntrypoint": ["bash", "-c", script]},
                ProcessingInputs=given,
            )
        said = {user: read_log(cloud.client("logs"), user) for user in users}
    assert {**said, "root": said["root"][:7]} == told


LOOK = """
import json, os, signal, socket, subprocess, sys, threading
from pathlib import Path

def capabilities():
    lines = Path("/proc/self/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Threads"))]

def inherited(number):
    try:
        return os.get_inheritable(number)
    except OSError:
        return False

def look():
    try:
        Path("/opt/ml/written").touch()
        written = True
    except OSError as error:
        written = str(error)
    return {
        "argv": sys.argv, "path": sys.path, "name": __name__, "executable": sys.executable, "pid": os.getpid(),
        "parent": os.getppid(), "session": os.getsid(0), "status": capabilities(), "cwd": os.getcwd(), "root": os.listdir("/"),
        "environment": dict(os.environ), "networks": socket.if_nameindex(), "written": written, "mounts": len(
            Path("/proc/mounts").read_text().splitlines()), "shm": os.listdir("/dev/shm"),
        "open": [os.readlink(f"/proc/self/fd/{n}").partition(":")[0] for n in (0, 1, 2)], "inherited": [n for n in range(3, 250) if inherited(n)], "threads": threading.active_count(),
        "ends": {n: str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD)},
        "umask": os.umask(0o022), "limits": __import__("resource").getrlimit(7), "host": os.uname().nodename,
        "streams": [(s.encoding, s.errors, s.line_buffering, s.write_through) for s in (sys.stdin, sys.stdout, sys.stderr)],
        "runner": [name for name in sys.modules if name.partition(".")[0] in ("runner", "papermill", "small_sagemaker")],
    }

print(json.dumps(look(), default=str), flush=True)
if sys.argv[1:] == ["first"]:
    child = subprocess.run([sys.executable, "-c", "import os, sys; print(os.getppid(), os.getsid(0) == os.getpid(), sys.argv, sys.path[0], os.environ['MINE'], sys.stdin.read()); sys.exit(7)", "x"],
                           env={**os.environ, "MINE": "2"}, input="given", text=True, capture_output=True, start_new_session=True)
    print(json.dumps([child.returncode, child.stdout, child.stderr]), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.execve(sys.executable, [sys.executable, "-u", "-m", "look", "second"], {**os.environ, "PYTHONPATH": "/opt/ml/processing/input/in", "MORE": "1"})
sys.exit("said as it ends")
"""


@pytest.mark.cases(1)
@pytest.mark.parametrize("user", get_args(User))
def test_a_forked_python_finds_itself_as_one_that_is_started_there(user: User) -> None:
    """In both a program looks at all around it, starts another Python and becomes one."""
    found = []
    for warm in (False, True):
        with SmallSageMaker({"*": own_image(user, warm=warm)}) as cloud:
            cloud.grant("jobs", EVERYTHING)
            place = {"LocationConstraint": cloud.region}
            cloud.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
            inputs = give(put(cloud.client("s3"), "look.py", LOOK))
            command = ["python3", "-u", "/opt/ml/processing/input/in/look.py", "first"]
            specification = {"ImageUri": "any", "ContainerEntrypoint": command}
            job = run_job(cloud.client("sagemaker"), "look", ProcessingInputs=inputs, AppSpecification=specification)
            said = re.sub(r"127\.0\.0\.1:\d+", "SERVICES", "\n".join(read_log(cloud.client("logs"), "look")))
            found.append((job["ProcessingJobStatus"], job.get("FailureReason"), said.splitlines()))
    plain, forked = ([json.loads(line) for line in one[2] if line.startswith(("{", "["))] for one in found)
    assert len(plain) == 3
    assert len(forked) == 3, found[1]
    assert plain[1][0] == 7
    for one, other in zip(plain, forked, strict=True):
        pairs = one.items() if isinstance(one, dict) else enumerate(one)
        assert [(what, value, other[what]) for what, value in pairs if other[what] != value] == []
    ends = [(status, reason, said[-1]) for status, reason, said in found]
    assert ends == [("Failed", ends[0][1], "said as it ends")] * 2

"""The lock's packages reach a job: chosen for its image, laid into S3 once, and made into an environment there."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.projects import ROOT, Project, parameters

from runner.aws.bucket import Bucket
from runner.aws.processing.bundle import runner_bundle
from runner.aws.processing.bundle import upload as upload_bundle
from runner.aws.processing.executor import put_runner, step_bundle
from runner.aws.processing.prices import Prices
from runner.aws.processing.request import limit_s
from runner.aws.processing.wheels import Wheel, described, digest, missing_bytes, pins, upload, wheels
from runner.aws.session import Session
from runner.aws.settings import settings
from runner.cli import entry
from runner.errors import RunnerError, UsageError
from runner.pipeline.plan import plan
from runner.project import Project as Opened
from runner.run.folder import snapshot, step_folder

RUN = "20261122-101630-7f3a"
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PLATFORM = f"manylinux_2_28_{platform.machine()}"
TOOLS = ("boto3", "botocore", "jmespath", "python-dateutil", "s3transfer", "six", "urllib3")  # of the image
PACKAGES = ("click", "msgspec", "six", "uv")  # of the lock
SHOW = """
import importlib.metadata, json, os, sys
versions = {name: importlib.metadata.version(name) for name in ("click", "six", "msgspec")}
print(json.dumps({"versions": versions, "arguments": sys.argv[1:], "kind": os.environ["RUNNER_ENVIRONMENT"],
                  "prefix": sys.prefix, "paths": sys.path}))
"""
HASH = "--hash=sha256:" + "0" * 64


def lock_of(file: Path, *packages: str) -> Path:
    """The project's own lock, cut down to some packages."""
    whole = re.sub(r"\\\n", " ", (ROOT / "requirements.lock").read_text(encoding="utf-8"))
    lines = [line for line in whole.splitlines() if line.partition("==")[0] in packages]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def index(cache: Path) -> None:
    """Skips, with pip's reason, where packages cannot be downloaded."""
    line = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--retries=0",
    ]
    done = subprocess.run(
        [*line, "--timeout=10", "--dest", str(cache / "tried"), "six"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"packages cannot be downloaded here: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="session")
def lock(cache: Path) -> Path:
    return lock_of(cache / "requirements.lock", *PACKAGES)


@pytest.fixture(scope="session")
def arrived(cache: Path, lock: Path, index: None) -> list[Wheel]:
    """The lock's wheels for an image that is this machine."""
    return wheels(lock, python=HERE, platform=PLATFORM, cache=cache / "wheels")


@pytest.fixture(scope="session")
def image(cache: Path, index: None) -> Path:
    """A Python that has boto3, and not what the lock has."""
    tools = wheels(lock_of(cache / "tools.lock", *TOOLS), python=HERE, platform=PLATFORM, cache=cache / "wheels")
    uv = [sys.executable, "-m", "uv", "--quiet", "--offline", "--no-config", "--cache-dir", str(cache / "uv")]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(cache / "image")], check=True)
    python = cache / "image" / "bin" / "python"
    files = [str(wheel.path) for wheel in tools]
    subprocess.run([*uv, "pip", "install", "--no-index", "--no-deps", "--python", str(python), *files], check=True)
    return python


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    found = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        yield found
    server.stop()


@pytest.fixture
def bucket(s3: dict[str, str], request: pytest.FixtureRequest) -> Bucket:
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    session = Session("us-east-1", patience_s=5)
    session.call("s3", "create_bucket", about=name, Bucket=name)
    return Bucket(session, name, "project/")


@dataclass
class Job:
    """A job's container, as far as the bootstrap sees of it."""

    folder: Path
    image: Path
    env: dict[str, str] = field(default_factory=dict)

    def give(self, *, library: bytes | None = None, **environment: object) -> None:
        told = {"python": HERE, "wheels": None, "packages": "lock", "allow_other_versions": False, **environment}
        bundle = self.folder / "input" / "bundle"
        for name, data in runner_bundle(told, library=library).files.items():
            (bundle / name).parent.mkdir(parents=True, exist_ok=True)
            (bundle / name).write_bytes(data)
        (self.folder / "work" / "runner").mkdir(
            parents=True, exist_ok=True
        )  # where the bootstrap puts what it takes out of the archive
        (self.folder / "work" / "runner" / "show.py").write_text(SHOW, encoding="utf-8")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RUNNER_", "UV_"))}
        env |= {"RUNNER_INPUT": str(self.folder / "input"), "RUNNER_OUTPUT": str(self.folder / "output"), **self.env}
        command = [str(self.image), "-u", str(self.folder / "input" / "bundle" / "_run.py"), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, cwd=self.folder)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    @property
    def message(self) -> str:
        return (self.folder / "output" / "message").read_bytes().decode("utf-8")

    @property
    def made(self) -> list[str]:
        return [path.name for path in (self.folder / "work").glob("made-*")]


@pytest.fixture
def job(tmp_path: Path, image: Path) -> Job:
    return Job(tmp_path, image)


# What applies


def test_pins_leave_out_what_is_for_other_systems_and_other_pythons(tmp_path: Path) -> None:
    file = tmp_path / "requirements.lock"
    file.write_text(
        f"# made by hand\none==1.0 {HASH}\nwindows==2 ; sys_platform == 'win32' \\\n    {HASH}\n"
        f"Old_Name==3 ; python_full_version < '3.12' {HASH}\nnew.name==4 ; python_full_version >= '3.12' {HASH}\n"
        f"series==5 ; python_full_version == '3.12.*' {HASH}\nearly==1 ; python_full_version < '3.11.5' {HASH}\n"
        f"arm==6 ; platform_machine == 'aarch64' {HASH}\npypy==7 ; implementation_name == 'pypy' {HASH}\n"
    )
    twelve = pins(file, python="3.12", platform="manylinux_2_28_x86_64")
    assert twelve == {"one": "1.0", "new-name": "4", "series": "5"}
    eleven = pins(file, python="3.11", platform="manylinux_2_28_aarch64")
    assert eleven == {"one": "1.0", "old-name": "3", "arm": "6"}
    assert "early" in pins(file, python="3.11.4", platform="manylinux_2_28_x86_64")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("six==1.17.0\n", "hashes"),
        (f"six>=1 {HASH}\n", "one version"),
        (f"six==1.* {HASH}\n", "one version"),
        ("-e .\n", "refers elsewhere"),
        ("six @@ 3\n", "is not a pinned package"),
        (f"six==1 {HASH}\nsix==2 {HASH}\n", "two versions of six"),
    ],
)
def test_a_lock_that_locks_nothing_is_refused(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "requirements.lock"
    file.write_text(content)
    with pytest.raises(UsageError, match=said):
        pins(file, python="3.12", platform=PLATFORM)


def test_a_lock_that_is_missing_and_a_platform_that_is_none_are_named(tmp_path: Path, lock: Path) -> None:
    with pytest.raises(UsageError, match=r"\[sagemaker\] lock"):
        pins(tmp_path / "absent.lock", python="3.12", platform=PLATFORM)
    with pytest.raises(UsageError, match="win_amd64"):
        pins(lock, python="3.12", platform="win_amd64")
    with pytest.raises(UsageError, match=r'python = "3"'):
        pins(lock, python="3", platform=PLATFORM)


# Fetching


def test_wheels_are_those_of_the_image_and_are_fetched_once(arrived: list[Wheel], lock: Path, cache: Path) -> None:
    tag = "cp" + HERE.replace(".", "")
    assert [wheel.filename.partition("-")[0] for wheel in arrived] == list(PACKAGES)
    assert tag in arrived[1].filename
    for wheel in arrived:
        data = wheel.path.read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (wheel.sha256, wheel.size_bytes)
        assert wheel.sha256 in lock.read_text(encoding="utf-8")
    before = [wheel.path.stat().st_mtime_ns for wheel in arrived]
    again = wheels(lock, python=HERE, platform=PLATFORM, cache=cache / "wheels")
    assert again == arrived
    assert [wheel.path.stat().st_mtime_ns for wheel in again] == before


@pytest.mark.soak
def test_wheels_for_another_python_than_this_one(lock: Path, cache: Path, index: None) -> None:
    other = "3.12" if HERE != "3.12" else "3.13"
    found = wheels(lock, python=other, platform=PLATFORM, cache=cache / "wheels")
    assert [wheel.filename.partition("-")[0] for wheel in found] == list(PACKAGES)
    assert "cp" + other.replace(".", "") in found[1].filename


@pytest.mark.soak
def test_a_wheel_altered_in_the_cache_is_fetched_anew(tmp_path: Path, index: None) -> None:
    file = lock_of(tmp_path / "requirements.lock", "six")
    (first,) = wheels(file, python="3.12", platform=PLATFORM, cache=tmp_path)
    first.path.write_bytes(b"something else")
    assert wheels(file, python="3.12", platform=PLATFORM, cache=tmp_path) == [first]
    assert hashlib.sha256(first.path.read_bytes()).hexdigest() == first.sha256


@pytest.mark.soak
def test_a_package_without_a_wheel_is_named_with_what_to_do(tmp_path: Path, index: None) -> None:
    file = tmp_path / "requirements.lock"
    file.write_text(f"docopt==0.6.2 {HASH}\n")  # on the index as a source archive only
    with pytest.raises(UsageError, match=r"docopt==0\.6\.2 has no wheel .*infra/Dockerfile"):
        wheels(file, python="3.12", platform=PLATFORM, cache=tmp_path)


def test_bytes_that_the_lock_does_not_know_are_refused(tmp_path: Path, index: None) -> None:
    file = tmp_path / "requirements.lock"
    file.write_text(f"six==1.17.0 {HASH}\n")
    with pytest.raises(RunnerError, match=r"(?i)hash"):
        wheels(file, python="3.12", platform=PLATFORM, cache=tmp_path)
    assert not list(tmp_path.rglob("*.whl"))


# In the bucket


def test_wheels_are_moved_once_and_of_a_changed_lock_only_what_is_new(bucket: Bucket, arrived: list[Wheel]) -> None:
    fewer = [wheel for wheel in arrived if not wheel.filename.startswith("click")]
    assert missing_bytes(bucket, fewer) == sum(wheel.size_bytes for wheel in fewer)
    assert upload(bucket, fewer) > missing_bytes(bucket, fewer) == 0
    assert upload(bucket, list(reversed(fewer))) == 0
    click = arrived[0].size_bytes
    assert click < upload(bucket, arrived) < click + 5000
    assert digest(fewer) != digest(arrived)
    index = json.loads(bucket.get(f"wheels/{digest(arrived)}/index.json") or b"")
    assert index == described(bucket, arrived)["keys"]
    assert {str(fact["key"]).removeprefix("project/") for fact in index.values()} <= dict(bucket.keys()).keys()


@pytest.mark.soak
def test_an_upload_that_broke_off_is_completed(bucket: Bucket, arrived: list[Wheel]) -> None:
    upload(bucket, arrived)
    index = f"project/wheels/{digest(arrived)}/index.json"
    bucket.session.call("s3", "delete_object", about="index", Bucket=bucket.name, Key=index)
    bucket.put(arrived[0].key, b"half")
    assert missing_bytes(bucket, arrived) == arrived[0].size_bytes
    assert upload(bucket, arrived) >= arrived[0].size_bytes
    assert bucket.size(arrived[0].key) == arrived[0].size_bytes


def test_a_lock_without_the_installer_is_refused_before_anything_moves(bucket: Bucket, arrived: list[Wheel]) -> None:
    with pytest.raises(UsageError, match="uv"):
        upload(bucket, arrived[:-1])
    assert not list(bucket.keys())


# In the job


@pytest.mark.soak
def test_the_lock_is_made_into_an_environment(job: Job, bucket: Bucket, arrived: list[Wheel], lock: Path) -> None:
    locked = pins(lock, python=HERE, platform=PLATFORM)
    upload(bucket, arrived)
    job.give(pins=locked, wheels=described(bucket, arrived))
    code, out, err = job.run("show", "a b", "--c")
    assert code == 0, err
    first, second = out.splitlines()
    assert re.match(r"runner: made an environment of 4 packages in \d+\.\d s", first)
    shown = json.loads(second)
    assert shown["versions"] == {name: locked[name] for name in ("click", "six", "msgspec")}
    assert (shown["arguments"], shown["kind"]) == (["a b", "--c"], "lock")
    assert shown["prefix"].startswith(str(job.folder / "work" / "made-"))
    assert str(job.folder / "work" / "runner") in shown["paths"]
    assert not any(str(job.image.parents[1]) in path for path in shown["paths"])
    assert not (job.folder / "output").exists()


@pytest.mark.soak
def test_a_job_that_executes_no_notebook_installs_nothing(job: Job, arrived: list[Wheel], lock: Path) -> None:
    locked = pins(lock, python=HERE, platform=PLATFORM)
    (library,) = [wheel.path.read_bytes() for wheel in arrived if wheel.filename.startswith("msgspec-")]
    nowhere = {"bucket": "no-such-bucket", "region": "us-east-1", "keys": {}}
    job.give(pins=locked, wheels=nowhere, library=library)
    (job.folder / "work" / "runner" / "show.py").write_text(
        "import os, sys\nimport boto3\nours = set(sys.modules)\nimport runner.aws.pipelines.pipeline_job\n"
        "foreign = {name.partition('.')[0] for name in set(sys.modules) - ours if name not in sys.stdlib_module_names}\n"
        "print(os.environ['RUNNER_ENVIRONMENT'], sys.prefix, sorted(foreign - sys.stdlib_module_names))"
    )
    code, out, err = job.run("--plain", "show")
    assert code == 0, err
    said, shown = out.splitlines()
    assert said == "runner: no notebook is executed yet, nothing installed"
    assert shown == f"none {job.image.parents[1]} ['msgspec', 'runner']"
    assert not job.made
    # a bundle without it, as with packages = "image", is held to the lock as ever
    (job.folder / "input" / "bundle" / "msgspec.zip").unlink()
    code, _, err = job.run("--plain", "show")
    assert (code, "uv" in err) == (90, True)


@pytest.mark.soak
def test_an_image_that_equals_the_lock_is_used_as_it_is(job: Job) -> None:
    job.give(pins={"six": "1.17.0"})
    (job.folder / "work" / "runner" / "show.py").write_text("import os; print(os.environ['RUNNER_ENVIRONMENT'])")
    assert job.run("show") == (0, "runner: image equals the lock, nothing installed\nimage\n", "")
    assert not job.made


def test_another_image_is_refused_with_what_differs(job: Job) -> None:
    job.give(pins={"six": "1.16.0", "click": "8.5.1", "jmespath": "1.1.0"}, packages="image")
    code, out, err = job.run("show")
    assert (code, out) == (90, "")
    assert "2 packages: click is missing (lock: 8.5.1), six 1.17.0 (lock: 1.16.0)" in err
    assert err == f"runner: {job.message}\n"


def test_a_message_never_exceeds_what_the_service_keeps(job: Job) -> None:
    job.give(pins={f"paquet-é{number}-{'x' * 200}": "1" for number in range(40)}, packages="image")
    assert job.run("show")[0] == 90
    assert 900 < len(job.message.encode()) <= 1000


def test_another_image_is_used_where_that_is_asked_for(job: Job) -> None:
    job.give(pins={"six": "1.16.0"}, packages="image", allow_other_versions=True)
    (job.folder / "work" / "runner" / "show.py").write_text("import os; print(os.environ['RUNNER_ENVIRONMENT'])")
    code, out, _ = job.run("show")
    assert (code, out.splitlines()[-1]) == (0, "image")
    assert "six 1.17.0 (lock: 1.16.0)" in out


def test_another_python_is_named(job: Job) -> None:
    job.give(pins={}, python="3.9")
    code, _, err = job.run("show")
    assert code == 90
    assert f"The image has Python {HERE}, the job was made for 3.9." in err
    assert job.message in err


def test_the_exit_code_is_that_of_the_module(job: Job) -> None:
    job.give(pins={})
    (job.folder / "work" / "runner" / "show.py").write_text("raise SystemExit(3)")
    assert job.run("show")[0] == 3


@pytest.mark.soak
def test_an_altered_wheel_is_refused_and_nothing_of_the_environment_stays(
    job: Job, bucket: Bucket, arrived: list[Wheel], lock: Path
) -> None:
    upload(bucket, arrived)
    bucket.put(arrived[0].key, arrived[0].path.read_bytes()[:-1] + b"!")
    job.give(pins=pins(lock, python=HERE, platform=PLATFORM), wheels=described(bucket, arrived))
    code, out, err = job.run("show")
    assert (code, out) == (90, "")
    assert arrived[0].filename in job.message
    assert "hash differs" in err
    assert not job.made


@pytest.mark.soak
def test_a_wheel_that_is_not_what_its_name_says_is_refused(
    job: Job, bucket: Bucket, arrived: list[Wheel], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / arrived[0].filename, "w") as archive:
        archive.writestr("click.py", "")
    data = (tmp_path / arrived[0].filename).read_bytes()
    odd = Wheel(arrived[0].filename, hashlib.sha256(data).hexdigest(), len(data), tmp_path / arrived[0].filename)
    upload(bucket, [odd, arrived[-1]])
    job.give(pins={"click": "8.5.1"}, wheels=described(bucket, [odd, arrived[-1]]))
    code, _, err = job.run("show")
    assert code == 90
    assert "click" in err
    assert not job.made


def test_a_wheel_that_is_gone_is_named_with_the_permission_it_takes(job: Job, bucket: Bucket) -> None:
    keys = {"six-1-py3-none-any.whl": {"key": "gone", "sha256": "0" * 64, "size": 1}}
    job.give(pins={"click": "1"}, wheels={"bucket": bucket.name, "region": "us-east-1", "keys": keys})
    code, _, err = job.run("show")
    assert code == 90
    assert f"s3://{bucket.name}/gone was answered NoSuchKey" in err
    assert "s3:GetObject" in err


class Shaky(http.server.ThreadingHTTPServer):
    """Serves wheels by file name: every one is first refused, then cut short, then whole."""

    daemon_threads = True

    def __init__(self, files: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files, self.asked = files, dict.fromkeys(files, 0)


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Shaky

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.asked[name] += 1
        data = self.server.files[name].read_bytes()
        self.send_response(503 if self.server.asked[name] == 1 else 200)
        self.send_header("Content-Length", "0" if self.server.asked[name] == 1 else str(len(data)))
        self.end_headers()
        if self.server.asked[name] > 1:
            self.wfile.write(data if self.server.asked[name] > 2 else data[:100])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Not into the tests' output."""


@pytest.mark.soak
def test_a_store_that_fails_for_a_moment_is_asked_again(job: Job, arrived: list[Wheel], lock: Path) -> None:
    server = Shaky({wheel.filename: wheel.path for wheel in arrived})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    facts = {wheel.filename: {"key": wheel.key, "sha256": wheel.sha256, "size": wheel.size_bytes} for wheel in arrived}
    told = {"bucket": "wheels", "region": "us-east-1", "keys": facts}
    job.give(pins=pins(lock, python=HERE, platform=PLATFORM), wheels=told)
    job.env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    code, out, err = job.run("show")
    server.shutdown()
    thread.join()
    server.server_close()
    assert code == 0, err
    assert "made an environment of 4 packages" in out
    assert set(server.asked.values()) == {3}


def test_being_stopped_while_packages_arrive_ends_it_at_once(job: Job) -> None:
    keys = {"six-1-py3-none-any.whl": {"key": "never", "sha256": "0" * 64, "size": 1}}
    job.give(pins={"click": "1"}, wheels={"bucket": "bucket", "region": "us-east-1", "keys": keys})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        job.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        with job.start("show") as process:
            silent.settimeout(60)
            asked, _ = silent.accept()
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
            asked.close()
    assert process.returncode == 143
    assert time.monotonic() - began < 5


def test_an_image_without_boto3_is_named(job: Job, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    job.image = bare / "bin" / "python"
    job.give(pins={"six": "1.17.0"}, wheels={"bucket": "bucket", "region": "us-east-1", "keys": {}})
    code, _, err = job.run("show")
    assert code == 90
    assert "no boto3" in err
    assert not job.made


def test_the_bootstrap_is_understood_by_the_oldest_python_there_is() -> None:
    source = (ROOT / "runner" / "aws" / "processing" / "_run.py").read_text(encoding="utf-8")
    compile(source, "_run.py", "exec")
    import ast

    ast.parse(source, feature_version=(3, 10))


# What a dry run says of it


@pytest.mark.soak
def test_a_dry_run_counts_what_goes_up_once_and_nothing_that_is_there(
    bucket: Bucket, lock: Path, arrived: list[Wheel], cache: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(project.folder / "cache"))
    (project.folder / "cache" / "runner").mkdir(parents=True)
    (project.folder / "cache" / "runner" / "wheels").symlink_to(cache / "wheels")
    shutil.copyfile(lock, project.folder / "requirements.lock")
    (project.folder / "big.bin").write_bytes(os.urandom(3_000_000))
    project.write("nb.ipynb", parameters("source: str = ''"), "import helper")
    (project.folder / "helper.py").write_text("x = 1\n")
    step = '[steps.s{0}]\nnotebook = "nb.ipynb"\nretries = {0}\ninputs = {{ source = "./big.bin" }}\n'
    file = project.toml(
        f'name = "figures"\n{step.format(1)}{step.format(4)}[sagemaker]\nbucket = "{bucket.name}"\nprefix = "project"\n'
        f'role = "r"\nimage = "i"\npython = "{HERE}"\nplatform = "{PLATFORM}"\n'
    )

    def ask() -> Any:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert entry(["run", "--on", "sagemaker", "--dry-run", "--json", "--pipeline", str(file)]) == 0
        return json.loads(out.getvalue())

    said, planned = ask(), plan(file)
    assert [step["action"] for step in said["steps"]] == ["run", "run"]
    whole = sum(wheel.size_bytes for wheel in arrived) + 3_000_000
    assert whole < said["move_bytes"] < whole + 2_000_000  # and the runner, and the notebook
    chosen = settings(planned.pipeline)
    once = Prices.read(None).of(chosen.instance, limit_s([None], chosen))
    assert once is not None
    assert said["ceiling_usd"] == pytest.approx((3 + 5) * once)  # three attempts in any case, or one and four retries

    put_runner(chosen, bucket, root=project.folder)
    assert 3_000_000 < ask()["move_bytes"] < 3_100_000
    store = Opened(project.folder / "pipeline.toml").store_here
    store.folder(RUN).mkdir(parents=True)
    snapshot(planned, store, RUN)
    for name in ("s1", "s4"):
        made = step_bundle(step_folder(store, RUN, name), "nb.ipynb", project.folder, chosen, also=())
        upload_bundle(bucket, "steps/", made)
    assert ask()["move_bytes"] == 3_000_000
    sha256 = hashlib.sha256((project.folder / "big.bin").read_bytes()).hexdigest()
    bucket.put(f"inputs/{sha256}/big.bin", b"")
    assert ask()["move_bytes"] == 0

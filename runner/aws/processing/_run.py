"""What a job's container starts first: sees to it that the packages are those of the lock, then becomes the step.

`python3 -u …/bundle/_run.py [--plain] MODULE ARG…`. Stands alone: standard library only, any Python from 3.10, and the image's
boto3 where wheels have to be fetched. `environment.json` beside it says what to expect. Nothing is run in an
environment that was not made whole and compared with the lock. With `--plain`, of a module that executes no notebook, or
not yet, there is none: the runner's own modules need msgspec, which the bundle has, and the image's boto3. Such a module
may start this program again, without it.

/opt/ml belongs to root, and many an image's user does not (SageMaker Distribution's: number 1000, sudo without a password;
https://github.com/aws/sagemaker-python-sdk/issues/4764). So everything is written into one work folder, wherever that may
be (`work_folder`), and /opt/ml/output/message, which alone has a fixed place, goes to S3 where it may not be left there.

    work/runner/      the runner's modules
    work/library/     msgspec, with --plain
    work/made-…/      the environment, where the image is not the lock
    work/home/        HOME, where the image's is not there or may not be written
    work/step/, work/project/    the step (`inside.py`)

Where a job finds things is another place in a training job, which says so in its environment (`training.py`): RUNNER_INPUT,
RUNNER_VOLUME, RUNNER_MESSAGE the file's name, RUNNER_CHECKPOINTS a folder that the notebook is to be able to write.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any, NoReturn

FAILED = 90  # exit code: no step was begun
TERMINATED = 128 + signal.SIGTERM
INPUT, OUTPUT = "/opt/ml/processing/input", "/opt/ml/output"  # where SageMaker mounts and reads; tests set their own
MESSAGE_BYTES = 1000  # ExitMessage holds 1 KB
THREADS = 8
ATTEMPTS = 5
PLAIN = "--plain"
SOURCES, LIBRARY = "runner.zip", "msgspec.zip"
CONFIGURATION = "processingjobconfig.json"  # what the service tells a job of itself, in /opt/ml/config
SUDO_S = 30
SHOWN = 12  # differences in a message
TEMPORARY = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException")


class BootstrapError(Exception):
    """One sentence for the person who started the job."""


_children: list[subprocess.Popen[str]] = []


def main(arguments: list[str]) -> NoReturn:
    signal.signal(signal.SIGTERM, _end)
    os.environ.setdefault("RUNNER_BEGAN", str(time.time()))
    try:
        plain = arguments[:1] == [PLAIN]
        arguments = arguments[plain:]
        if not arguments:
            raise BootstrapError(f"Usage: _run.py [{PLAIN}] MODULE ARG…")
        bundle = Path(os.environ.get("RUNNER_INPUT", INPUT)) / "bundle"
        work = work_folder(Path(os.environ.get("RUNNER_VOLUME", bundle.parent.parent)))
        python, kind = prepare(bundle, work, plain=plain)
        became = _environment(bundle, work, kind=kind, python=python)
        sys.stdout.flush()
        os.execve(python, [python, "-u", "-m", *arguments], became)
    except BootstrapError as error:
        _fail(str(error))
    except Exception as error:  # whatever it was, the job's page must say something
        _fail(f"The job's packages could not be made ready: {type(error).__name__}: {error}")


def work_folder(volume: Path) -> Path:
    """Where the job writes: on its volume, which has the size that was asked for, where it may, else where temporary
    files go, on the container's own disk. Raises Failed where neither can be written.
    """
    work = volume / "work"
    if _own(work):
        return work
    try:
        work = Path(tempfile.gettempdir()) / "runner-work"
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise BootstrapError(
            f"The job's user, number {os.getuid()}, may write neither {volume} nor elsewhere: {error}."
        ) from error
    free_gb = shutil.disk_usage(work).free / 1e9
    _say(f"user {os.getuid()} may not write {volume}; works in {work}, where {free_gb:.1f} GB are free")
    return work


def _own(folder: Path) -> bool:
    """Whether the folder is there and may be written; made with `sudo -n` where that is what it takes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return True
    except OSError:
        pass
    # with what the service has put there
    script, owner = 'mkdir -p "$1" && chown -R "$2" "$1"', f"{os.getuid()}:{os.getgid()}"
    command = ["sudo", "-n", "sh", "-c", script, "own", str(folder), owner]
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SUDO_S)
    except (OSError, subprocess.SubprocessError):
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def prepare(bundle: Path, work: Path, *, plain: bool) -> tuple[str, str]:
    """(the Python to go on with, "image", "lock" or "none": whose packages it has). Raises Failed."""
    try:
        wanted: dict[str, Any] = json.loads((bundle / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BootstrapError(f"{bundle / 'environment.json'} cannot be read: {error}.") from error
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here != ".".join(str(wanted["python"]).split(".")[:2]):
        raise BootstrapError(
            f"The image has Python {here}, the job was made for {wanted['python']}. "
            f'Write [sagemaker] python = "{here}" in pipeline.toml, or choose another image.'
        )
    if plain and (bundle / LIBRARY).is_file() and importlib.util.find_spec("boto3") is not None:
        _say("no notebook is executed yet, nothing installed")
        return sys.executable, "none"
    different = differences(wanted["pins"])
    if not different:
        _say("image equals the lock, nothing installed")
        return sys.executable, "image"
    if wanted["packages"] == "image":
        if not wanted.get("allow_other_versions"):
            raise BootstrapError(
                f"The image differs from the lock in {len(different)} package{'s' * (len(different) > 1)}: {_some(different)}. Make the image from "
                'infra/Dockerfile, write [sagemaker] packages = "lock", or allow_other_versions = true.'
            )
        _say(
            f"image differs from the lock in {len(different)} package{'s' * (len(different) > 1)}, as allowed: {_some(different)}"
        )
        return sys.executable, "image"
    if not wanted.get("wheels"):
        raise BootstrapError(f"The image differs from the lock, and the job has no wheels: {_some(different)}.")
    return make(wanted["pins"], wanted["wheels"], below=work), "lock"


def differences(pins: dict[str, str]) -> list[str]:
    """What this Python has otherwise than pinned, one entry for each package."""
    found = []
    for name, version in sorted(pins.items()):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is missing (lock: {version})")
            continue
        if installed != version:
            found.append(f"{name} {installed} (lock: {version})")
    return found


def make(pins: dict[str, str], wheels: dict[str, Any], *, below: Path) -> str:
    """The Python of a new environment with exactly `pins`. Raises Failed, and leaves nothing behind."""
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="made-", dir=below))
    try:
        folder = scratch / "wheels"
        folder.mkdir()
        fetch(wheels, folder)
        fetched_s = time.monotonic() - began
        uv = _uv(folder, scratch)
        python = _install(uv, pins, folder, scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    took_s = time.monotonic() - began
    _say(f"made an environment of {len(pins)} packages in {took_s:.1f} s ({fetched_s:.1f} s of it to fetch them)")
    return str(python)


def fetch(wheels: dict[str, Any], folder: Path) -> None:
    """Put every wheel into the folder, its hash checked. Raises Failed."""
    import concurrent.futures  # 0.05 s, as http.client, and only where the image is not the lock

    try:
        import boto3  # the image's own
        from botocore.config import Config
    except ImportError as error:
        raise BootstrapError(
            "The image has no boto3, which fetches the lock's packages. Choose an image that has it, or make one from "
            'infra/Dockerfile and write [sagemaker] packages = "image".'
        ) from error
    settings = Config(retries={"mode": "standard", "total_max_attempts": 4}, max_pool_connections=THREADS)
    client = boto3.client("s3", region_name=wheels["region"], config=settings)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        pending = [
            pool.submit(_fetch, client, wheels["bucket"], fact, folder / filename)
            for filename, fact in sorted(wheels["keys"].items(), key=lambda item: -int(item[1]["size"]))
        ]
        try:
            for future in concurrent.futures.as_completed(pending):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch(client: Any, bucket: str, fact: dict[str, Any], target: Path) -> None:
    import http.client

    from botocore.exceptions import BotoCoreError, ClientError

    address = f"s3://{bucket}/{fact['key']}"
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(0.25 * 2**attempt)
        try:
            body = client.get_object(Bucket=bucket, Key=fact["key"])["Body"]
            digest = hashlib.sha256()
            with target.open("wb") as file:
                while chunk := body.read(1 << 20):
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() == fact["sha256"]:
                return
            problem = f"{address} does not have the bytes that were uploaded: its hash differs from the recorded one"
            if attempt:
                break  # twice whole and twice other bytes: it was altered
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            problem = f"{address} was answered {code}; the job's role needs s3:GetObject on it"
            if code not in TEMPORARY and status < 500:
                break
        except (BotoCoreError, http.client.HTTPException, OSError) as error:
            problem = f"{address} did not arrive: {type(error).__name__}: {error}"
        except Exception as error:  # urllib3's errors share no base with the others, and it may not be importable
            if not type(error).__module__.startswith("urllib3"):
                raise
            problem = f"{address} did not arrive: {error}"
    raise BootstrapError(f"{problem}.")


def _uv(folder: Path, scratch: Path) -> Path:
    """The installer, taken out of its own wheel."""
    for wheel in sorted(folder.glob("uv-*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".data/scripts/uv"):
                    program = scratch / "uv"
                    program.write_bytes(archive.read(name))
                    program.chmod(0o755)
                    return program
    raise BootstrapError("The lock has no uv, which installs its packages. Add uv to the lock and run again.")


def _install(uv: Path, pins: dict[str, str], folder: Path, scratch: Path) -> Path:
    """The Python of an environment with the pins, compared with them once it is made."""
    made = scratch / "environment"
    wanted = scratch / "pins.txt"
    wanted.write_text("".join(f"{name}=={version}\n" for name, version in sorted(pins.items())), encoding="utf-8")
    # the cache lies beside the environment, so that files are linked and not copied
    common = ["--offline", "--no-config", "--quiet", "--cache-dir", str(scratch / "cache")]
    _do([str(uv), "venv", *common, "--python", sys.executable, str(made)])
    python = made / "bin" / "python"
    found = ["--no-index", "--no-deps", "--find-links", str(folder), "--link-mode", "hardlink"]
    _do([str(uv), "pip", "install", *common, *found, "--python", str(python), "-r", str(wanted)])
    check = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import _run, json; "
    check += "print(json.dumps(_run.differences(json.load(sys.stdin))))"
    different = json.loads(_do([str(python), "-I", "-c", check], given=json.dumps(pins)))
    if different:
        raise BootstrapError(f"The environment differs from the lock after it was made: {_some(different)}.")
    return python


def _do(command: list[str], *, given: str = "") -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PYTHON"))}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
    _children.append(process)
    out, err = process.communicate(given)
    _children.remove(process)
    if process.returncode != 0:
        raise BootstrapError(f"{' '.join(command[:3])} ended with {process.returncode}: {' '.join(err.split())}")
    return out


def _environment(bundle: Path, work: Path, *, kind: str, python: str) -> dict[str, str]:
    # the runner's modules come out of their archive, as its templates have to be files, and msgspec is compiled
    ours = [_taken_out(bundle / SOURCES, work / "runner")]
    if kind == "none":
        ours.append(_taken_out(bundle / LIBRARY, work / "library"))
    made = {**os.environ, "PYTHONPATH": os.pathsep.join(ours), "RUNNER_ENVIRONMENT": kind, "RUNNER_WORK": str(work)}
    made.setdefault(
        "RUNNER_PYTHONPATH", os.environ.get("PYTHONPATH", "")
    )  # for a module that begins again, with packages
    if "RUNNER_CHECKPOINTS" in os.environ:
        made["RUNNER_CHECKPOINTS"] = str(_checkpoints(Path(os.environ["RUNNER_CHECKPOINTS"]), work))
    if not os.access(os.environ.get("HOME", ""), os.W_OK | os.X_OK):  # IPython, Jupyter and many a library write there
        (work / "home").mkdir(exist_ok=True)
        made["HOME"] = str(work / "home")
    if kind == "lock":  # nothing of the image may show through
        made.pop("PYTHONHOME", None)
        made["PYTHONNOUSERSITE"] = "1"
        made["VIRTUAL_ENV"] = str(Path(python).parents[1])
        made["PATH"] = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", os.defpath)])
    return made


def _checkpoints(folder: Path, work: Path) -> Path:
    """The folder that outlives an instance, where the job may write it; else one that does not."""
    if _own(folder):
        return folder
    own = work / "checkpoints"
    own.mkdir(exist_ok=True)
    _say(f"user {os.getuid()} may not write {folder}: RUNNER_CHECKPOINTS is {own}, which goes with the instance")
    return own


def _taken_out(archive: Path, target: Path) -> str:
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(target)
    return str(target)


def _some(different: list[str]) -> str:
    more = f", and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    return ", ".join(different[:SHOWN]) + more


def _say(text: str) -> None:
    sys.stdout.write(f"runner: {text}\n")
    sys.stdout.flush()


def _fail(sentence: str) -> NoReturn:
    sys.stderr.write(f"runner: {sentence}\n")
    sys.stderr.flush()
    leave_message(sentence)
    sys.exit(FAILED)


def leave_message(sentence: str) -> None:
    """Leave it where the job's page takes it from, else, whole, below the job's output in S3."""
    folder = Path(os.environ.get("RUNNER_OUTPUT", OUTPUT))
    # SageMaker fails the job over a message that is not UTF-8
    whole = sentence.encode("utf-8", "replace")
    try:
        if _own(folder):
            name = os.environ.get("RUNNER_MESSAGE", "message")
            (folder / name).write_bytes(whole[:MESSAGE_BYTES].decode("utf-8", "ignore").encode())
        else:
            _put_message(folder.parent / "config" / CONFIGURATION, whole)
    except Exception as error:  # it is the last thing that a job does, and its log has the sentence
        sys.stderr.write(f"runner: that could not be left at {folder}, nor in S3: {type(error).__name__}: {error}\n")


def _put_message(file: Path, content: bytes) -> None:
    import boto3  # the image's own

    place = Path(os.environ.get("RUNNER_INPUT", INPUT)) / "job" / "place.json"
    if place.is_file():  # of a step's own job
        told = json.loads(place.read_bytes())
        output, kms_key, region = f"s3://{told['bucket']}/{told['key']}out/", told.get("kms_key"), told["region"]
    else:
        configuration = json.loads(file.read_bytes())
        output = configuration["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3Uri"]
        kms_key = configuration["ProcessingOutputConfig"].get("KmsKeyId")
        region = configuration["ProcessingJobArn"].split(":")[3]
    bucket, _, key = output.removeprefix("s3://").partition("/")
    encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
    client = boto3.client("s3", region_name=region)
    client.put_object(Bucket=bucket, Key=f"{key.rstrip('/')}/message", Body=content, **encryption)


def _end(_number: int, _frame: object) -> NoReturn:
    for child in _children:
        child.kill()
    os._exit(TERMINATED)


if __name__ == "__main__":
    main(sys.argv[1:])

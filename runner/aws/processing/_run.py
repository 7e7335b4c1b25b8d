"""The first program in a job's container: it makes sure that the packages are those of the lock, then becomes the step.

`python3 -u …/bundle/_run.py [--plain] MODULE ARG…`. It needs the standard library only (Python 3.10 or newer), and the
image's boto3 where it fetches wheels. `environment.json` beside it says what to expect. No step starts in an
environment that was not installed completely and compared with the lock. `--plain` is for a module that executes no
notebook yet: it has only msgspec from the bundle and the image's boto3, and may start this program again without it.

/opt/ml belongs to root, and the user of many images is another (SageMaker Distribution's: number 1000, sudo without a
password; https://github.com/aws/sagemaker-python-sdk/issues/4764). So everything is written into one work folder
(`work_folder`). Only /opt/ml/output/message has a fixed place; where it cannot be written, the message goes to S3.

    work/runner/      the runner's modules
    work/library/     msgspec, with --plain
    work/made-…/      the environment, where the image is not the lock
    work/home/        HOME, where the image's is missing or read-only
    work/step/, work/project/    the step (`inside.py`)

A training job has other places, which its environment names (`training.py`): RUNNER_INPUT, RUNNER_VOLUME,
RUNNER_MESSAGE (the file's name), RUNNER_CHECKPOINTS (a folder that the notebook must be able to write).
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
CONFIGURATION = "processingjobconfig.json"  # the job's description by the service, in /opt/ml/config
SUDO_S = 30
SHOWN = 12  # differences in a message
TEMPORARY = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException")


class BootstrapError(Exception):
    """One sentence for the person who started the job."""


_children: list[subprocess.Popen[str]] = []


def main(arguments: list[str]) -> NoReturn:
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("RUNNER_BEGAN", str(time.time()))
    try:
        plain = arguments[:1] == [PLAIN]
        arguments = arguments[plain:]
        if not arguments:
            raise BootstrapError(f"Usage: _run.py [{PLAIN}] MODULE ARG…")
        bundle = Path(os.environ.get("RUNNER_INPUT", INPUT)) / "bundle"
        work = work_folder(Path(os.environ.get("RUNNER_VOLUME", bundle.parent.parent)))
        python, kind = prepare(bundle, work, plain=plain)
        variables = _variables(bundle, work, kind=kind, python=python)
        sys.stdout.flush()
        os.execve(python, [python, "-u", "-m", *arguments], variables)
    except BootstrapError as error:
        _fail(str(error))
    except Exception as error:  # whatever it was, the job's page must say something
        _fail(f"The job's packages could not be made ready: {type(error).__name__}: {error}")


def work_folder(volume: Path) -> Path:
    """Where the job writes: on its volume, which has the size that was asked for; where that is read-only, below the
    folder for temporary files, on the container's own disk. Raises BootstrapError where both are read-only.
    """
    work = volume / "work"
    if _make_writable(work):
        return work
    try:
        work = Path(tempfile.gettempdir()) / "runner-work"
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise BootstrapError(
            f"The job's user, number {os.getuid()}, may write neither {volume} nor elsewhere: {error}."
        ) from error
    free_gb = shutil.disk_usage(work).free / 1e9
    _log(f"user {os.getuid()} may not write {volume}; works in {work}, where {free_gb:.1f} GB are free")
    return work


def _make_writable(folder: Path) -> bool:
    """Whether the folder exists and is writable; made so with `sudo -n` where that is needed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return True
    except OSError:
        pass
    # with the files that the service has put there
    script, owner = 'mkdir -p "$1" && chown -R "$2" "$1"', f"{os.getuid()}:{os.getgid()}"
    command = ["sudo", "-n", "sh", "-c", script, "own", str(folder), owner]
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SUDO_S)
    except (OSError, subprocess.SubprocessError):
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def prepare(bundle: Path, work: Path, *, plain: bool) -> tuple[str, str]:
    """(the Python for the module, "image", "lock" or "none": whose packages it has). Raises BootstrapError."""
    file = bundle / "environment.json"
    try:
        expected: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BootstrapError(f"{file} cannot be read: {error}.") from error
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python != ".".join(str(expected["python"]).split(".")[:2]):
        raise BootstrapError(
            f"The image has Python {python}, the job was made for {expected['python']}. "
            f'Write [sagemaker] python = "{python}" in pipeline.toml, or choose another image.'
        )
    if plain and (bundle / LIBRARY).is_file() and importlib.util.find_spec("boto3") is not None:
        _log("no notebook is executed yet, nothing installed")
        return sys.executable, "none"
    different = differences(expected["pins"])
    if not different:
        _log("image equals the lock, nothing installed")
        return sys.executable, "image"
    if expected["packages"] == "image":
        count = f"{len(different)} package{'s' * (len(different) > 1)}"
        if not expected.get("allow_other_versions"):
            raise BootstrapError(
                f"The image differs from the lock in {count}: {_some(different)}. Make the image from "
                'infra/Dockerfile, write [sagemaker] packages = "lock", or allow_other_versions = true.'
            )
        _log(f"image differs from the lock in {count}, as allowed: {_some(different)}")
        return sys.executable, "image"
    if not expected.get("wheels"):
        raise BootstrapError(f"The image differs from the lock, and the job has no wheels: {_some(different)}.")
    return make(expected["pins"], expected["wheels"], below=work), "lock"


def differences(pins: dict[str, str]) -> list[str]:
    """How this Python's packages differ from the pins, one entry for each package."""
    different = []
    for name, version in sorted(pins.items()):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            different.append(f"{name} is missing (lock: {version})")
            continue
        if installed != version:
            different.append(f"{name} {installed} (lock: {version})")
    return different


def make(pins: dict[str, str], wheels: dict[str, Any], *, below: Path) -> str:
    """The Python of a new environment with exactly `pins`. Raises BootstrapError, and then leaves no files."""
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="made-", dir=below))
    try:
        folder = scratch / "wheels"
        folder.mkdir()
        fetch(wheels, folder)
        fetched_s = time.monotonic() - began
        python = _install(_uv(folder, scratch), pins, folder, scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    took_s = time.monotonic() - began
    _log(f"made an environment of {len(pins)} packages in {took_s:.1f} s ({fetched_s:.1f} s of it to fetch them)")
    return str(python)


def fetch(wheels: dict[str, Any], folder: Path) -> None:
    """Download every wheel into the folder and check its hash. Raises BootstrapError."""
    import concurrent.futures  # 0.05 s, and only where the image is not the lock

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
    largest_first = sorted(wheels["keys"].items(), key=lambda item: -int(item[1]["size"]))
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        pending = [pool.submit(_fetch, client, wheels["bucket"], wheel, folder / name) for name, wheel in largest_first]
        try:
            for future in concurrent.futures.as_completed(pending):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch(client: Any, bucket: str, wheel: dict[str, Any], target: Path) -> None:
    from botocore.exceptions import ClientError

    address = f"s3://{bucket}/{wheel['key']}"
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(0.25 * 2**attempt)
        try:
            body = client.get_object(Bucket=bucket, Key=wheel["key"])["Body"]
            digest = hashlib.sha256()
            with target.open("wb") as file:
                while chunk := body.read(1 << 20):
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() == wheel["sha256"]:
                return
            problem = f"{address} does not have the bytes that were uploaded: its hash differs from the recorded one"
            if attempt:
                break  # twice complete and twice other bytes: it was altered
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            problem = f"{address} was answered {code}; the job's role needs s3:GetObject on it"
            if code not in TEMPORARY and status < 500:
                break
        except Exception as error:  # those of botocore, urllib3 and http.client share no base class
            problem = f"{address} did not arrive: {type(error).__name__}: {error}"
    raise BootstrapError(f"{problem}.")


def _uv(folder: Path, scratch: Path) -> Path:
    """The installer, taken from its own wheel."""
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
    """The Python of an environment with the pins, compared with them after the installation."""
    environment, requirements = scratch / "environment", scratch / "pins.txt"
    requirements.write_text("".join(f"{name}=={version}\n" for name, version in sorted(pins.items())), encoding="utf-8")
    # the cache lies beside the environment, so that files are linked and not copied
    common = ["--offline", "--no-config", "--quiet", "--cache-dir", str(scratch / "cache")]
    _output_of([str(uv), "venv", *common, "--python", sys.executable, str(environment)])
    python = environment / "bin" / "python"
    source = ["--no-index", "--no-deps", "--find-links", str(folder), "--link-mode", "hardlink"]
    _output_of([str(uv), "pip", "install", *common, *source, "--python", str(python), "-r", str(requirements)])
    check = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import _run, json; "
    check += "print(json.dumps(_run.differences(json.load(sys.stdin))))"
    different = json.loads(_output_of([str(python), "-I", "-c", check], stdin=json.dumps(pins)))
    if different:
        raise BootstrapError(f"The environment differs from the lock after it was made: {_some(different)}.")
    return python


def _output_of(command: list[str], *, stdin: str = "") -> str:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PYTHON"))}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=variables)
    _children.append(process)
    out, err = process.communicate(stdin)
    _children.remove(process)
    if process.returncode != 0:
        raise BootstrapError(f"{' '.join(command[:3])} ended with {process.returncode}: {' '.join(err.split())}")
    return out


def _variables(bundle: Path, work: Path, *, kind: str, python: str) -> dict[str, str]:
    """The environment variables of the module."""
    # unpacked, as the runner's templates have to be files, and msgspec is compiled
    archives = {work / "runner": SOURCES} | ({work / "library": LIBRARY} if kind == "none" else {})
    for target, archive in archives.items():
        shutil.unpack_archive(bundle / archive, target)
    variables = {**os.environ, "RUNNER_ENVIRONMENT": kind, "RUNNER_WORK": str(work)}
    # for a module that starts this program again, to have packages
    variables.setdefault("RUNNER_PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    variables["PYTHONPATH"] = os.pathsep.join(str(target) for target in archives)
    if "RUNNER_CHECKPOINTS" in os.environ:
        variables["RUNNER_CHECKPOINTS"] = str(_checkpoints(Path(os.environ["RUNNER_CHECKPOINTS"]), work))
    if not os.access(os.environ.get("HOME", ""), os.W_OK | os.X_OK):  # IPython, Jupyter and many libraries write there
        (work / "home").mkdir(exist_ok=True)
        variables["HOME"] = str(work / "home")
    if kind == "lock":  # nothing of the image may be imported
        variables.pop("PYTHONHOME", None)
        variables["PYTHONNOUSERSITE"] = "1"
        variables["VIRTUAL_ENV"] = str(Path(python).parents[1])
        variables["PATH"] = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", os.defpath)])
    return variables


def _checkpoints(folder: Path, work: Path) -> Path:
    """The folder that outlives an instance, where the job may write it; else one that does not."""
    if _make_writable(folder):
        return folder
    own = work / "checkpoints"
    own.mkdir(exist_ok=True)
    _log(f"user {os.getuid()} may not write {folder}: RUNNER_CHECKPOINTS is {own}, which goes with the instance")
    return own


def _some(different: list[str]) -> str:
    more = f", and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    return ", ".join(different[:SHOWN]) + more


def _log(text: str) -> None:
    sys.stdout.write(f"runner: {text}\n")
    sys.stdout.flush()


def _fail(sentence: str) -> NoReturn:
    sys.stderr.write(f"runner: {sentence}\n")
    sys.stderr.flush()
    leave_message(sentence)
    sys.exit(FAILED)


def leave_message(sentence: str) -> None:
    """Write the sentence where the job's page shows it; else, unshortened, below the job's output in S3."""
    folder = Path(os.environ.get("RUNNER_OUTPUT", OUTPUT))
    # SageMaker fails the job over a message that is not UTF-8
    content = sentence.encode("utf-8", "replace")
    try:
        if _make_writable(folder):
            name = os.environ.get("RUNNER_MESSAGE", "message")
            (folder / name).write_bytes(content[:MESSAGE_BYTES].decode("utf-8", "ignore").encode())
        else:
            _put_message(folder.parent / "config" / CONFIGURATION, content)
    except Exception as error:  # it is the last thing that a job does, and its log has the sentence
        sys.stderr.write(f"runner: that could not be left at {folder}, nor in S3: {type(error).__name__}: {error}\n")


def _put_message(file: Path, content: bytes) -> None:
    import boto3  # the image's own

    own = Path(os.environ.get("RUNNER_INPUT", INPUT)) / "job" / "place.json"
    if own.is_file():  # of a step's own job
        place = json.loads(own.read_bytes())
        output, kms_key, region = f"s3://{place['bucket']}/{place['key']}out/", place.get("kms_key"), place["region"]
    else:
        configuration = json.loads(file.read_bytes())
        output = configuration["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3Uri"]
        kms_key = configuration["ProcessingOutputConfig"].get("KmsKeyId")
        region = configuration["ProcessingJobArn"].split(":")[3]
    bucket, _, key = output.removeprefix("s3://").partition("/")
    encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
    client = boto3.client("s3", region_name=region)
    client.put_object(Bucket=bucket, Key=f"{key.rstrip('/')}/message", Body=content, **encryption)


def _terminate(_number: int, _frame: object) -> NoReturn:
    for child in _children:
        child.kill()
    os._exit(TERMINATED)


if __name__ == "__main__":
    main(sys.argv[1:])

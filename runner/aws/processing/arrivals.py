"""What a job brings itself, where the service could not: its address was not known yet when the job was made."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from runner.aws.bucket import Bucket
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.errors import RemoteError
from runner.paths import inside

THREADS = 4


def fetch(address: str, folder: Path, session: Session) -> Path:
    """Bring the object, or everything below an address that ends in `/`, into the folder; the path of what came.

    Whoever reads it compares it with what was recorded. Raises RemoteError where there is nothing.
    """
    name, key = split(address)
    bucket = Bucket(session, name, key if address.endswith("/") else f"{key.rpartition('/')[0]}/".lstrip("/"))
    folder.mkdir(parents=True, exist_ok=True)
    if not address.endswith("/"):
        bucket.download(PurePosixPath(key).name, folder / PurePosixPath(key).name)
        return folder / PurePosixPath(key).name
    wanted = {path: folder / inside(path) for path, _ in bucket.keys("") if path and not path.endswith("/")}
    if not wanted:
        raise RemoteError(f"There is nothing below {address}, which the job is to read. It was removed.")
    for target in wanted.values():
        target.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(bucket.download, path, target) for path, target in wanted.items()]:
            done.result()
    return folder

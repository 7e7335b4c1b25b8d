"""Inputs from outside: HTTP, S3, links and pipes; fetched once, recorded with version and hash, never half."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import command, environment
from support.projects import PAGES, Project, parameters, program, recorded
from support.web import Shelf, serving

from runner.errors import RemoteError
from runner.pipeline.addresses import is_public, public
from runner.pipeline.file import is_address
from runner.run.web import Web

TABLE = b"a,b\n1,2\n3,4\n"


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """The environment of a process that talks to a small S3 over HTTP."""
    import boto3
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
    client = boto3.client(
        "s3",
        endpoint_url=found["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket="tables")
    client.put_bucket_versioning(Bucket="tables", VersioningConfiguration={"Status": "Enabled"})
    client.put_object(Bucket="tables", Key="one.csv", Body=TABLE)
    for day in ("01", "02"):
        client.put_object(Bucket="tables", Key=f"daily/{day}/part.csv", Body=day.encode())
    yield found
    server.stop()


def reading(project: Project, source: str, **extra: str) -> Project:
    """A pipeline of one step that copies its source, or lists it where it is a folder or an address."""
    project.write(
        "nb.ipynb",
        parameters('source: str = ""\ncopy: str = ""'),
        "import pathlib\ngiven = pathlib.Path(source)\n"
        "found = given.read_bytes() if given.is_file() else '\\n'.join("
        "str(p.relative_to(given)) for p in sorted(given.rglob('*.csv'))).encode() if given.is_dir() else source.encode()",
        "assert pathlib.Path(copy).write_bytes(found) is not None",
    )
    keys = "".join(f", {name} = {value}" for name, value in extra.items())
    project.toml(
        'name = "reads"\n[steps.only]\nnotebook = "nb.ipynb"\noutputs = { copy = "copy" }\n'
        f'inputs = {{ source = {{ from = "{source}"{keys} }} }}\n'
    )
    return project


def copied(project: Project) -> bytes:
    return (project.runs[-1] / "steps" / "only" / "out" / "copy").read_bytes()


def test_an_address_is_fetched_once_and_recorded_with_its_version_and_hash(project: Project, shelf: Shelf) -> None:
    shelf.files["/t.csv"] = TABLE
    reading(project, f"{shelf.address}/t.csv")
    assert project.runner("run").code == 0
    assert copied(project) == TABLE
    fact = project.manifest["sources"]["only.source"]
    assert fact["artifact"]["sha256"] == hashlib.sha256(TABLE).hexdigest()
    assert fact["version"]
    assert project.runner("run", "--force").code == 0
    assert shelf.asked["GET"] == 1
    shelf.files["/t.csv"] = TABLE * 2
    done = project.runner("run", "--json")
    assert done.json["steps"][0]["status"] == "succeeded"
    assert copied(project) == TABLE * 2
    assert "input source changed" in done.err


def test_a_download_cut_short_is_refused_and_nothing_of_it_is_used(project: Project, shelf: Shelf) -> None:
    shelf.files["/t.csv"] = TABLE * 1000
    shelf.cut = 7
    done = reading(project, f"{shelf.address}/t.csv").runner("run")
    assert done.code == 7
    assert shelf.address in done.err
    assert not list((project.folder / "runs").glob("*/run.json"))
    assert not [path for path in (project.folder / "runs" / "objects").iterdir() if path.is_file()]
    shelf.cut = 0
    assert project.runner("run").code == 0


def test_an_address_that_is_not_there_is_named(project: Project, shelf: Shelf) -> None:
    done = reading(project, f"{shelf.address}/none.csv").runner("run")
    assert done.code == 7
    assert f"{shelf.address}/none.csv: 404" in done.err
    assert reading(project, f"{shelf.address}/none.csv", optional="true").runner("run").code == 0
    assert copied(project) == b""


def test_an_object_in_s3_is_read_by_its_version(project: Project, bucket: dict[str, str]) -> None:
    done = reading(project, "s3://tables/one.csv").runner("run", env=bucket)
    assert done.code == 0, done.err
    assert copied(project) == TABLE
    fact = project.manifest["sources"]["only.source"]
    assert fact["source"] == "s3://tables/one.csv"
    assert len(fact["version"]) > 8
    missing = reading(project, "s3://tables/none.csv").runner("run", env=bucket)
    assert missing.code == 7
    assert "head_object was answered 404" in missing.err


def test_a_prefix_in_s3_is_a_folder_and_as_uri_it_is_only_listed(project: Project, bucket: dict[str, str]) -> None:
    assert reading(project, "s3://tables/daily/").runner("run", env=bucket).code == 0
    assert copied(project) == b"01/part.csv\n02/part.csv"
    done = reading(project, "s3://tables/daily/", **{"as": '"uri"'}).runner("run", "--json", env=bucket)
    assert done.code == 0, done.err
    assert copied(project) == b"s3://tables/daily/"
    assert project.manifest["sources"]["only.source"]["artifact"]["size_bytes"] == 4
    again = project.runner("run", "--json", env=bucket)
    assert [step["status"] for step in again.json["steps"]] == ["cached"]


def test_a_key_that_climbs_out_of_its_folder_is_refused(project: Project, bucket: dict[str, str]) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=bucket["AWS_ENDPOINT_URL"], region_name="us-east-1",
                          aws_access_key_id="test", aws_secret_access_key="test")  # fmt: skip
    client.put_object(Bucket="tables", Key="evil/../../../../climbed.csv", Body=b"!")
    done = reading(project, "s3://tables/evil/").runner("run", env=bucket)
    assert done.code == 8
    assert "leads out of its folder" in done.err
    assert not list(project.folder.rglob("climbed.csv"))


ELSEWHERE = (
    "http://192.0.2.1/t.csv",
    "http://127.0.0.1@evil.example/t.csv",
    "http://127.0.0.1:80@evil.example/t.csv",
    "http://localhost.evil.example/t.csv",
    "http://127.0.0.1.evil.example/t.csv",
    "http://localhost\\@evil.example/t.csv",
    "http://local\thost/t.csv",
    "http://[::2]/t.csv",
    "http:///t.csv",
    "http://[127.0.0.1",
)


def test_plain_http_is_only_for_this_machine(project: Project) -> None:
    assert [address for address in ELSEWHERE if is_address(address)] == []
    for address in ("http://127.0.0.1:8000/t.csv", "http://localhost/t.csv", "http://[::1]/t.csv?a@b"):
        assert is_address(address)
    done = reading(project, ELSEWHERE[1]).runner("run")
    assert (done.code, "https" in done.err) == (2, True)
    for address in (ELSEWHERE[3], "http://ann:hunter2@127.0.0.1/t.csv"):
        done = reading(project, "./nb.ipynb").runner("run", "-p", f"only.source={address}")
        assert (done.code, "plain http is for this machine alone" in done.err) == (2, True)
        assert "hunter2" not in done.err


def test_an_answer_from_this_machine_cannot_lead_to_plain_http_elsewhere(project: Project, shelf: Shelf) -> None:
    shelf.files["/t.csv"] = TABLE
    shelf.leads = {"/near": f"{shelf.address}/t.csv", "/far": "http://localhost.evil.example/t.csv"}
    done = reading(project, f"{shelf.address}/far").runner("run")
    assert (done.code, "neither https nor this machine" in done.err) == (7, True)
    done = reading(project, f"{shelf.address}/near").runner("run", env={"http_proxy": "http://192.0.2.1:9"})
    assert (done.code, copied(project)) == (0, TABLE)


@pytest.mark.parametrize("kind", ["pipe", "loop", "device"])
def test_what_is_no_file_is_refused_and_never_hangs(project: Project, kind: str) -> None:
    source = project.folder / "source"
    match kind:
        case "pipe":
            os.mkfifo(source)
        case "loop":
            source.symlink_to("source")
        case "device":
            source.symlink_to("/dev/zero")
    done = reading(project, "./source").runner("run")
    assert done.code in (2, 8)
    assert "source" in done.err
    assert not list((project.folder / "runs").glob("2*")) if (project.folder / "runs").exists() else True


def test_a_store_that_cannot_be_written_is_refused_before_anything_runs(project: Project) -> None:
    reading(project, "./nb.ipynb")
    (project.folder / "runs").write_text("in the way")  # as root, permissions alone refuse nothing
    done = project.runner("run")
    assert done.code == 8
    assert "Cannot write to" in done.err
    assert "starting" not in done.err


def test_a_store_on_a_read_only_disk_is_refused_before_anything_runs(project: Project) -> None:
    reading(project, "./nb.ipynb")
    (project.folder / "runs").mkdir()
    mounted = subprocess.run(
        [program("mount"), "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", project.folder / "runs"],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.decode().strip()}")
    try:
        done = project.runner("run")
    finally:
        subprocess.run(["umount", "--lazy", project.folder / "runs"], check=True)
    assert done.code == 8
    assert "Cannot write to" in done.err
    assert "starting" not in done.err


def test_two_runs_at_once_both_finish_with_ids_of_their_own(project: Project) -> None:
    reading(project, "./nb.ipynb")
    going = [
        subprocess.Popen(
            command("run", "--json", "--force"),
            cwd=project.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = [json.loads(process.communicate(timeout=120)[0]) for process in going]
    assert [process.returncode for process in going] == [0, 0]
    assert len({run["run"] for run in told}) == 2
    assert project.runner("verify", "--all").code == 0


def test_a_source_that_is_kept_is_read_from_the_runs_own_bytes(project: Project) -> None:
    source: Path = project.folder / "t.csv"
    source.write_bytes(TABLE)
    assert reading(project, "./t.csv", keep="true").runner("run").code == 0
    source.write_bytes(b"overwritten")
    assert (project.runs[-1] / "steps" / "only" / "in" / "source").read_bytes() == TABLE
    assert project.runner("verify", "latest").code == 0


SIGNED = "X-Amz-Credential=AKIDCANARY%2F20261128&X-Amz-Signature=" + "5ca1ab1e" * 8


def stored(folder: Path, *texts: str) -> list[str]:
    """The files below the folder that hold one of the texts."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if any(text.encode() in path.read_bytes() for text in texts)]


def test_what_signs_an_address_fetches_it_and_stands_in_no_file(project: Project, shelf: Shelf) -> None:
    shelf.only_get = True
    shelf.files[f"/t.csv?versionId=7&{SIGNED}"] = TABLE
    address = f"{shelf.address}/t.csv?versionId=7&{SIGNED}"
    reading(project, address)
    done = project.runner("run", "--force", env=PAGES)
    assert done.code == 0, done.err
    assert copied(project) == TABLE
    fact = project.manifest["sources"]["only.source"]
    assert fact["source"] == f"{shelf.address}/t.csv?versionId=7&X-Amz-Credential=***&X-Amz-Signature=***"
    given = project.runner("run", "-p", f"only.source={address}", "--json", env=PAGES)
    assert given.code == 0
    assert project.manifest["overrides"] == {"only.source": fact["source"]}
    shown = [project.runner(*words) for words in (("show", "latest"), ("show", "latest", "--md"), ("check",))]
    assert stored(project.folder / "runs", "5ca1ab1e", "AKIDCANARY") == []
    assert not any("5ca1ab1e" in one.out + one.err for one in (done, given, *shown))
    # signed anew it is the same file: nothing is fetched twice
    shelf.files[f"/t.csv?versionId=7&{SIGNED.replace('5ca1ab1e', 'deadbeef')}"] = TABLE
    shelf.asked.clear()
    again = project.runner("run", "-p", f"only.source={address.replace('5ca1ab1e', 'deadbeef')}", env=PAGES)
    assert again.code == 0
    assert shelf.asked["GET"] == 1  # its headers

    # the bytes are gone: what cannot be fetched again says why, and names the command
    for path in (project.folder / "runs" / "objects").iterdir():
        path.unlink()
    lost = project.runner("reproduce", "latest")
    assert lost.code == 8
    assert "Its credentials are in no record (***): start anew with `runner run` and the whole address" in lost.err
    shelf.files.clear()
    expired = project.runner("run", env=PAGES)
    assert expired.code == 7
    assert "5ca1ab1e" not in expired.err


def test_a_swept_address_is_written_without_what_signs_it(project: Project, shelf: Shelf) -> None:
    addresses = [f"{shelf.address}/{name}.csv?{SIGNED}" for name in ("a", "b")]
    shelf.files |= {address.removeprefix(shelf.address): TABLE for address in addresses}
    project.write("nb.ipynb", parameters('source: str = ""'), recorded("size", "float(len(open(source).read()))"))
    project.toml('name = "p"\n[steps.only]\nnotebook = "nb.ipynb"\ninputs = { source = "./x.csv" }\n')
    (project.folder / "x.csv").write_bytes(TABLE)
    done = project.runner("sweep", "only", "-p", f"only.source={','.join(addresses)}", "--metric", "only.size")
    assert done.code == 0, done.err
    assert "a.csv?X-Amz-Credential=***" in done.out
    assert "5ca1ab1e" not in done.out + done.err
    assert stored(project.folder / "runs", "5ca1ab1e") == []


def test_a_signed_address_is_not_handed_to_a_notebook_as_text(project: Project) -> None:
    reading(project, f"https://example.org/t.csv?{SIGNED}", **{"as": '"uri"'})
    done = project.runner("check")
    assert done.code == 2
    assert "would stand in the executed notebook. Have it fetched (without `as`)" in done.out + done.err
    assert "5ca1ab1e" not in done.out + done.err


def test_user_and_password_of_an_address_let_one_in_and_are_not_said(shelf: Shelf) -> None:
    shelf.user, shelf.files["/t.csv"] = "ann:p@ss/w:rd", TABLE
    host = shelf.address.removeprefix("http://")
    address = f"http://ann:p%40ss%2Fw%3Ard@{host}/t.csv"
    (file,) = Web().listing(address)
    target = io.BytesIO()
    Web().download(address, file, target)
    assert target.getvalue() == TABLE
    with pytest.raises(RemoteError, match=r"\*\*\*@") as refused:
        Web().listing(address.replace("p%40ss", "wr0ng"))
    assert "wr0ng" not in str(refused.value)
    assert "may have expired or be wrong" in str(refused.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://ann:pw@h.example/a.csv?x=1", "https://***@h.example/a.csv?x=1"),
        ("https://ann:p@ss@h.example/a", "https://***@h.example/a"),
        ("https://ghp_token@h.example/a", "https://***@h.example/a"),
        ("https://h/a?X-Amz-Signature=1&X-Amz-Date=2", "https://h/a?X-Amz-Signature=***&X-Amz-Date=2"),
        ("https://h/a?X%2DAmz%2DSecurity%2DToken=1", "https://h/a?X%2DAmz%2DSecurity%2DToken=***"),
        ("https://h/a?AWSAccessKeyId=1&Signature=2", "https://h/a?AWSAccessKeyId=***&Signature=***"),
        ("https://h/a?X-Goog-Signature=1;sig=2&sv=3", "https://h/a?X-Goog-Signature=***;sig=***&sv=3"),
        ("https://h/a?Key-Pair-Id=1&Policy=2", "https://h/a?Key-Pair-Id=***&Policy=***"),
        ("https://h/a?access_token=1&API_KEY=2&password=3#token=4", "https://h/a?access_token=***&API_KEY=***&password=***#token=***"),
        ("https://h/monkey.csv?table=churn&versionId=1", "https://h/monkey.csv?table=churn&versionId=1"),
        ("s3://bucket/key=1/a.csv?token=1", "s3://bucket/key=1/a.csv?token=1"),
    ],
)  # fmt: skip
def test_an_address_is_written_without_what_lets_one_in(address: str, said: str) -> None:
    assert public(address) == said
    assert public(said) == said
    assert is_public(address) == (address == said)

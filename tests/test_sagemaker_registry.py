"""The registry in SageMaker survives what the service does: crashes in between, lost replies, others at work, Studio."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import msgspec
import pytest
from account import identities, key
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sagemaker import CLIENT_KEY, SmallSageMaker
from support import judged
from support.commands import environment
from support.registries import (
    BUCKET,
    FIRST_MODEL,
    SECOND_MODEL,
    emptied,
    everything,
    folder_of,
    in_sagemaker,
    new,
    numbers,
    started,
)
from support.three_steps import TOML, made
from support.visits import pages_of

from runner.aws.creation import archive_key, creation
from runner.aws.history import facts_key, facts_sha256
from runner.aws.life_cycle import stage
from runner.aws.package import check_package, package
from runner.aws.registry import SageMakerRegistry, caller
from runner.aws.session import AwsError, Session
from runner.errors import Refused, RunnerError, Tampered
from runner.failpoint import SAGEMAKER_NAMES, VARIABLE
from runner.model.events import verify_chain
from runner.model.registry import LocalRegistry
from runner.model.versions import NewVersion, Registry
from runner.records import encode
from runner.ui.access import hasher

# registers the version in a file, or decides on m/1; writes what came of it
WORKER = """
import sys
from pathlib import Path
from runner.aws.bucket import Bucket
from runner.aws.registry import SageMakerRegistry
from runner.aws.session import Session
from runner.errors import Refused
from runner.model.versions import NewVersion
from runner.records import read
prefix, what, where, who = sys.argv[1:]
session = Session(patience_s=60)
folders = Path(where).parent / "folders"
registry = SageMakerRegistry(
    session, Bucket(session, "models", prefix), model_folder=lambda new: folders / new.sha256
)
try:
    if what == "register":
        print(registry.register(read(NewVersion, Path(where))).version)
    else:
        print(registry.decide("m", 1, what, who=who, why=f"{what} at once").status)
except Refused as error:
    print(error)
    sys.exit(8)
"""
OWN = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/own:1"  # of another account
EVENT = "{}/registry/m/events/{:06}.json"


@pytest.fixture(scope="module")
def server() -> Iterator[SmallSageMaker]:
    with started() as made:
        yield made


@pytest.fixture
def cloud(server: SmallSageMaker) -> SmallSageMaker:
    return emptied(server)


@pytest.fixture
def registry(cloud: SmallSageMaker, tmp_path: Path) -> SageMakerRegistry:
    return in_sagemaker(tmp_path)


def start(folder: Path, what: str, version: NewVersion | None = None, who: str = "ana", *, at: str = "") -> Any:
    """A process that registers or decides, and may be made to die."""
    version = version or new(1)
    file = folder / f"{version.run}.json"
    file.write_bytes(encode(version))
    folder_of(version, folder / "folders")
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, f"{folder.name}/", what, str(file), who],
        env=environment({VARIABLE: at} if at else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: Any) -> tuple[int, str]:
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return process.returncode, out.strip()


def killed(folder: Path, what: str, *, at: str) -> None:
    assert ended(start(folder, what, at=at)) == (-signal.SIGKILL, "")


def kinds(registry: SageMakerRegistry) -> list[tuple[int, str, str]]:
    events = registry.events("m")
    assert verify_chain(events) is None
    return [(event.version, event.kind, event.who) for event in events]


def arn(cloud: SmallSageMaker, version: int = 1) -> str:
    return f"arn:aws:sagemaker:{cloud.region}:123456789012:model-package/m/{version}"


def described(cloud: SmallSageMaker, version: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = cloud.client("sagemaker").describe_model_package(ModelPackageName=arn(cloud, version))
    return found


def in_studio(cloud: SmallSageMaker, status: str, version: int = 1, **more: str) -> None:
    cloud.client("sagemaker", access_key=f"{CLIENT_KEY}.studio-grace").update_model_package(
        ModelPackageArn=arn(cloud, version), ModelApprovalStatus=status, **more
    )


def change(cloud: SmallSageMaker, key: str, before: str, after: str) -> None:
    s3 = cloud.client("s3")
    content = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read().decode()
    assert before in content
    s3.put_object(Bucket=BUCKET, Key=key, Body=content.replace(before, after).encode())


def actions(cloud: SmallSageMaker) -> list[str]:
    return [call.action for call in cloud.calls]


# What SageMaker is told


@pytest.mark.soak
def test_the_package_leads_back_to_its_run(cloud: SmallSageMaker, tmp_path: Path) -> None:
    registry = in_sagemaker(tmp_path, run_address=lambda run: f"s3://{BUCKET}/runs/{run}/", tags={"team": "a"})
    assert cloud.calls == []  # making one asks nothing
    made = registry.register(new(1))
    found = described(cloud)
    container = found["InferenceSpecification"]["Containers"][0]
    deployable = registry.deployable("m", 1)
    assert (found["ModelApprovalStatus"], deployable.package) == ("PendingManualApproval", arn(cloud))
    assert container["ModelDataUrl"] == deployable.archive
    assert container["Image"].endswith(f".{cloud.region}.amazonaws.com/sagemaker-xgboost:3.2-0")
    assert container["Environment"]["SAGEMAKER_PROGRAM"] == "inference.py"
    assert found["MetadataProperties"] == {"CommitId": "4e1c2d", "GeneratedBy": f"s3://{BUCKET}/runs/{made.run}/"}
    assert found["CustomerMetadataProperties"]["runner-run"] == made.run
    assert found["ModelPackageDescription"] == f"Tiny model (run {made.run})"

    def content(address: str) -> bytes:
        key = address.removeprefix(f"s3://{BUCKET}/")
        body: bytes = cloud.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body

    files = check_package(content(deployable.archive), deployable.archive_sha256)
    assert content(f"{made.location}model.json") == files["model.json"]
    statistics = found["ModelMetrics"]["ModelQuality"]["Statistics"]
    assert json.loads(content(statistics["S3Uri"]))["binary_classification_metrics"]["auc"]["value"] == 0.875
    tags = cloud.client("sagemaker").list_tags(ResourceArn=arn(cloud).replace("package", "package-group")[:-2])
    assert tags["Tags"] == [{"Key": "team", "Value": "a"}]


def test_any_text_keeps_within_the_service_s_limits(cloud: SmallSageMaker, tmp_path: Path) -> None:
    odd = "Größe\n\t\x00„Anführung“ 🦜 <b>" * 90
    version = msgspec.structs.replace(new(1), description=odd, created_by=odd, commit=None)
    registry = in_sagemaker(tmp_path, image=lambda: OWN)
    registry.register(version)
    assert registry.decide("m", 1, "approved", who=odd, why=odd).reason == odd
    found = described(cloud)
    assert len(found["ModelPackageDescription"]) == 1024
    assert len(found["ApprovalDescription"]) == 1024
    made = package(folder_of(version, tmp_path / "folders"))
    asked = creation(version, made, bucket=registry.bucket, image=OWN, registry=registry.registry_id, source="")
    assert "MetadataProperties" not in asked
    assert len(asked["CustomerMetadataProperties"]["runner-created-by"]) == 256


def test_a_folder_that_is_not_what_the_run_recorded_is_not_registered(
    cloud: SmallSageMaker, registry: SageMakerRegistry, tmp_path: Path
) -> None:
    registry.model_folder = lambda version: folder_of(new(1), tmp_path)
    with pytest.raises(Tampered, match="recorded is"):
        registry.register(new(1, sha256=SECOND_MODEL))
    (folder_of(new(1), tmp_path) / "model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(Refused, match="pickle or an archive"):
        registry.register(new(1))
    assert list(registry.list()) == []
    assert "CreateModelPackageGroup" not in actions(cloud)


# Crashes and other processes


@pytest.mark.cases(1)
@pytest.mark.parametrize("at", [name for name in SAGEMAKER_NAMES if "decision" not in name])
def test_a_registration_killed_anywhere_gives_exactly_one_version(
    cloud: SmallSageMaker, registry: SageMakerRegistry, tmp_path: Path, at: str
) -> None:
    killed(tmp_path, "register", at=at)
    was_made = at in ("package created", "registration recorded")
    assert numbers(registry.list()) == ([("m", 1, "pending")] if was_made else [])
    made = registry.register(new(1))
    assert numbers(registry.list()) == [("m", 1, "pending")]
    assert msgspec.structs.asdict(new(1)).items() <= msgspec.structs.asdict(made).items()
    assert kinds(registry) == [(1, "registered", "ana")]
    assert len(cloud.client("sagemaker").list_model_packages(ModelPackageGroupName="m")["ModelPackageSummaryList"]) == 1


@pytest.mark.cases(1)
@pytest.mark.parametrize("at", ["decision recorded", "decision carried out"])
@pytest.mark.parametrize(("decision", "status"), [("approved", "Approved"), ("rejected", "Rejected")])
def test_a_decision_killed_anywhere_is_carried_out_by_whoever_looks_next(
    cloud: SmallSageMaker, registry: SageMakerRegistry, tmp_path: Path, at: str, decision: str, status: str
) -> None:
    registry.register(new(1))
    killed(tmp_path, decision, at=at)
    champion = registry.approved("m")
    assert (champion is not None) == (decision == "approved")
    found = described(cloud)
    assert (found["ModelApprovalStatus"], found["ApprovalDescription"]) == (status, f"ana: {decision} at once")
    assert kinds(registry) == [(1, "registered", "ana"), (1, decision, "ana")]


@pytest.mark.soak
def test_a_revocation_killed_before_it_was_carried_out_is_not_taken_for_an_approval(
    cloud: SmallSageMaker, registry: SageMakerRegistry, tmp_path: Path
) -> None:
    registry.register(new(1))
    registry.decide("m", 1, "approved", who="ben", why="reviewed")
    killed(tmp_path, "rejected", at="decision recorded")
    assert registry.approved("m") is None
    assert described(cloud)["ModelApprovalStatus"] == "Rejected"
    assert [kind for _, kind, _ in kinds(registry)] == ["registered", "approved", "rejected"]


@pytest.mark.soak
def test_two_processes_that_register_one_run_make_one_version(registry: SageMakerRegistry, tmp_path: Path) -> None:
    assert [ended(process) for process in [start(tmp_path, "register") for _ in range(2)]] == [(0, "1"), (0, "1")]
    assert kinds(registry) == [(1, "registered", "ana")]


@pytest.mark.soak
def test_one_run_with_two_models_is_refused_wherever_the_other_got_to(
    cloud: SmallSageMaker, registry: SageMakerRegistry, tmp_path: Path
) -> None:
    """The other process has made its package, and nothing of it was seen before this one's is made."""
    other = in_sagemaker(tmp_path)
    folder_then = registry.model_folder

    def meanwhile(version: NewVersion) -> Path:
        other.register(new(1))
        return folder_then(version)

    registry.model_folder = meanwhile
    with pytest.raises(Refused, match="with other bytes before"):
        registry.register(new(1, sha256=SECOND_MODEL))
    assert numbers(registry.list()) == [("m", 1, "pending")]


@pytest.mark.soak
def test_eight_processes_number_their_versions_without_gaps(registry: SageMakerRegistry, tmp_path: Path) -> None:
    processes = [start(tmp_path, "register", new(number)) for number in range(8)]
    assert sorted(ended(process) for process in processes) == [(0, str(number)) for number in range(1, 9)]
    assert numbers(registry.list("m")) == [("m", number, "pending") for number in range(1, 9)]
    everything(registry)
    assert [event.version for event in registry.events("m")] == list(range(1, 9))


@pytest.mark.soak
def test_of_approving_and_rejecting_at_once_exactly_one_wins(
    cloud: SmallSageMaker, registry: SageMakerRegistry, tmp_path: Path
) -> None:
    registry.register(new(1))
    cloud.faults.add("ListModelPackages", times=None, delay_s=0.3)  # both have looked before either decides
    done = [ended(process) for process in [start(tmp_path, what) for what in ("approved", "rejected", "approved")]]
    assert sum(code == 0 for code, _ in done) in (1, 2)  # rejecting after an approval is allowed
    history = kinds(registry)
    assert len(history) == 1 + sum(code == 0 for code, _ in done)
    assert [kind for _, kind, _ in history[1:]] in (["approved"], ["rejected"], ["approved", "rejected"])
    status = registry.get("m", 1).status
    assert described(cloud)["ModelApprovalStatus"] == status.capitalize()


operations = st.lists(
    st.tuples(st.just("register"), st.integers(1, 3), st.booleans())
    | st.tuples(st.sampled_from(["approved", "rejected"]), st.integers(1, 2), st.booleans()),
    max_size=8,
)


def said(registry: Registry, asked: list[tuple[str, int, bool]]) -> list[Any]:
    """What came of each operation, and what there is in the end; times, which differ, left out."""
    found: list[Any] = []
    for what, number, second in asked:
        try:
            if what == "register":
                made = registry.register(new(number, sha256=SECOND_MODEL if second else FIRST_MODEL))
            else:
                made = registry.decide("m", number, what, who="ben", why="x")  # type: ignore[arg-type]
            found.append((made.version, made.status, made.run, made.sha256, made.reason))
        except RunnerError as error:
            found.append((type(error), re.sub(r"at 20\S+", "", str(error))))
    events = registry.events("m") if registry.list() else []
    return [*found, numbers(registry.list()), [(event.seq, event.version, event.kind, event.why) for event in events]]


@pytest.mark.soak
@settings(max_examples=6, deadline=None)
@given(operations)
def test_it_says_what_the_local_registry_says(
    server: SmallSageMaker, tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, int, bool]]
) -> None:
    emptied(server)
    folder = tmp_path_factory.mktemp("both")
    assert said(in_sagemaker(folder), asked) == said(LocalRegistry(folder / "registry.db"), asked)


# Trouble with the service


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("action", "match"),
    [
        ("CreateModelPackageGroup", None),
        ("CreateModelPackage", None),
        ("UpdateModelPackage", None),
        ("PutObject", "events/000001"),
        ("PutObject", "events/000002"),
        ("PutObject", "model.tar.gz"),
    ],
)
def test_a_lost_reply_changes_nothing(
    cloud: SmallSageMaker, registry: SageMakerRegistry, action: str, match: str | None
) -> None:
    number = cloud.faults.add(action, "LostReply", match=match)
    registry.register(new(1))
    assert registry.decide("m", 1, "approved", who="ben", why="reviewed").status == "approved"
    assert cloud.faults.hits(number) == 1
    assert kinds(registry) == [(1, "registered", "ana"), (1, "approved", "ben")]
    assert numbers(registry.list()) == [("m", 1, "approved")]


@pytest.mark.soak
def test_throttling_is_waited_out(cloud: SmallSageMaker, registry: SageMakerRegistry) -> None:
    for action in ("CreateModelPackage", "ListModelPackages", "DescribeModelPackage", "UpdateModelPackage"):
        cloud.faults.add(action, "ThrottlingException", times=2)
    registry.register(new(1))
    assert registry.decide("m", 1, "approved", who="ben", why="reviewed").status == "approved"


def test_whom_sagemaker_does_not_permit_decides_nothing(cloud: SmallSageMaker, registry: SageMakerRegistry) -> None:
    registry.register(new(1))
    cloud.faults.add("UpdateModelPackage", "AccessDeniedException")
    with pytest.raises(AwsError, match="Grant the caller UpdateModelPackage"):
        registry.decide("m", 1, "approved", who="eve", why="mine")
    assert registry.get("m", 1).status == "pending"
    assert described(cloud)["ModelApprovalStatus"] == "PendingManualApproval"
    assert [kind for _, kind, _ in kinds(registry)] == ["registered", "approved", "reopened"]
    in_studio(cloud, "Approved")
    assert registry.get("m", 1).decided_by == "external (grace)"
    registry.decide("m", 1, "rejected", who="ben", why="no")
    assert described(cloud)["ModelApprovalStatus"] == "Rejected"


def test_a_failing_service_says_that_the_decision_stands(cloud: SmallSageMaker, registry: SageMakerRegistry) -> None:
    registry.register(new(1))
    cloud.faults.add("UpdateModelPackage", "ConflictException")
    with pytest.raises(AwsError, match="is written down; the next `runner models` carries it out"):
        registry.decide("m", 1, "approved", who="ben", why="reviewed")
    assert registry.get("m", 1).status == "approved"
    assert described(cloud)["ModelApprovalStatus"] == "Approved"


def test_whoever_may_only_read_sees_what_others_would_write_down(
    cloud: SmallSageMaker, registry: SageMakerRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.register(new(1))
    in_studio(cloud, "Approved", ApprovalDescription="looks fine")
    cloud.faults.add("PutObject", "AccessDenied", times=None)
    champion = registry.approved("m")
    assert champion is not None
    assert "is not written down" in caplog.text
    cloud.faults.clear()
    assert [kind for _, kind, _ in kinds(registry)] == ["registered", "approved"]


# Decisions made in Studio


def test_a_decision_made_in_studio_is_taken_in(cloud: SmallSageMaker, registry: SageMakerRegistry) -> None:
    registry.register(new(1))
    in_studio(cloud, "Approved", ApprovalDescription="seen in Studio")
    champion = registry.approved("m")
    assert champion is not None
    assert (champion.decided_by, champion.reason) == ("external (grace)", "seen in Studio")
    event = registry.events("m")[-1]
    assert (event.kind, event.data) == ("approved", {"external": True})
    modified = described(cloud)["LastModifiedTime"]
    assert event.at[:19] == modified.astimezone(UTC).isoformat()[:19]
    with pytest.raises(Refused, match=r"already approved, by external \(grace\) at 20.*seen in Studio"):
        registry.decide("m", 1, "approved", who="ben", why="me too")
    registry.decide("m", 1, "rejected", who="ben", why="wrong month")
    assert described(cloud)["ModelApprovalStatus"] == "Rejected"
    assert [kind for _, kind, _ in kinds(registry)] == ["registered", "approved", "rejected"]


def test_what_our_rules_forbid_is_taken_in_as_it_happened(cloud: SmallSageMaker, registry: SageMakerRegistry) -> None:
    registry.register(new(1))
    registry.decide("m", 1, "rejected", who="ben", why="no")
    for status in ("Approved", "PendingManualApproval", "Rejected", "Approved"):
        in_studio(cloud, status)
        assert registry.get("m", 1).status == {"PendingManualApproval": "pending"}.get(status, status.lower())
    assert [kind for _, kind, _ in kinds(registry)] == [
        "registered", "rejected", "approved", "reopened", "rejected", "approved",
    ]  # fmt: skip
    assert {event.why for event in registry.events("m")[2:]} == {"decided in SageMaker"}  # not ben's reason


@pytest.mark.parametrize("status", ["Approved", "Rejected"])
def test_a_version_that_was_made_with_a_decision_is_pending_until_somebody_decides(
    cloud: SmallSageMaker, registry: SageMakerRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture, status: str
) -> None:
    version = new(1)
    registry.history.keep_facts(version)
    registry.groups.make("m")
    made = package(folder_of(version, tmp_path / "folders"))
    asked = creation(version, made, bucket=registry.bucket, image=OWN, registry=registry.registry_id, source="")
    registry.bucket.put(f"models/{made.sha256}/model.tar.gz", made.archive)
    cloud.client("sagemaker").create_model_package(**{**asked, "ModelApprovalStatus": status})
    assert numbers(in_sagemaker(tmp_path).list()) == [("m", 1, "pending")]
    assert registry.approved("m") is None
    assert f"m/1 was made as {status.lower()}, by no decision: it is pending" in caplog.text
    assert kinds(registry) == [(1, "registered", "ana")]
    assert registry.decide("m", 1, "approved", who="ben", why="reviewed").status == "approved"
    assert described(cloud)["ModelApprovalStatus"] == "Approved"
    assert kinds(registry)[1:] == [(1, "approved", "ben")]


@pytest.mark.soak
def test_a_decision_in_studio_after_a_crash_is_not_undone(
    cloud: SmallSageMaker, registry: SageMakerRegistry, tmp_path: Path
) -> None:
    registry.register(new(1))
    killed(tmp_path, "approved", at="decision recorded")
    in_studio(cloud, "Rejected", ApprovalDescription="no")
    assert registry.get("m", 1).status == "rejected"
    assert described(cloud)["ModelApprovalStatus"] == "Rejected"
    assert kinds(registry)[1:] == [(1, "approved", "ana"), (1, "rejected", "external (grace)")]


def test_a_version_that_was_deleted_in_studio_keeps_its_history(
    cloud: SmallSageMaker, registry: SageMakerRegistry
) -> None:
    registry.register(new(1))
    cloud.client("sagemaker").delete_model_package(ModelPackageName=arn(cloud))
    assert numbers(registry.list()) == [("m", 1, "pending")]
    with pytest.raises(Refused, match="m/1 was deleted in SageMaker"):
        registry.decide("m", 1, "approved", who="ben", why="reviewed")
    assert registry.register(new(2)).version == 2


def test_packages_of_others_in_the_group_are_left_alone(
    cloud: SmallSageMaker, registry: SageMakerRegistry, tmp_path: Path
) -> None:
    client = cloud.client("sagemaker")
    client.create_model_package_group(ModelPackageGroupName="m")
    client.create_model_package(ModelPackageGroupName="m", ModelPackageDescription="by hand")
    client.create_model_package(ModelPackageGroupName="m", ModelPackageDescription="as if (run x)")
    other_project = in_sagemaker(tmp_path / "other")
    assert other_project.register(new(1)).version == 3
    assert registry.register(new(1)).version == 4
    assert numbers(registry.list()) == [("m", 4, "pending")]
    assert numbers(other_project.list()) == [("m", 3, "pending")]


# What was altered


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("key", "before", "after", "said"),
    [
        ("events/000002.json", "reviewed", "demanded", "event 2 .* was altered"),
        ("events/000001.json", "registered", "rejected", "event 1 .* was altered"),
        ("events/000002.json", '"m"', '"n"', "events of another name"),
        ("events/000002.json", "{", "[", "is not a readable Event"),
        ("facts", "0.875", "0.975", "is not what was registered"),
        ("facts", "{", "[", "is not a readable NewVersion"),
    ],
)
def test_an_altered_object_is_found(
    cloud: SmallSageMaker, registry: SageMakerRegistry, tmp_path: Path, key: str, before: str, after: str, said: str
) -> None:
    registry.register(new(1))
    registry.decide("m", 1, "approved", who="ben", why="reviewed")
    place = facts_key("m", new(1).run, facts_sha256(new(1))) if key == "facts" else f"registry/m/{key}"
    change(cloud, f"{tmp_path.name}/{place}", before, after)
    fresh = in_sagemaker(tmp_path)
    for ask in (lambda: everything(fresh), lambda: fresh.get("m", 1), lambda: fresh.approved("m")):
        with pytest.raises(Tampered, match=said):
            ask()
    with pytest.raises(Tampered):
        registry.list()  # which has read it before
    with pytest.raises(Tampered):
        fresh.decide("m", 1, "rejected", who="ben", why="x")


@pytest.mark.soak
def test_facts_altered_before_their_version_was_recorded_are_found(
    cloud: SmallSageMaker, registry: SageMakerRegistry, tmp_path: Path
) -> None:
    killed(tmp_path, "register", at="package created")
    change(cloud, f"{tmp_path.name}/{facts_key('m', new(1).run, facts_sha256(new(1)))}", '"ana"', '"eve"')
    with pytest.raises(Tampered, match="is not what was registered"):
        registry.list()


@pytest.mark.parametrize("number", [1, 2])
def test_a_removed_event_is_found_or_its_decision_is_external(
    cloud: SmallSageMaker, tmp_path: Path, number: int
) -> None:
    registry = in_sagemaker(tmp_path, cache=tmp_path / "cache")
    registry.register(new(1))
    registry.decide("m", 1, "approved", who="ben", why="reviewed")
    registry.decide("m", 1, "rejected", who="ben", why="wrong month")
    registry.list()
    cloud.client("s3").delete_object(Bucket=BUCKET, Key=EVENT.format(tmp_path.name, number))
    with pytest.raises(Tampered, match=f"event {number + 1} .* where event {number} was"):
        in_sagemaker(tmp_path).list()
    with pytest.raises(Tampered, match=rf"events/00000{number}\.json was there before and is gone"):
        in_sagemaker(tmp_path, cache=tmp_path / "cache").list()
    cloud.client("s3").delete_object(Bucket=BUCKET, Key=EVENT.format(tmp_path.name, 3))
    with pytest.raises(Tampered, match=r"is gone"):
        registry.list()


def test_without_the_last_event_a_revoked_version_is_not_approved_again(
    cloud: SmallSageMaker, registry: SageMakerRegistry, tmp_path: Path
) -> None:
    registry.register(new(1))
    registry.decide("m", 1, "approved", who="ben", why="reviewed")
    registry.decide("m", 1, "rejected", who="ben", why="wrong month")
    cloud.client("s3").delete_object(Bucket=BUCKET, Key=EVENT.format(tmp_path.name, 3))
    fresh = in_sagemaker(tmp_path)
    assert fresh.approved("m") is None
    assert fresh.events("m")[-1].data == {"external": True}


# What it costs


@pytest.mark.soak
def test_listing_fifty_versions_takes_two_calls_once_they_are_known(cloud: SmallSageMaker, tmp_path: Path) -> None:
    registry = in_sagemaker(tmp_path)
    registry.groups.make("m")
    made = package(folder_of(new(1), tmp_path / "folders"))
    registry.bucket.put(archive_key(made), made.archive)
    for number in range(50):  # as fifty runs that died before they wrote their event
        version = msgspec.structs.replace(new(1), run=f"20261122-101630-{number:04x}")
        registry.history.keep_facts(version)
        asked = creation(version, made, bucket=registry.bucket, image=OWN, registry=registry.registry_id, source="")
        registry.groups.add("m", asked)
    assert [version.version for version in registry.list()] == list(range(1, 51))
    assert len(in_sagemaker(tmp_path, cache=tmp_path / "cache").list()) == 50
    cloud.forget_calls()
    assert len(in_sagemaker(tmp_path, cache=tmp_path / "cache").list()) == 50
    assert actions(cloud) == ["ListObjectsV2", "ListModelPackages"]
    cloud.forget_calls()
    assert in_sagemaker(tmp_path, cache=tmp_path / "cache").approved("m") is None
    assert actions(cloud) == ["ListObjectsV2", "ListModelPackages"]
    file = tmp_path / "cache" / "m.json"
    file.write_bytes(file.read_bytes()[:-100])  # a damaged memory is none
    assert len(in_sagemaker(tmp_path, cache=tmp_path / "cache").list()) == 50


def test_an_event_is_a_file_that_people_can_read(
    cloud: SmallSageMaker, registry: SageMakerRegistry, tmp_path: Path
) -> None:
    registry.register(new(1))
    body = cloud.client("s3").get_object(Bucket=BUCKET, Key=EVENT.format(tmp_path.name, 1))["Body"].read()
    assert body.decode().splitlines()[1] == ' "seq": 1,'
    assert caller(Session()).startswith("arn:aws")


@pytest.mark.soak
def test_a_versions_stage_is_that_of_the_target_it_was_brought_to_last(
    registry: SageMakerRegistry, cloud: SmallSageMaker
) -> None:
    def done(version: int, kind: str, target: str) -> list[str]:
        registry.record("m", version, kind, who="dee", why="ticket 7", data={"target": target})
        found = [described(cloud, number).get("ModelLifeCycle", {}) for number in (1, 2)]
        return [" ".join(filter(None, (one.get("Stage"), one.get("StageStatus")))) for one in found]

    for number in (1, 2):
        registry.register(new(number))
        registry.decide("m", number, "approved", who="ana", why="fine")
    assert done(1, "deployed", "staging") == ["Staging Serving", ""]
    assert done(1, "deployed", "production") == ["Production Serving", ""]
    assert described(cloud)["ModelLifeCycle"]["StageDescription"] == "dee: ticket 7"
    assert done(2, "deployed", "staging") == ["Production Serving", "Staging Serving"]
    assert done(2, "deployed", "production") == ["Production Retired", "Production Serving"]
    assert done(1, "rolled back", "production") == ["Production Serving", "Staging Serving"]
    assert done(1, "removed", "production") == ["Production Retired", "Staging Serving"]
    assert described(cloud)["ModelApprovalStatus"] == "Approved"
    assert stage("shadow_eu--1_") == "Shadow-eu-1"
    assert kinds(registry)[-1] == (1, "removed", "dee")  # nothing that was told there is taken for a decision


# On the pages

PAGES_TOML = """
registry = "sagemaker"
[sagemaker]
bucket = "{}"
prefix = "{}"
role = "arn:aws:iam::123456789012:role/r"
image = "i"
"""


@pytest.mark.soak
def test_a_reviewer_reads_approves_and_rejects_on_the_pages(
    cloud: SmallSageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = judged.made(tmp_path / "project", versions=2, more=PAGES_TOML.format(BUCKET, tmp_path.name))
    people = f"ana:{hasher().hash('anas password')}"
    with pages_of(project.folder / "pipeline.toml", users_text=people, patience_s=0.5) as served:
        ana = served.by_password("ana", "anas password")
        assert "no version is approved; 2 pending" in ana.get("/models/").text
        page = ana.get("/model/tiny/1/").text
        for words in ("Pending: a person has to decide.", "The model of run 1.", "above the required minimum 0.8"):
            assert words in page
        assert ana.decide("tiny/1", "approve", "measured well").status == 303
        assert ana.decide("tiny/2", "reject", "too few rows").status == 303
        assert "tiny/1 is the approved version" in ana.get("/models/").text
        found = cloud.client("sagemaker").describe_model_package(ModelPackageName=arn(cloud).replace("/m/", "/tiny/"))
        assert (found["ModelApprovalStatus"], found["ApprovalDescription"]) == ("Approved", "ana: measured well")
        told = project.runner("history", "tiny", "--json").json
        assert [(event["version"], event["kind"], event["who"], event["why"]) for event in told[2:]] == [
            (1, "approved", "ana", "measured well"), (2, "rejected", "ana", "too few rows"),
        ]  # fmt: skip
        assert [event["data"] for event in told[2:]] == [{"known_by": "password"}] * 2

        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        for path in ("/models/", "/model/tiny/1/"):
            reply = ana.get(path)
            assert (reply.status, "<h1>AWS refused or failed</h1>" in reply.text) == (502, True)
            assert "had no connection (EndpointConnectionError) for 0 s.</p>" in reply.text
        assert judged.RUN.format(1) in ana.get("/").text  # what lies here is shown


# Who may decide


@pytest.mark.soak
def test_whom_aws_knows_is_told_by_arn_and_not_by_the_user_of_a_machine(cloud: SmallSageMaker, tmp_path: Path) -> None:
    project = made(tmp_path)
    toml = project.folder / "pipeline.toml"
    where = f'bucket = "{BUCKET}"\nprefix = "{tmp_path.name}"\nrole = "arn:aws:iam::123456789012:role/r"\nimage = "i"\n'
    rules = '[approval]\nby = ["ana", "ben"]\nnot_starter = true\n'
    toml.write_text(TOML.replace('from = "first.model"', 'from = "first.model"\nregistry = "sagemaker"'))
    toml.write_text(f"{toml.read_text()}{rules}[sagemaker]\n{where}")
    owner = identities(Project="any", Bucket=BUCKET, Prefix=tmp_path.name, Model="thing")["owner"][1]
    people = {name: f"arn:aws:iam::123456789012:user/{name}" for name in ("ana", "ben", "eve")}
    cloud.attach({name: (arn, owner) for name, arn in people.items()})
    ana, ben, eve = (key(name) for name in people)
    ran = project.runner("run", env={**ana, "LOGNAME": "sagemaker-user"})
    assert ran.code == 0, ran.err
    assert project.manifest["identity"] == people["ana"]
    approve = ("approve", "thing/1", "--reason", "reviewed")
    own = project.runner(*approve, env={**ana, "LOGNAME": "somebody"})
    assert (own.code, "(ana) started the run of thing/1" in own.err) == (8, True), own.err
    posing = project.runner(*approve, env={**eve, "LOGNAME": "ben"})
    assert (posing.code, "(eve) may not decide on thing/1" in posing.err) == (8, True), posing.err
    other = project.runner(*approve, env={**ben, "LOGNAME": "sagemaker-user"})  # as everybody is called in Studio
    assert other.code == 0, other.err

"""One server for the tests of this folder, and clients that try once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from . import SmallSageMaker, own_image
from .trying import BUCKET, EVERYTHING, ONE_ATTEMPT

LARGE = "ml.p3.2xlarge"
SCARCE = "ml.g5.xlarge"
SPOT_QUOTA = "ml.c5.xlarge for spot training job usage"


@pytest.fixture(scope="session")
def shared() -> Iterator[SmallSageMaker]:
    # root: their lines of shell write where only it may, to see what the service does with what is there
    made = SmallSageMaker(
        {"*": own_image(user="root")}, grace_s=0.3, poll_s=0.05, quotas={LARGE: 0, SCARCE: 2, SPOT_QUOTA: 0}
    )
    with made as cloud:
        cloud.grant("jobs", EVERYTHING)
        place = {"LocationConstraint": cloud.region}
        cloud.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
        cloud.client("s3").put_object(Bucket=BUCKET, Key="model.tar.gz", Body=b"of versions whose bytes nobody reads")
        yield cloud


@pytest.fixture
def cloud(shared: SmallSageMaker) -> Iterator[SmallSageMaker]:
    shared.forget_calls()
    yield shared
    shared.faults.clear()


@pytest.fixture
def s3(cloud: SmallSageMaker) -> Any:
    return cloud.client("s3", config=ONE_ATTEMPT)


@pytest.fixture
def sagemaker(cloud: SmallSageMaker) -> Any:
    return cloud.client("sagemaker", config=ONE_ATTEMPT)


@pytest.fixture
def logs(cloud: SmallSageMaker) -> Any:
    return cloud.client("logs", config=ONE_ATTEMPT)


@pytest.fixture(scope="module")
def own() -> Iterator[SmallSageMaker]:
    """One for permissions: in `shared` the jobs' role may do everything, as its tests are about other things."""
    made = SmallSageMaker()
    with made as cloud:
        place = {"LocationConstraint": cloud.region}
        cloud.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
        yield cloud

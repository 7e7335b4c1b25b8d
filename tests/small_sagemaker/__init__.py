"""A small SageMaker on this machine, for tests: a real server, real containers, real refusals.

with SmallSageMaker({"*": own_image()}) as cloud:
    cloud.client("s3").create_bucket(...)                   # or any program started with cloud.environment
    cloud.faults.add("CreateProcessingJob", "ThrottlingException", times=3)
    cloud.client("sagemaker").create_processing_job(...)    # really runs, without a network but this server
    cloud.calls                                             # what clients and containers have asked for
"""

from __future__ import annotations

from .calls import CLIENT_KEY, JOB_KEY, SERVICE_KEY, Call
from .cloud import SmallSageMaker
from .errors import NotPermittedError
from .images import Image, distribution_image, own_image

__all__ = [
    "CLIENT_KEY",
    "JOB_KEY",
    "SERVICE_KEY",
    "Call",
    "Image",
    "NotPermittedError",
    "SmallSageMaker",
    "distribution_image",
    "own_image",
]

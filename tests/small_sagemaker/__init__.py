"""A small SageMaker on this machine, for tests: a real server, real containers, real refusals."""

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

"""Calls are asked of the policies of whoever makes them, and refused in AWS's words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from . import CLIENT_KEY, SmallSageMaker
from .policies import Request, allowing
from .trying import BUCKET, ONE_ATTEMPT

OBJECT = f"arn:aws:s3:::{BUCKET}/mine/*"
MINE = [
    {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": OBJECT},
    {
        "Effect": "Allow",
        "Action": "s3:ListBucket",
        "Resource": f"arn:aws:s3:::{BUCKET}",
        "Condition": {"StringLike": {"s3:prefix": "mine/*"}},
    },
    {"Effect": "Deny", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{BUCKET}/mine/closed/*"},
]


@pytest.mark.parametrize(
    ("statement", "request_", "allowed"),
    [
        ({"Action": "s3:Get*", "Resource": "*"}, Request("s3:getobject", "x"), True),
        ({"Action": "s3:Get*", "Resource": "X"}, Request("s3:GetObject", "x"), False),
        ({"NotAction": "s3:Put*", "Resource": "*"}, Request("s3:GetObject", "x"), True),
        ({"NotAction": "s3:Get*", "Resource": "*"}, Request("s3:GetObject", "x"), False),
        ({"Action": "*", "NotResource": "a/*"}, Request("s3:GetObject", "a/b"), False),
        ({"Action": "*", "NotResource": "a/*"}, Request("s3:GetObject", "b"), True),
        ({"Action": "*", "Resource": "user/${aws:username}"}, Request("a:B", "user/me", {"aws:username": "me"}), True),
        ({"Action": "*", "Resource": "user/${aws:username}"}, Request("a:B", "user/me"), False),
        ({"Action": "*", "Resource": "a${*}"}, Request("a:B", "ab"), False),
        ({"Action": "*", "Resource": "a${*}"}, Request("a:B", "a*"), True),
    ],
)
def test_elements_are_read_as_iam_reads_them(statement: dict[str, Any], request_: Request, allowed: bool) -> None:
    assert bool(allowing([{"Effect": "Allow", **statement}], request_)) == allowed
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    assert bool(allowing([everything, {"Effect": "Deny", **statement}], request_)) != allowed


@pytest.mark.parametrize(
    ("operator", "wanted", "present", "absent"),
    [
        ("StringEquals", ["a", "b"], True, False),
        ("StringEquals", "A", False, False),
        ("StringEqualsIgnoreCase", "A", True, False),
        ("StringNotEquals", "a", False, True),
        ("StringNotEquals", "b", True, True),
        ("StringLike", "?*", True, False),
        ("StringLikeIfExists", "b*", False, True),
        ("StringNotLike", "a*", False, True),
        ("Null", "true", False, True),
        ("Null", "false", True, False),
    ],
)
def test_a_condition_holds_for_a_key_that_is_sent_or_not(
    operator: str, wanted: Any, present: bool, absent: bool
) -> None:
    statement = {"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {operator: {"S:Key": wanted}}}
    assert bool(allowing([statement], Request("a:B", "x", {"s:key": "a"}))) == present
    assert bool(allowing([statement], Request("a:B", "x"))) == absent


def test_what_is_not_understood_is_not_guessed() -> None:
    for more in ({"Condition": {"IpAddress": {"aws:sourceip": "1"}}}, {"Principal": "*"}):
        with pytest.raises(NotImplementedError):
            allowing([{"Effect": "Allow", "Action": "*", "Resource": "*", **more}], Request("a:B", "x"))


def test_an_identity_may_do_what_its_policies_say(own: SmallSageMaker) -> None:
    own.grant("ada", MINE)
    mine = own.client("s3", access_key=f"{CLIENT_KEY}.ada", config=ONE_ATTEMPT)
    mine.put_object(Bucket=BUCKET, Key="mine/x", Body=b"1")
    assert mine.list_objects_v2(Bucket=BUCKET, Prefix="mine/")["KeyCount"] == 1

    def refused(action: str, **given: Any) -> str:
        with pytest.raises(ClientError) as error:
            getattr(mine, action)(Bucket=BUCKET, **given)
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        return str(error.value.response["Error"]["Message"])

    who = "User: arn:aws:sts::123456789012:assumed-role/ada/session is not authorized to perform:"
    assert refused("put_object", Key="other/x", Body=b"1") == (
        f"{who} s3:PutObject on resource: arn:aws:s3:::{BUCKET}/other/x "
        "because no identity-based policy allows the s3:PutObject action"
    )
    assert refused("put_object", Key="mine/closed/x", Body=b"1").endswith("explicit deny in an identity-based policy")
    assert "s3:ListBucket" in refused("list_objects_v2")
    # what is not there is told only to who may list without a prefix
    assert "s3:ListBucket" in refused("get_object", Key="mine/absent")
    refused("head_object", Key="mine/absent")
    own.client("s3").put_object(Bucket=BUCKET, Key="other/x", Body=b"1")  # the administrator


def test_a_role_without_a_policy_may_do_nothing(own: SmallSageMaker) -> None:
    own.grant("ada", MINE)
    nobody = own.client("sagemaker", access_key=f"{CLIENT_KEY}.nobody", config=ONE_ATTEMPT)
    with pytest.raises(ClientError, match="no identity-based policy allows the sagemaker:DescribeProcessingJob action"):
        nobody.describe_processing_job(ProcessingJobName="x")


def test_a_bucket_that_demands_a_key_refuses_what_comes_without_it(own: SmallSageMaker) -> None:
    s3 = own.client("s3", config=ONE_ATTEMPT)
    key = "arn:aws:kms:eu-west-1:123456789012:key/1"
    conditions = ({"StringNotEquals": {"s3:x-amz-server-side-encryption-aws-kms-key-id": key}},)
    statements = [
        {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{BUCKET}/*", "Condition": one}
        for one in conditions
    ]  # fmt: skip
    s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
    try:
        for put in (s3.put_object, s3.create_multipart_upload):
            with pytest.raises(ClientError, match="explicit deny in a resource-based policy"):
                put(Bucket=BUCKET, Key="x")
            put(Bucket=BUCKET, Key="x", ServerSideEncryption="aws:kms", SSEKMSKeyId=key)
    finally:
        s3.delete_bucket_policy(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key="x", Body=b"1")

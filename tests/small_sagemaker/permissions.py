"""Who may do what: each call is asked of the policies of whoever makes it, and of the bucket's own.

An access key may end in `.NAME`, the identity that uses it; one without a name is the account's administrator. An
identity to which nothing was granted may do nothing. Of bucket policies only Deny counts, as all who call are of one
account.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .calls import ACCOUNT, Call, read_body
from .errors import ServiceError
from .policies import Request, Statement, allowing, fits
from .rights import requests

Reply = tuple[int, list[tuple[str, str]], bytes]
ENCRYPTION = {"ServerSideEncryption": "", "SSEKMSKeyId": "-aws-kms-key-id"}
ADMINISTRATOR = f"arn:aws:iam::{ACCOUNT}:user/admin"
CREATING = ("PutObject", "CreateMultipartUpload")  # those that say how an object is encrypted


class Permissions:
    """Policies by the name of an identity, and by bucket."""

    def __init__(self) -> None:
        self._granted: dict[str, tuple[str, Sequence[Statement]]] = {}
        self._asked: dict[str, dict[str, Request]] = {}
        self._buckets: dict[str, list[Statement]] = {}
        self._sealed: dict[tuple[str, str], str] = {}  # the key that an object is encrypted with

    def grant(self, name: str, statements: Sequence[Statement], arn: str | None = None) -> None:
        """The identity has these statements and no others; its ARN is a role's of this name unless another is given."""
        self._granted[name] = (arn or role_arn(name), statements)

    def attach(self, identities: Mapping[str, tuple[str, Sequence[Statement]]]) -> None:
        """As `grant`, for several: their ARNs and statements."""
        self._granted.update(identities)

    def arn(self, name: str) -> str:
        """Who that is, as refusals and GetCallerIdentity have it."""
        if not name:
            return ADMINISTRATOR
        return self._granted[name][0] if name in self._granted else role_arn(name)

    def asked(self, name: str) -> list[Request]:
        """Every different thing that was asked of the identity's policies."""
        return list(self._asked.get(name, {}).values())

    def check(self, call: Call) -> None:
        """Raises ServiceError as AWS words it."""
        call.arn = self.arn(call.identity)
        if call.service == "s3":
            self._check_bucket(call)
        if call.identity:
            self.require(call.identity, requests(call))
            self._check_key(call)
        if call.service == "s3" and "SSEKMSKeyId" in call.parameters:
            self._sealed[_object(call)] = call.parameters["SSEKMSKeyId"]

    def require(self, name: str, asked: Iterable[Request]) -> None:
        """Raises ServiceError for the first that the identity may not; for what a service does as a role."""
        arn, statements = self._granted.get(name, (role_arn(name), ()))
        for made in asked:
            self._asked.setdefault(name, {})[repr(made)] = made
            if not allowing(statements, made):
                denied = any(one["Effect"] == "Deny" and fits(one, made) for one in statements)
                why = (
                    "with an explicit deny in an identity-based policy"
                    if denied
                    else f"because no identity-based policy allows the {made.action} action"
                )
                raise refusal(arn, made, why)

    def may(self, name: str, asked: Iterable[Request]) -> bool:
        """As `require`, for what the service does without where it may not."""
        try:
            self.require(name, asked)
        except ServiceError:
            return False
        return True

    def check_absent(self, call: Call) -> None:
        """What is not there is told to who may list the bucket, in a question that has no prefix; raises ServiceError."""
        if call.identity and call.action in ("GetObject", "HeadObject"):
            self.require(call.identity, [Request("s3:ListBucket", f"arn:aws:s3:::{call.parameters['Bucket']}")])

    def actions(self) -> dict[tuple[str, str], Callable[[Call, dict[str, Any]], Reply]]:
        """Bucket policies are kept here: moto reads no conditions. Nor does it know who calls."""
        return {
            ("s3", "PutBucketPolicy"): self.put_policy,
            ("s3", "DeleteBucketPolicy"): self.delete_policy,
            ("sts", "GetCallerIdentity"): self.tell_caller,
            ("iam", "SimulatePrincipalPolicy"): self.simulate,
        }

    def tell_caller(self, call: Call, environ: dict[str, Any]) -> Reply:
        arn = self.arn(call.identity)
        said = f"<Arn>{arn}</Arn><UserId>{arn.rpartition('/')[2]}</UserId><Account>{ACCOUNT}</Account>"
        text = f"<GetCallerIdentityResult>{said}</GetCallerIdentityResult>"
        text = f"<GetCallerIdentityResponse>{text}</GetCallerIdentityResponse>"
        return 200, [("Content-Type", "text/xml")], text.encode()

    def simulate(self, call: Call, environ: dict[str, Any]) -> Reply:
        """Whether a user's policies allow each action on each of the resources, as IAM's simulator answers it."""
        given = call.parameters
        name = given["PolicySourceArn"].rpartition("/")[2]
        statements = self._granted.get(name, ("", ()))[1]
        keys, values = (
            members(given, "ContextEntries", end) for end in (".ContextKeyName", ".ContextKeyValues.member.1")
        )
        about = {one.lower(): value for one, value in zip(keys, values, strict=True)} | {"aws:username": name}
        said = ""
        for action in members(given, "ActionNames"):
            resources = members(given, "ResourceArns") or ["*"]
            allowed = all(allowing(statements, Request(action, one, about)) for one in resources)
            decision = "allowed" if allowed else "implicitDeny"
            said += f"<member><EvalActionName>{action}</EvalActionName><EvalDecision>{decision}</EvalDecision></member>"
        text = f"<EvaluationResults>{said}</EvaluationResults><IsTruncated>false</IsTruncated>"
        text = f"<SimulatePrincipalPolicyResult>{text}</SimulatePrincipalPolicyResult>"
        text = f"<SimulatePrincipalPolicyResponse>{text}</SimulatePrincipalPolicyResponse>"
        return 200, [("Content-Type", "text/xml")], text.encode()

    def put_policy(self, call: Call, environ: dict[str, Any]) -> Reply:
        found: Sequence[Mapping[str, Any]] = json.loads(read_body(environ))["Statement"]
        kept = [{key: value for key, value in one.items() if key != "Principal"} for one in found]
        self._buckets[call.parameters["Bucket"]] = [one for one in kept if one["Effect"] == "Deny"]
        return 204, [], b""

    def delete_policy(self, call: Call, environ: dict[str, Any]) -> Reply:
        self._buckets.pop(call.parameters["Bucket"], None)
        return 204, [], b""

    def to_open(self, bucket: str, key: str) -> list[Request]:
        """What it takes to read an object that is encrypted with a key, beside reading it."""
        return [Request("kms:Decrypt", self._sealed[bucket, key])] if (bucket, key) in self._sealed else []

    def _check_key(self, call: Call) -> None:
        if call.service == "s3" and call.action in ("GetObject", "HeadObject"):
            self.require(call.identity, self.to_open(*_object(call)))

    def _check_bucket(self, call: Call) -> None:
        denying = self._buckets.get(call.parameters.get("Bucket", ""), [])
        if not denying or call.action not in CREATING:
            return
        for made in requests(call):
            about = {
                f"s3:x-amz-server-side-encryption{end}": call.parameters[name]
                for name, end in ENCRYPTION.items()
                if name in call.parameters
            }
            asked = Request(made.action, made.resource, {**made.context, **about})
            if any(fits(one, asked) for one in denying):
                raise refusal(self.arn(call.identity), asked, "with an explicit deny in a resource-based policy")


def members(form: Mapping[str, str], name: str, end: str = "") -> list[str]:
    """A list of the Query protocol: NAME.member.1, NAME.member.2 and so on."""
    found = []
    while (key := f"{name}.member.{len(found) + 1}{end}") in form:
        found.append(form[key])
    return found


def context(call: Call) -> dict[str, Any]:
    """`CreatedBy` and `LastModifiedBy`, as the service describes whoever called; studio-NAME is a user of Studio."""
    name = call.identity.removeprefix("studio-")
    profile = {"UserProfileName": name, "DomainId": "d-0ec5"} if name != call.identity else {}
    return {**profile, "IamIdentity": {"Arn": call.arn, "PrincipalId": f"AROA{call.identity.upper()}:session"}}


def _object(call: Call) -> tuple[str, str]:
    return call.parameters["Bucket"], call.parameters["Key"]


def refusal(arn: str, made: Request, why: str) -> ServiceError:
    said = f"User: {arn} is not authorized to perform: {made.action} on resource: {made.resource} {why}"
    return ServiceError("AccessDeniedException", said)


def role_arn(name: str) -> str:
    return f"arn:aws:sts::{ACCOUNT}:assumed-role/{name}/session"

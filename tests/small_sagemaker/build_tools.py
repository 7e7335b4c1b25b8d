"""`docker` and `aws` of a build (builds.py): they do what a buildspec may ask of them, and refuse what they do not know.

No image is made: that its Dockerfile is there, that it declares the arguments that are given, and that what it copies is in
the build's folder is looked at. What is pushed becomes an image's manifest in ECR.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import boto3

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
STATE = Path(os.environ["DOCKER_STATE"])


def aws(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("aws", allow_abbrev=False)
    command = parser.add_subparsers(required=True).add_parser("ecr", allow_abbrev=False)
    login = command.add_subparsers(required=True).add_parser("get-login-password", allow_abbrev=False)
    login.add_argument("--region", required=True)
    region = parser.parse_args(arguments).region
    token = boto3.client("ecr", region_name=region).get_authorization_token()["authorizationData"][0]
    print(token["authorizationToken"])


def docker(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("docker", allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    login = commands.add_parser("login", allow_abbrev=False)
    login.set_defaults(run=log_in)
    login.add_argument("--username", choices=["AWS"], required=True)
    login.add_argument("--password-stdin", action="store_true", required=True)
    login.add_argument("host")
    made = commands.add_parser("build", allow_abbrev=False)
    made.set_defaults(run=build)
    made.add_argument("--platform", choices=["linux/amd64"], required=True)
    made.add_argument("--provenance", choices=["false"], required=True)  # else it is a list of manifests
    made.add_argument("--build-arg", action="append", default=[])
    made.add_argument("--file", type=Path, required=True)
    made.add_argument("--tag", required=True)
    made.add_argument("context", type=Path)
    tag = commands.add_parser("tag", allow_abbrev=False)
    tag.set_defaults(run=name)
    tag.add_argument("image")
    tag.add_argument("new")
    pushed = commands.add_parser("push", allow_abbrev=False)
    pushed.set_defaults(run=push)
    pushed.add_argument("image")
    given = parser.parse_args(arguments)
    state = json.loads(STATE.read_text()) if STATE.exists() else {"hosts": [], "images": {}}
    given.run(given, state)
    STATE.write_text(json.dumps(state))


def log_in(given: argparse.Namespace, state: dict[str, Any]) -> None:
    if not sys.stdin.read().strip():
        sys.exit("Error: Password Required")
    state["hosts"].append(given.host)


def build(given: argparse.Namespace, state: dict[str, Any]) -> None:
    if os.environ["PRIVILEGED"] != "True":
        sys.exit("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?")
    text = given.file.read_text()
    declared = re.findall(r"^ARG (\w+)", text, re.MULTILINE)
    for argument in given.build_arg:
        key, _, value = argument.partition("=")
        if key not in declared or not value:
            sys.exit(f"[Warning] One or more build-args {key} were not consumed")
    for source in re.findall(r"^COPY (\S+) ", text, re.MULTILINE):
        if not (given.context / source).exists():
            sys.exit(f'ERROR: failed to calculate checksum: "/{source}": not found')
    content = b"".join(
        path.read_bytes()
        for path in sorted(given.context.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    )
    state["images"][given.tag] = hashlib.sha256(content + "".join(given.build_arg).encode()).hexdigest()
    print(f"naming to {given.tag}")


def name(given: argparse.Namespace, state: dict[str, Any]) -> None:
    if given.image not in state["images"]:
        sys.exit(f"Error response from daemon: No such image: {given.image}:latest")
    state["images"][given.new] = state["images"][given.image]


def push(given: argparse.Namespace, state: dict[str, Any]) -> None:
    host, _, rest = given.image.partition("/")
    repository, _, tag = rest.partition(":")
    if given.image not in state["images"] or not tag:
        sys.exit(f"An image does not exist locally with the tag: {given.image}")
    if host not in state["hosts"]:
        sys.exit("no basic auth credentials")
    layer = {"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": 200_000_000}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "layers": [{**layer, "digest": f"sha256:{state['images'][given.image]}"}],
    }
    ecr = boto3.client("ecr")
    try:
        ecr.put_image(repositoryName=repository, imageManifest=json.dumps(manifest), imageTag=tag)
    except ecr.exceptions.ClientError as error:
        sys.exit(f"denied: {error}")
    print(f"{tag}: digest: sha256:{state['images'][given.image]} size: 200000000")


if __name__ == "__main__":
    {"aws": aws, "docker": docker}[sys.argv[1]](sys.argv[2:])

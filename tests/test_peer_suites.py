"""papermill's and nbclient's own tests, executed by our engine and our kernels; only in `make soak`.

Their sources are fetched by pip, by the hashes in peers/suites.lock, into a temporary folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.commands import environment

PEERS = Path(__file__).parent / "peers"
# papermill's tests of stores whose clients are not installed here, with which an engine has nothing to do
OTHER_STORES = [f"--ignore=papermill/tests/test_{store}.py" for store in ("abs", "adl", "gcs", "hdfs", "s3")]

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both sources, and a library that nbclient's tests import."""
    place = tmp_path_factory.mktemp("suites")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=papermill,nbclient",
         "--require-hashes", "-r", str(PEERS / "suites.lock"), "-d", str(place)],
        check=True, timeout=300,
    )  # fmt: skip
    for archive in place.glob("*.tar.gz"):
        with tarfile.open(archive) as sources:
            sources.extractall(place, filter="data")
    return place


def failed(suites: Path, suite: str, *arguments: str, kernel: str = "forked") -> set[str]:
    """Names of the suite's tests that do not pass, as differences.toml has them."""
    folder = next(suites.glob(f"{suite}-*/"))
    report, settings = suites / f"{suite}-{kernel}.xml", suites / "pytest.ini"
    settings.write_text("[pytest]\nmarkers = flaky\n")
    libraries = [str(PEERS), *map(str, suites.glob("*.whl"))]
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", str(settings), "--rootdir", str(folder), "-m", "not flaky",
         "-p", "no:cacheprovider", "-p", f"{suite}_plugin", f"--junitxml={report}", *arguments],
        cwd=folder,
        env=environment({"PYTHONPATH": os.pathsep.join(libraries), "PEERS_KERNEL": kernel}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=1800,
    )  # fmt: skip
    cases = list(ElementTree.parse(report).iter("testcase"))
    assert len(cases) > 80
    return {
        f"{case.attrib['classname'].rpartition('tests.')[2]}::{case.attrib['name']}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }


def meant(suite: str) -> set[str]:
    return set(tomllib.loads((PEERS / "differences.toml").read_text())[suite])


def test_papermills_own_tests_pass_with_our_engine_but_for_what_is_meant(suites: Path) -> None:
    assert failed(suites, "papermill", "papermill/tests", *OTHER_STORES) == meant("papermill")


@pytest.mark.parametrize("kernel", ["forked", "standard"])
def test_nbclients_own_tests_pass_with_our_kernels_but_for_what_is_meant(suites: Path, kernel: str) -> None:
    assert failed(suites, "nbclient", "tests/test_client.py", kernel=kernel) == meant("nbclient")

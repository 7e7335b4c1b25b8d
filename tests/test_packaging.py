"""The lock files, environment.yml and pyproject say the same, and name no index."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

from support.projects import ROOT, program

import runner

PIN = re.compile(r"^([a-z0-9_.-]+)==([^ \\\n]+)(?: ; ([^\\\n]+?))? *\\?$", re.M)


def pins(name: str) -> set[tuple[str, str, str]]:
    return {(m[1], m[2], (m[3] or "").strip()) for m in PIN.finditer((ROOT / name).read_text())}


def direct(*groups: str) -> dict[str, str]:
    """Requirement name -> marker, of the core and the named extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for group in groups for line in project["optional-dependencies"][group]]
    return {re.match(r"[\w.-]+", line)[0]: line.partition(";")[2].strip() for line in lines}  # type: ignore[index]


def test_the_core_lock_has_the_pins_of_the_whole_lock() -> None:
    core, whole = pins("requirements.lock"), pins("requirements-all.lock")
    assert len(core) > 80
    versions = {(name, version) for name, version, _ in whole}
    assert {(name, version) for name, version, _ in core} <= versions


def test_every_direct_requirement_is_locked() -> None:
    assert set(direct()) <= {name for name, *_ in pins("requirements.lock")}
    assert set(direct("sagemaker", "studio", "dev")) <= {name for name, *_ in pins("requirements-all.lock")}


def test_every_pin_has_hashes_and_no_address() -> None:
    for name in ("requirements.lock", "requirements-all.lock"):
        content = (ROOT / name).read_text()
        assert "://" not in content
        assert "--index" not in content
        blocks = re.split(r"^(?=[a-z0-9])", content, flags=re.M)[1:]
        assert all("--hash=sha256:" in block for block in blocks)


def test_environment_yml_has_the_locked_versions_of_all_direct_requirements() -> None:
    lines = re.findall(
        r"^      - ([\w.-]+)(?:\[\w+\])?==(\S+)(?: ; (.+))?$", (ROOT / "environment.yml").read_text(), re.M
    )
    locked = {(name, version) for name, version, _ in pins("requirements-all.lock")}
    assert {(name, version) for name, version, _ in lines} <= locked
    assert {name: marker for name, _, marker in lines} == direct("sagemaker", "studio", "dev")


def test_nothing_says_to_install_a_package_of_this_name_which_on_a_public_index_is_another_projects() -> None:
    telling = re.compile(
        r"(?:pip3?|pipx|uvx?|poetry|conda|mamba|pdm)\b[^\n`]*?\b(?:install|add|run|inject)\b[^\n`]*?"
        r"['\" ](?:papermill-)?runner\b(?![./-])"
    )
    assert telling.search("Update with `pip install -U runner`.")
    assert telling.search("pip install 'runner[sagemaker]'")
    listed = subprocess.run(
        [program("git"), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if name != "tests/test_packaging.py" and (ROOT / name).is_file():
            found = telling.search((ROOT / name).read_bytes().decode(errors="replace"))
            assert found is None, f"{name}: {found}"


def test_the_distribution_has_a_name_of_its_own_and_brings_the_command_and_the_engine() -> None:
    found = importlib.metadata.distribution("papermill-runner")
    assert found.version == runner.__version__
    brought = {(entry.group, entry.name): entry.value for entry in found.entry_points}
    assert brought[("console_scripts", "runner")] == "runner.__main__:main"
    assert brought[("papermill.engine", "runner")] == "runner.step.plugin:PapermillEngine"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == runner.__version__


def test_the_python_that_runs_this_is_supported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    assert sys.version_info >= (3, 11)


def test_everything_that_is_imported_is_declared() -> None:
    providers = packages_distributions()
    declared = {name.lower() for name in direct("sagemaker", "studio")}
    undeclared = set()
    for path in (ROOT / "runner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {name.partition(".")[0] for name in names} - {"runner", ""} - sys.stdlib_module_names:
                found = {one.lower().replace("_", "-") for one in providers.get(name, [name])}
                in_awss_image = name == "flask" and path.name == "inference.py"  # where it runs
                if not found & declared and not in_awss_image:
                    undeclared.add(f"{path.relative_to(ROOT)}: {name}")
    assert not undeclared

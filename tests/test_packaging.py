"""The lock files, environment.yml and pyproject say the same, and name no index."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import yaml
from packaging.version import Version
from support.projects import ROOT, notebook, program

import runner

PIN = re.compile(r"^([a-z0-9_.-]+)==([^ \\\n]+)(?: ; ([^\\\n]+?))? *\\?$", re.M)


def pins(name: str) -> set[tuple[str, str, str]]:
    return {(m[1], m[2], (m[3] or "").strip()) for m in PIN.finditer((ROOT / name).read_text())}


def direct(*groups: str) -> dict[str, str]:
    """Requirement name -> marker, of the core and the named extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for group in groups for line in project["optional-dependencies"][group]]
    return {re.match(r"[\w.-]+", line)[0]: line.partition(";")[2].strip() for line in lines}  # type: ignore[index]


def extras() -> list[str]:
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def test_the_core_lock_has_the_pins_of_the_whole_lock() -> None:
    core, of_projects, whole = (pins(f"requirements{of}.lock") for of in ("", "-project", "-all"))
    assert len(core) > 80
    versions, project_versions = ({(name, version) for name, version, _ in lock} for lock in (whole, of_projects))
    assert {(name, version) for name, version, _ in core} <= project_versions <= versions


def test_every_direct_requirement_is_locked() -> None:
    assert set(direct()) <= {name for name, *_ in pins("requirements.lock")}
    assert set(direct("sagemaker", "studio")) <= {name for name, *_ in pins("requirements-project.lock")}
    assert set(direct(*extras())) <= {name for name, *_ in pins("requirements-all.lock")}


def test_every_pin_has_hashes_and_no_address() -> None:
    for name in ("requirements.lock", "requirements-project.lock", "requirements-all.lock"):
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
    assert {name: marker for name, _, marker in lines} == direct(*extras())


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


def test_what_is_imported_and_not_declared_is_a_fault_of_lint(tmp_path: Path) -> None:
    def lint(folder: Path) -> subprocess.CompletedProcess[str]:
        asked = [sys.executable, "-m", "deptry", "--config", str(ROOT / "pyproject.toml"), "--no-ansi", str(folder)]
        return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)

    assert "deptry runner" in (ROOT / "Makefile").read_text()
    assert lint(ROOT / "runner").returncode == 0
    (tmp_path / "late.py").write_text("def late():\n    import no_such_package, yaml\n")
    found = lint(tmp_path).stderr
    assert "'no_such_package' imported but missing from the dependency definitions" in found
    assert "'yaml' imported but it is a transitive dependency" in found


def test_the_wheel_says_that_it_has_types(tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(asked, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("papermill_runner-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"runner/py.typed", "runner/__main__.py", "runner/serve/page.html"} <= names
    assert not [name for name in names if not name.startswith(("runner/", "papermill_runner-"))]


def test_a_system_without_posix_locks_is_told_what_to_use(tmp_path: Path) -> None:
    there = "import sys; sys.modules['fcntl'] = None; from runner.__main__ import main; sys.argv = ['runner', 'run']; main()"
    done = subprocess.run([sys.executable, "-c", there], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "use the Windows Subsystem for Linux" in done.stderr


def test_the_change_log_has_the_version_with_its_day() -> None:
    days = dict(re.findall(r"^## (\d+\.\d+\.\d+), (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M))
    assert runner.__version__ in days
    assert list(days) == sorted(days, key=Version, reverse=True)


def test_the_hook_takes_the_outputs_out_of_a_notebook_and_leaves_a_clean_one_alone(tmp_path: Path) -> None:
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (hook,) = [hook for hook in hooks["hooks"] if hook["id"] == "notebooks"]
    (tmp_path / ".venv").symlink_to(sys.prefix)
    executed = tmp_path / "my executed.ipynb"
    source = notebook("1 + 1")
    source["cells"][0] |= {"execution_count": 7, "outputs": [{"output_type": "stream", "name": "stdout", "text": "2"}]}
    executed.write_text(json.dumps(source))
    for _ in range(2):
        subprocess.run([*shlex.split(hook["entry"]), executed.name], cwd=tmp_path, check=True)
        (cell,) = json.loads(executed.read_text())["cells"]
        assert (cell["outputs"], cell["execution_count"], cell["source"]) == ([], None, ["1 + 1"])
        before, times = executed.read_bytes(), executed.stat().st_mtime_ns
    subprocess.run([*shlex.split(hook["entry"]), executed.name], cwd=tmp_path, check=True)
    assert (executed.read_bytes(), executed.stat().st_mtime_ns) == (before, times)

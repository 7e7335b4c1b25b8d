"""What runs without a person: the workflows, the buildspec and Studio's lifecycle script do what they say."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from account import attach, key
from cloud import in_sagemaker, running
from support.commands import environment
from support.projects import ROOT, Project, parameters, program, recorded

from runner.cli import group
from runner.pipeline.plan import plan

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# those that run the pipeline
RUNNING = [path for path in WORKFLOWS if path.name not in ("comment.yml", "soak.yml", "tests.yml")]
BUILDSPEC = ROOT / "codebuild-buildspec.yml"
LIFECYCLE = ROOT / "infra" / "studio-lifecycle.sh"
GUIDE = ROOT / "docs" / "sagemaker.md"
AUTHOR = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
TOML = """
name = "tiny"
[steps.only]
notebook = "only.ipynb"
parameters = { level = 1 }
[[gate]]
metric = "only.score"
min = 0.5
[profiles.smoke]
parameters = { level = 2 }
"""


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def steps(workflow: Path) -> list[dict[str, Any]]:
    """Of all its jobs, one after the other; what a job's `if` says holds for its steps."""
    return [{"if": job.get("if", ""), **step} for job in read(workflow)["jobs"].values() for step in job["steps"]]


def scripts(path: Path) -> list[str]:
    if path == BUILDSPEC:
        return [command for phase in read(path)["phases"].values() for command in phase["commands"]]
    return [step["run"] for step in steps(path) if "run" in step]


def commands(script: str, program: str) -> Iterator[list[str]]:
    """The words of each call of the program in a shell script, variables replaced by a word."""
    plain = re.sub(r"\$\{[^}]*\}|\$\w+", "X", re.sub(r"\\\n", " ", script))
    for found in re.finditer(rf"(?:^|[\s;{{(|&$]){program} ([^\n|;&>)]+)", plain):
        yield shlex.split(re.sub(r"\s\d?$", "", found[1]), comments=True)


def parse(words: Sequence[str]) -> None:
    """Raises click.UsageError for a command line of ours that is none."""
    command: click.Command = group
    context = click.Context(group)
    rest = list(words)
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, click.Context(found, parent=context, info_name=name)
    command.make_context(context.info_name, rest)


@pytest.mark.parametrize("path", [*RUNNING, BUILDSPEC], ids=lambda path: path.name)
def test_every_command_in_ci_is_one(path: Path) -> None:
    ours = [words for script in scripts(path) for words in commands(script, "runner")]
    assert len(ours) >= 5
    for words in ours:
        parse(words)
    for words in (words for script in scripts(path) for words in commands(script, "make")):
        done = subprocess.run(
            [program("make"), "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_tests_of_ci_are_targets_of_make() -> None:
    asked = [words for script in scripts(WORKFLOWS[-1]) for words in commands(script, "make")]
    assert asked == [["coverage"], ["test-standard"]]
    for words in asked:
        shown = [program("make"), "--dry-run", *words]
        done = subprocess.run(shown, cwd=ROOT, capture_output=True, text=True, check=True)
        named = re.findall(r"tests/test_\w+\.py", done.stdout)
        assert len(named) > 10
        assert all((ROOT / name).exists() for name in named)
    assert ".ci/run" in scripts(WORKFLOWS[-1])
    assert read(WORKFLOWS[-1])["permissions"] == {"contents": "read"}


def test_a_command_that_is_none_would_be_seen() -> None:
    (words,) = commands('if true; then runner run --profil "$X" 2>&1 | tee log; fi', "runner")
    assert words == ["run", "--profil", "X"]
    with pytest.raises(click.UsageError):
        parse(words)
    with pytest.raises(click.UsageError):
        parse(["pipeline", "pusch"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_trusts_nothing_that_others_can_change(path: Path) -> None:
    """Actions by commit, no text of others in a shell, no stored credential, no right that the job's code could use."""
    assert all("${{" not in script for script in scripts(path))
    assert "pull_request_target" not in path.read_text()
    used = re.findall(r"uses: *(.*)", path.read_text())
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}  # v[\d.]+", line) for line in used), used
    checkouts = [step for step in steps(path) if step.get("uses", "").startswith("actions/checkout")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)
    for job in read(path)["jobs"].values():
        rights = job.get("permissions", read(path)["permissions"])
        code = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout")]
        runs = [
            words for step in job["steps"] for words in commands(step.get("run", ""), "runner") if words[0] == "run"
        ]
        writing = {name for name, right in rights.items() if right == "write"}
        assert writing <= ({"id-token"} if code and not runs else set() if code else {"pull-requests"})


@pytest.mark.parametrize("path", RUNNING, ids=lambda path: path.name)
def test_a_workflow_keeps_its_reports(path: Path) -> None:
    kept = "".join(
        step["with"]["path"] for step in steps(path) if step.get("uses", "").startswith("actions/upload-artifact")
    )
    assert "runs/*/report.html" in kept
    assert "executed.html" in kept
    assert "build/site" in kept
    assert {"runs/*/report.html", "build/site/**/*"} <= set(read(BUILDSPEC)["artifacts"]["files"])


# The flows themselves, in a repository with an origin


@dataclass(frozen=True)
class Checkout(Project):
    """A clone with a smoke profile, and the programs that CI has: make and gh leave a note of what they were asked."""

    programs: Path

    def shell(
        self, script: str, variables: Mapping[str, str], bash: Sequence[str] = ("bash",)
    ) -> subprocess.CompletedProcess[str]:
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [program(bash[0]), *bash[1:], "-c", script],
            cwd=self.folder,
            env={**environment({"RUNNER_NO_REPORT": "0"}), "PATH": path, **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def workflow(self, name: str, skip: str = " !=") -> tuple[int, str]:
        """(the exit code of the first step that fails, the summary), without steps whose `if` has `skip` in it."""
        files = {
            variable: self.programs / variable for variable in ("GITHUB_ENV", "GITHUB_PATH", "GITHUB_STEP_SUMMARY")
        }
        for file in files.values():
            file.write_text("")
        code = 0
        default = read(ROOT / ".github" / "workflows" / name).get("defaults", {}).get("run", {}).get("shell")
        for step in steps(ROOT / ".github" / "workflows" / name):
            if "run" not in step or skip in str(step.get("if", "")):
                continue
            if code and "failure()" not in str(step.get("if", "")):
                continue
            said = [line.partition("=") for line in files["GITHUB_ENV"].read_text().splitlines()]
            given = {key: EXPRESSIONS[value] for key, value in step.get("env", {}).items()}
            variables = {variable: str(file) for variable, file in files.items()}
            named = {**variables, **{key: value for key, _, value in said}, **given}
            done = self.shell(step["run"], named, SHELLS[step.get("shell", default)])
            code = code or done.returncode
        return code, files["GITHUB_STEP_SUMMARY"].read_text()

    @property
    def asked(self) -> list[str]:
        file = self.programs / "asked"
        return file.read_text().splitlines() if file.exists() else []

    def git(self, *arguments: str) -> None:
        subprocess.run([program("git"), *AUTHOR, *arguments], cwd=self.folder, check=True, capture_output=True)

    def step_with(self, score: str) -> None:
        self.write("only.ipynb", parameters("level: int = 1"), f"score = {score}", recorded("score", "score"))


# what GitHub starts on Linux for a step's `shell`; without one, a pipe is as good as its last command
# (docs.github.com, workflow syntax, jobs.<job_id>.steps[*].shell)
SHELLS = {None: ("bash", "-e"), "bash": ("bash", "--noprofile", "--norc", "-eo", "pipefail")}

EXPRESSIONS = {
    "${{ github.event.pull_request.base.ref }}": "main",
    "${{ github.token }}": "token",
    "${{ github.repository }}": "us/churn",
    "${{ github.event.workflow_run.head_repository.owner.login }}": "them",
    "${{ github.event.workflow_run.head_branch }}": "b; touch pwned",
    "${{ github.event.workflow_run.head_sha }}": "0123abcd",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in {
        "runner": f'exec {shlex.quote(sys.executable)} -m runner "$@"',
        "make": f'echo "make $*" >> {programs}/asked',
        "gh": f'echo "gh $*" >> {programs}/asked; [ "$1" != api ] || [ -e {programs}/closed ] || echo 7',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{script}\n")
        (programs / name).chmod(0o755)
    made = Checkout(tmp_path / "checkout", programs)
    made.folder.mkdir()
    made.step_with("0.8")
    (made.folder / ".gitignore").write_text("runs/\n")
    made.toml(TOML)
    made.git("init", "-q", "-b", "main")
    made.git("add", ".")
    made.git("commit", "-qm", "a")
    subprocess.run(["git", "clone", "-q", "--bare", made.folder, tmp_path / "origin"], check=True)
    made.git("remote", "add", "origin", str(tmp_path / "origin"))
    made.git("fetch", "-q")
    return made


@pytest.mark.soak
def test_a_pull_request_is_told_what_it_changes_in_code_and_metrics(checkout: Checkout) -> None:
    code, summary = checkout.workflow("main.yml")
    assert code == 0
    assert "No model is registered yet." in summary
    assert "AWS_ROLE is not set" in summary
    checkout.step_with("0.7")
    code, summary = checkout.workflow("pull-request.yml")
    assert code == 0
    comment = (checkout.folder / "comment.md").read_text()
    assert "-score = 0.8" in comment
    assert "+score = 0.7" in comment
    assert re.search(r"only\.score.*0\.8.*0\.7", comment)
    assert comment in summary
    assert not any(line.startswith("gh") for line in checkout.asked)  # beside a stranger's code there is no right to
    assert checkout.manifest["profile"] == "smoke"


def test_a_comment_is_made_of_what_the_run_left_by_a_workflow_that_runs_none_of_its_code(checkout: Checkout) -> None:
    assert checkout.workflow("comment.yml")[0] == 0
    assert checkout.asked == []  # nothing was left
    left = checkout.folder / "comment" / "comment.md"
    left.parent.mkdir()
    left.symlink_to("/proc/self/environ")
    assert checkout.workflow("comment.yml")[0] == 0
    assert checkout.asked == []
    left.unlink()
    left.write_text("metrics\n" + "x" * 100_000)
    assert checkout.workflow("comment.yml")[0] == 0
    (asked, said) = checkout.asked
    assert asked.startswith("gh api --method GET repos/us/churn/pulls -f state=open -f head=them:b; touch pwned --jq")
    assert said == "gh pr comment 7 --repo us/churn --body-file body.md --edit-last --create-if-none"
    body = (checkout.folder / "body.md").read_text()
    assert body.startswith("Written by the run of this request's own code:\n\nmetrics\n")
    assert len(body) < 65_536  # GitHub takes no more
    assert not (checkout.folder / "pwned").exists()
    (checkout.programs / "closed").touch()
    assert checkout.workflow("comment.yml")[0] == 0
    assert len(checkout.asked) == 3


@pytest.mark.soak
def test_a_pull_request_without_an_earlier_run_is_told_so_and_what_its_code_changes(checkout: Checkout) -> None:
    checkout.step_with("0.7")
    code, summary = checkout.workflow("pull-request.yml")
    assert code == 0
    assert "There is no earlier run to compare with" in summary
    assert "+score = 0.7" in summary


@pytest.mark.soak
def test_a_pull_request_whose_gate_fails_is_red_and_leaves_its_comment_all_the_same(checkout: Checkout) -> None:
    checkout.step_with("0.1")
    code, summary = checkout.workflow("pull-request.yml")
    assert code == 4
    assert "0.1" in summary
    assert "0.1" in (checkout.folder / "comment.md").read_text()


def buildspec(checkout: Checkout, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """As CodeBuild does it: each phase's commands in one shell, in which a failing one does not end the others."""
    assert read(BUILDSPEC)["env"]["shell"] == "bash"
    phases = [read(BUILDSPEC)["phases"][name]["commands"] for name in ("install", "build")]
    return checkout.shell("\n".join([*phases[0], *phases[1]]), variables)


@pytest.mark.soak
def test_the_buildspec_runs_the_smoke_profile_for_a_pull_request(checkout: Checkout) -> None:
    checkout.step_with("0.7")
    done = buildspec(checkout, {"CODEBUILD_WEBHOOK_BASE_REF": "refs/heads/main"})
    assert done.returncode == 0, done.stderr
    assert "+score = 0.7" in (checkout.folder / "summary.md").read_text()
    checkout.step_with("0.1")
    assert buildspec(checkout, {"CODEBUILD_WEBHOOK_BASE_REF": "refs/heads/main"}).returncode == 4


@pytest.mark.soak
def test_a_pull_requests_build_asks_nothing_of_the_account(checkout: Checkout) -> None:
    """Its role may write its log alone, and the branch has its versions in SageMaker."""
    inputs = 'inputs = { champion = "approved:tiny" }\noutputs = { model = "model/" }\n[[gate]]'
    model = '[model]\nname = "tiny"\nfrom = "only.model"\nregistry = "sagemaker"\n[profiles.smoke]'
    kept = (
        TOML.replace("[[gate]]", inputs, 1).replace("[profiles.smoke]", model)
        + 'model = { registry = "local", register = false }\n'
    )
    cell = "open(model + '/x', 'w').write(champion)\nscore = 0.8"
    checkout.write(
        "only.ipynb",
        parameters("level: int = 1\nmodel: str = ''\nchampion: str = ''"),
        cell,
        recorded("score", "score"),
    )
    shutil.copyfile(ROOT / "requirements.lock", checkout.folder / "requirements.lock")
    with running() as cloud:
        attach(cloud, checkout.toml(in_sagemaker(kept)))
        cloud.forget_calls()
        build = {**cloud.environment, **key("tiny-pull-request"), "CODEBUILD_WEBHOOK_BASE_REF": "refs/heads/main"}
        done = buildspec(checkout, build)
        assert done.returncode == 0, done.stdout + done.stderr
        assert cloud.calls == []
        assert "tiny-pull-request" in checkout.shell("runner models", build).stderr  # whom SageMaker's refuses


def test_where_the_pipeline_cannot_be_started_ci_is_red(checkout: Checkout) -> None:
    """Its words go through `tee`, which succeeds."""
    (checkout.programs / "runner").write_text(
        "#!/bin/bash\n"
        'case "$*" in "pipeline start"*) echo "StartPipelineExecution is refused"; exit 7 ;; esac\n'
        'case "$*" in "pipeline push"*) echo pushed ;; esac\n'
    )
    code, summary = checkout.workflow("main.yml", skip=" ==")
    assert code == 7
    assert "StartPipelineExecution is refused" in summary
    done = buildspec(checkout, {})
    assert (done.returncode, "pushed" in done.stdout) == (7, True)
    assert "StartPipelineExecution is refused" in (checkout.folder / "summary.md").read_text()


@pytest.mark.soak
def test_the_buildspec_pushes_and_starts_the_pipeline_of_the_branch(checkout: Checkout) -> None:
    shutil.copyfile(ROOT / "requirements.lock", checkout.folder / "requirements.lock")
    toml = checkout.toml(in_sagemaker(TOML))
    trust = {
        "Statement": {
            "Effect": "Allow",
            "Principal": {"Service": "sagemaker.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    }
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json"}
    with running() as cloud:
        attach(cloud, toml)
        build = {**cloud.environment, **key("tiny-build")}
        cloud.client("iam").create_role(
            RoleName="tiny-jobs", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", **trust})
        )
        cloud.client("ecr").create_repository(repositoryName="own")
        cloud.client("ecr").put_image(repositoryName="own", imageManifest=json.dumps(manifest), imageTag="1")
        for _ in range(2):  # as CodePipeline's Retry does
            done = buildspec(checkout, {**build, "CODEBUILD_RESOLVED_SOURCE_VERSION": "abc"})
            assert done.returncode == 0, done.stdout + done.stderr
        found = cloud.client("sagemaker").list_pipeline_executions(PipelineName="tiny")["PipelineExecutionSummaries"]
        assert len(found) == 1
        assert found[0]["PipelineExecutionArn"] in (checkout.folder / "summary.md").read_text()
        # where the service refuses to start it, the build is red
        cloud.faults.add("StartPipelineExecution", "AccessDeniedException", status=400)
        assert buildspec(checkout, build).returncode == 7
        # where the doctor finds something, nothing is pushed and nothing is started
        cloud.client("iam").delete_role(RoleName="tiny-jobs")
        assert buildspec(checkout, build).returncode == 2
        found = cloud.client("sagemaker").list_pipeline_executions(PipelineName="tiny")["PipelineExecutionSummaries"]
        assert len(found) == 1


# Studio


@pytest.fixture
def studio(tmp_path: Path) -> Path:
    """A home folder with this project in it, its environment being the one that runs this."""
    home = tmp_path / "home"
    project = home / "churn"
    (project / "notebooks").mkdir(parents=True)
    for name in ("Makefile", "pipeline.toml", "pyproject.toml", "requirements.lock", "requirements-all.lock"):
        shutil.copyfile(ROOT / name, project / name)
        os.utime(project / name, (0, 0))  # older than the environment, which so is not made again
    (project / ".venv" / "bin").mkdir(parents=True)
    for mark in (".core", ".all"):
        (project / ".venv" / mark).touch()
    for name in ("python", "runner"):
        program = project / ".venv" / "bin" / name
        module = "" if name == "python" else " -m runner"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{module} "$@"\n')
        program.chmod(0o755)
    return home


def lifecycle(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    left_out = ("JUPYTER", "XDG_", "MAKE", "MFLAGS")
    kept = {name: value for name, value in environment().items() if not name.startswith(left_out)}
    return subprocess.run(
        [program("bash"), LIFECYCLE, *arguments],
        env={**kept, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.soak
def test_the_lifecycle_script_registers_a_kernel_that_starts_and_twice_is_once(studio: Path) -> None:
    for _ in range(2):
        done = lifecycle(studio, "--wait")
        assert done.returncode == 0, done.stderr
        assert f"kernel runner in {studio}/.local/share/jupyter/kernels/runner" in done.stdout
        assert "choose the kernel Python (runner)" in done.stdout
    folder = studio / ".local" / "share" / "jupyter"
    assert [path.name for path in (folder / "kernels").iterdir()] == ["runner"]
    assert json.loads((folder / "kernels" / "runner" / "kernel.json").read_text())["argv"][0] == sys.executable
    code = (
        "from jupyter_client.manager import start_new_kernel\n"
        "manager, client = start_new_kernel(kernel_name='runner')\n"
        "reply = client.execute_interactive('import runner.scraps', timeout=60)\n"
        "print(reply['content']['status'])\n"
        "client.stop_channels(); manager.shutdown_kernel(now=True)"
    )
    kept = {**environment(), "JUPYTER_DATA_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr


def test_an_environment_whose_python_is_gone_is_made_anew(studio: Path) -> None:
    project = studio / "churn"
    (project / ".venv" / "bin" / "python").write_text("#!/nowhere/python\n")
    makefile = (project / "Makefile").read_text()
    (project / "Makefile").write_text(makefile.replace('"$(PYTHON)" -m venv $(VENV)', "exit 9"))
    done = lifecycle(studio, "--wait")
    assert "the environment .venv is made anew" in done.stdout
    assert done.returncode == 1
    assert "failed; see above, then run make studio there" in done.stdout


def test_the_lifecycle_script_returns_at_once_and_its_log_says_the_rest(studio: Path) -> None:
    done = lifecycle(studio)
    assert done.returncode == 0
    log = studio / ".runner-studio.log"
    assert done.stdout == f"environments and kernels are being made; see {log}\n"
    for _ in range(600):
        if log.exists() and "choose the kernel" in log.read_text():
            break
        time.sleep(0.1)
    assert "kernel runner in" in log.read_text()


def test_the_lifecycle_script_says_what_it_would_do(studio: Path, tmp_path: Path) -> None:
    dry = lifecycle(studio, "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, f"would make the environment and the kernel of {studio}/churn\n")
    assert not (studio / ".local").exists()
    assert "there is no project" in lifecycle(tmp_path / "nowhere", "--wait").stdout
    assert lifecycle(studio, "--help").stdout.startswith("Usage: ")
    assert lifecycle(studio, "--what").returncode == 2


# By hand


def make(project: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    left_out = ("JUPYTER", "XDG_", "MAKE", "MFLAGS", "PYTHON")
    kept = {name: value for name, value in environment().items() if not name.startswith(left_out)}
    return subprocess.run(
        [program("make"), *words], cwd=project, env={**kept, "HOME": str(project.parent), **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_make_says_so_where_the_environment_has_another_python_than_is_asked_for(studio: Path) -> None:
    project = studio / "churn"
    other = studio / "python9"
    other.write_text("#!/bin/sh\necho 9.9\n")
    other.chmod(0o755)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    for asked, said in ((str(other), "is 9.9"), ("no-such-python", "is not to be started")):
        for done in (make(project, "run", f"PYTHON={asked}"), make(project, ".venv/.all", PYTHON=asked)):
            assert done.returncode == 2
            assert (
                f".venv is made with Python {here}, and PYTHON={asked} {said}. To have another: rm -rf .venv"
                in done.stdout
            )
    assert make(project, ".venv/.all", f"PYTHON={sys.executable}").returncode == 0
    assert make(project, ".venv/.all").returncode == 0
    shutil.rmtree(project / ".venv")  # then there is nothing to differ from
    assert (
        "is made with"
        not in make(project, "--dry-run", ".venv/.core", f"PYTHON={other}").stdout.partition("venv .venv")[2]
    )


def answered(address: str) -> Any:
    """The JSON at the address of a server that is about to listen."""
    for attempt in range(100):
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            if attempt == 99:
                raise
            time.sleep(0.2)
    return None


@pytest.mark.soak
def test_lab_opens_the_project_and_starts_as_root_too(studio: Path) -> None:
    project = studio / "churn"
    jupyter = project / ".venv" / "bin" / "jupyter"
    jupyter.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m jupyter "$@"\n')
    jupyter.chmod(0o755)
    kept = {name: value for name, value in environment().items() if not name.startswith(("JUPYTER", "XDG_", "MAKE"))}
    options = "--no-browser --port=0 --IdentityProvider.token=secret"
    with subprocess.Popen(
        [program("make"), "lab", f"LAB={options}"], cwd=project, env={**kept, "HOME": str(studio)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as lab:  # fmt: skip
        try:
            assert lab.stdout is not None
            said = ""
            for line in lab.stdout:
                said += line
                if found := re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/lab", line):
                    break
            else:
                raise AssertionError(said)
            names = {
                entry["name"] for entry in answered(f"http://localhost:{found[1]}/api/contents?token=secret")["content"]
            }
        finally:
            os.killpg(lab.pid, signal.SIGKILL)
    assert {"pipeline.toml", "notebooks"} <= names
    assert (project / ".venv" / "share" / "jupyter" / "kernels" / "runner").is_dir()


# The guide


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_every_command_of_the_guide_is_one() -> None:
    text = "\n".join(blocks("console"))
    lines = [line.removeprefix("$ ") for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.startswith("$ ")]
    assert len(lines) > 15
    for line in lines:
        called, _, rest = line.partition(" ")
        if called == "runner":
            parse(shlex.split(rest))
        if called == "make":
            done = subprocess.run(
                [program("make"), "--dry-run", rest], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        for file in re.findall(r"(?:file://)?(infra/[\w.-]+)", line):
            assert (ROOT / file).exists(), line


def test_the_guides_pipeline_tables_can_be_read(project: Project) -> None:
    project.write("nb.ipynb", parameters("x: int = 1\nmodel: str = ''"), "x")
    for table in blocks("toml"):
        named = 'name = "a"\n[steps.train]\nnotebook = "nb.ipynb"\noutputs = { model = "model/" }\n'
        assert plan(project.toml(named + table)).pipeline.name == "a"

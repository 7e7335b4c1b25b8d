"""`python -m benchmarks.unchanged`: how long it takes to find out that nothing has changed, beside dvc and ploomber.

The same four notebooks everywhere, run once; then each tool is asked again, rounds interleaved, medians. The plain
script is what a full run costs without any tool.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.__main__ import measure
from benchmarks.paths import ROOT, copy_project, plain_script, runner
from runner.pipeline.plan import Plan, PlannedStep, plan

KERNEL = "bench"
PEERS = ROOT / ".venv-peers" / "bin"
REQUIRED = {"plain script": 0.05, "dvc repro": 0.1, "ploomber build": 0.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        projects = {name: copy_project(Path(scratch) / name.split()[0]) for name in MADE}
        commands = {name: made(projects[name]) for name, made in MADE.items()}
        scripts = [
            measure(plain_script(project), project / "notebooks").wall_s
            for project in (copy_project(Path(scratch) / f"plain-{number}") for number in range(4))
        ]
        plain = statistics.median(scripts[1:])
        for name, command in commands.items():
            measure(command, projects[name])  # the one that does the work
            measure(command, projects[name])  # ploomber reads its own products once more
        found: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                found[name].append(measure(command, projects[name]).wall_s)
    ours = statistics.median(found["runner run"])
    print(f"{'nothing changed':<18} {'median s':>9} {'min s':>7} {'max s':>7}   runner run is")
    print(f"{'plain script':<18} {plain:9.3f} {min(scripts):7.3f} {max(scripts):7.3f}   {ours / plain:.3f} of it")
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(f"{name:<18} {median:9.3f} {min(seconds):7.3f} {max(seconds):7.3f}   {ours / median:.3f} of it")
    medians = {"plain script": plain, **{name: statistics.median(seconds) for name, seconds in found.items()}}
    missed = [name for name, most in REQUIRED.items() if ours / medians[name] > most]
    print("required: " + ", ".join(f"<= {most} of {name}" for name, most in REQUIRED.items()))
    print(f"missed: {', '.join(missed)}" if missed else "all met")
    sys.exit(1 if missed else 0)


def dvc(project: Path) -> list[str]:
    """A stage a notebook, executed by papermill, with its inputs as dependencies and its outputs kept in dvc's cache."""
    made = plan(project / "pipeline.toml")
    stages = {}
    for step in made.steps:
        values = {**step.parameters, **_paths(made, step, "out")}
        (project / f"{step.name}.json").write_text(json.dumps(values))
        inputs = [str(value) for name, value in values.items() if name in step.spec.inputs and value]
        stages[step.name] = {
            "cmd": f"{sys.executable} -m papermill --no-progress-bar -k python3 -f {step.name}.json "
            f"--cwd notebooks {step.spec.notebook} {step.name}.out.ipynb",
            "deps": [step.spec.notebook, f"{step.name}.json", *(os.path.relpath(path, project) for path in inputs)],
            "outs": [os.path.relpath(str(values[name]), project) for name in step.spec.outputs],
        }
    (project / "out").mkdir()
    (project / "dvc.yaml").write_text(json.dumps({"stages": stages}))  # JSON is YAML
    subprocess.run([PEERS / "dvc", "init", "--no-scm", "-q"], cwd=project, check=True)
    subprocess.run([PEERS / "dvc", "config", "core.analytics", "false"], cwd=project, check=True)
    return [str(PEERS / "dvc"), "repro"]


def ploomber(project: Path) -> list[str]:
    """A task a notebook; its parameters cell says what is upstream, as ploomber wants it."""
    made = plan(project / "pipeline.toml")
    tasks = []
    for step in made.steps:
        source = project / "ploomber" / f"{step.name}.ipynb"
        source.parent.mkdir(exist_ok=True)
        source.write_text(json.dumps(_for_ploomber(made, step)))
        product = {"nb": f"ploomber/out/{step.name}.ipynb"}
        product |= {name: f"ploomber/out/{step.name}-{place.rstrip('/')}" for name, place in step.spec.outputs.items()}
        tasks.append({"source": str(source.relative_to(project)), "name": step.name, "product": product})
    (project / "ploomber" / "out").mkdir()
    (project / "pipeline.yaml").write_text(json.dumps({"tasks": tasks}))
    # the kernel is this environment's, with the packages that the notebooks need
    spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
    kernel = project / "jupyter" / "kernels" / KERNEL / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({**spec, "display_name": KERNEL}))
    variables = ["PLOOMBER_STATS_ENABLED=false", f"JUPYTER_PATH={project / 'jupyter'}"]
    return ["env", *variables, str(PEERS / "ploomber"), "build"]


def _for_ploomber(made: Plan, step: PlannedStep) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(step.notebook.path.read_text(encoding="utf-8"))
    at = next(i for i, cell in enumerate(document["cells"]) if "parameters" in cell["metadata"].get("tags", []))
    upstream = sorted(step.needs) or None
    cell = document["cells"][at]
    cell["source"] = "".join(cell["source"]) + f"\nupstream = {upstream!r}\nproduct = None"
    lines = [f"{name} = {value!r}" for name, value in {**step.parameters, **_paths(made, step, "")}.items()]
    for name, spec in step.spec.inputs.items():
        producer, _, output = spec.from_.partition(".")
        if producer in step.needs:
            lines.append(f"{name} = str(upstream[{producer!r}][{output!r}])")
    lines += [f"{name} = str(product[{name!r}])" for name in step.spec.outputs]
    glue = {
        "id": "glue",
        "cell_type": "code",
        "metadata": {},
        "source": "\n".join(lines),
        "outputs": [],
        "execution_count": None,
    }
    document["cells"].insert(at + 1, glue)
    document["metadata"]["kernelspec"] = {"name": KERNEL, "display_name": KERNEL, "language": "python"}
    return document


def _paths(made: Plan, step: PlannedStep, folder: str) -> dict[str, str]:
    """Inputs and outputs as absolute paths; what only a run of ours has (champion, verdict) is absent."""
    root = made.root
    found = {name: str(root / folder / f"{step.name}-{place.rstrip('/')}") for name, place in step.spec.outputs.items()}
    for name, spec in step.spec.inputs.items():
        producer, _, output = spec.from_.partition(".")
        if producer in made.pipeline.steps:
            place = made.pipeline.steps[producer].outputs[output].rstrip("/")
            found[name] = str(root / folder / f"{producer}-{place}")
        else:
            found[name] = str((root / spec.from_).resolve()) if spec.from_.startswith(("./", "/")) else ""
    return found


MADE = {"runner run": lambda project: runner(project)[:-1], "dvc repro": dvc, "ploomber build": ploomber}

if __name__ == "__main__":
    main()

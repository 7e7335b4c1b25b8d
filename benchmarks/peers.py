"""The same four notebooks under other tools. Their versions are in peers.lock, the notebooks' packages are ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.paths import ROOT, code_cell
from runner.pipeline.plan import Plan, PlannedStep, plan

KERNEL = "bench"
PEERS = ROOT / ".venv-peers"
IN_PROCESS = """
import sys
sys.path.append({packages!r})  # the notebooks' packages are this environment's
import matplotlib; matplotlib.use("agg")
from ploomber_engine import execute_notebook
for notebook, parameters in {steps!r}:
    execute_notebook(notebook, notebook + ".out.ipynb", parameters=parameters, progress_bar=False, cwd={cwd!r})
"""


def ploomber_engine(project: Path) -> list[str]:
    """Four times in one process, which is how it is fast: the second notebook finds what the first has imported."""
    planned = plan(project / "pipeline.toml")
    script = project / "engine.py"
    (packages,) = PEERS.glob("lib/python*/site-packages")
    steps = [(str(step.notebook.path), step.parameters) for step in planned.steps]
    script.write_text(IN_PROCESS.format(packages=str(packages), steps=steps, cwd=str(project / "notebooks")))
    return [sys.executable, "-P", str(script)]


def nbconvert(project: Path) -> list[str]:
    """`jupyter nbconvert --execute`, once a notebook; it takes no parameters, so they are written in."""
    planned = plan(project / "pipeline.toml")
    for step in planned.steps:
        document = json.loads(step.notebook.path.read_text())
        cell = document["cells"][_parameters_at(document)]
        lines = [f"\n{name} = {value!r}" for name, value in step.parameters.items()]
        cell["source"] = "".join([*cell["source"], *lines])
        document["metadata"]["kernelspec"]["name"] = "python3"
        step.notebook.path.write_text(json.dumps(document))
    commands = (
        f"{sys.executable} -m nbconvert --execute --to notebook --output {step.name}.out.ipynb {step.notebook.path}"
        for step in planned.steps
    )
    return ["sh", "-c", " && ".join(commands)]


def dvc(project: Path) -> list[str]:
    """A stage for each notebook, executed by papermill; its inputs are dependencies, dvc's cache keeps its outputs."""
    planned = plan(project / "pipeline.toml")
    stages = {}
    for step in planned.steps:
        values = {**step.parameters, **_paths(planned, step, "out")}
        (project / f"{step.name}.json").write_text(json.dumps(values))
        inputs = [str(value) for name, value in values.items() if name in step.spec.inputs and value]
        stages[step.name] = {
            "cmd": f"{sys.executable} -m papermill --no-progress-bar -k python3 -f {step.name}.json "
            f"--cwd notebooks {step.spec.notebook} {step.name}.out.ipynb",
            "deps": [step.spec.notebook, f"{step.name}.json", *(os.path.relpath(path, project) for path in inputs)],
            "outs": [os.path.relpath(str(values[name]), project) for name in step.spec.outputs],
        }
    (project / "out").mkdir()
    return _dvc_repro(project, stages)


def dvc_keys(project: Path, keys: int) -> list[str]:
    """A stage for each key of nb.ipynb, executed by papermill one after the other, which is all that repro does."""
    command = f"{sys.executable} -m papermill --no-progress-bar -k python3 nb.ipynb ${{item}}.ipynb -p key ${{item}}"
    one = {"cmd": command, "deps": ["nb.ipynb"], "outs": ["${item}.ipynb"]}
    return _dvc_repro(project, {"only": {"foreach": list(range(keys)), "do": one}})


def _dvc_repro(project: Path, stages: dict[str, Any]) -> list[str]:
    (project / "dvc.yaml").write_text(json.dumps({"stages": stages}))  # JSON is YAML
    subprocess.run([PEERS / "bin/dvc", "init", "--no-scm", "-q"], cwd=project, check=True)
    subprocess.run([PEERS / "bin/dvc", "config", "core.analytics", "false"], cwd=project, check=True)
    return [str(PEERS / "bin/dvc"), "--cd", str(project), "repro"]


def ploomber(project: Path) -> list[str]:
    """A task for each notebook, whose parameters cell names what is upstream, as ploomber needs."""
    planned = plan(project / "pipeline.toml")
    tasks = []
    for step in planned.steps:
        source = project / "ploomber" / f"{step.name}.ipynb"
        source.parent.mkdir(exist_ok=True)
        source.write_text(json.dumps(_for_ploomber(planned, step)))
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
    return ["env", *variables, str(PEERS / "bin/ploomber"), "build"]


def _for_ploomber(planned: Plan, step: PlannedStep) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(step.notebook.path.read_text(encoding="utf-8"))
    at = _parameters_at(document)
    cell = document["cells"][at]
    cell["source"] = "".join([*cell["source"], f"\nupstream = {sorted(step.needs) or None!r}\nproduct = None"])
    lines = [f"{name} = {value!r}" for name, value in {**step.parameters, **_paths(planned, step, "")}.items()]
    for name, spec in step.spec.inputs.items():
        producer, _, output = spec.from_.partition(".")
        if producer in step.needs:
            lines.append(f"{name} = str(upstream[{producer!r}][{output!r}])")
    lines += [f"{name} = str(product[{name!r}])" for name in step.spec.outputs]
    document["cells"].insert(at + 1, code_cell("glue", "\n".join(lines)))
    document["metadata"]["kernelspec"] = {"name": KERNEL, "display_name": KERNEL, "language": "python"}
    return document


def _parameters_at(document: dict[str, Any]) -> int:
    return next(at for at, cell in enumerate(document["cells"]) if "parameters" in cell["metadata"].get("tags", []))


def _paths(planned: Plan, step: PlannedStep, folder: str) -> dict[str, str]:
    """Inputs and outputs as absolute paths; "" for inputs that only our runs have (champion, verdict)."""
    root = planned.root
    paths = {name: str(root / folder / f"{step.name}-{file.rstrip('/')}") for name, file in step.spec.outputs.items()}
    for name, spec in step.spec.inputs.items():
        producer, _, output = spec.from_.partition(".")
        if producer in planned.pipeline.steps:
            file = planned.pipeline.steps[producer].outputs[output].rstrip("/")
            paths[name] = str(root / folder / f"{producer}-{file}")
        else:
            paths[name] = str((root / spec.from_).resolve()) if spec.from_.startswith(("./", "/")) else ""
    return paths

"""How good the churn model is over many splits and seeds, and whether equal runs give equal bytes.

    python -m benchmarks.seeds [--table FILE] [--seeds 100-129]
    python -m benchmarks.seeds --identical

Each run is the `runner run` command on a fresh copy of the project, with `seed` and `split_seed` both set to the seed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from benchmarks.paths import ROOT, copy_project
from runner.manifest import RunManifest
from runner.records import Metric, read

REAL_TABLE = ROOT.parent / "shared" / "data" / "churn.txt"
OWN_TABLE = ROOT / "data" / "churn.csv"
REQUIRED = {"auc": 0.98, "accuracy": 0.935}  # means over the seeds, on the real table
JUDGED = (0, 4, 5)  # exit codes of a run whose steps all succeeded, whatever the gate said
SHOWN = ("auc", "accuracy", "f1")
VARIANTS = {"first": {}, "again": {}, "1 thread": {"train.nthread": "1"}, "2 threads": {"train.nthread": "2"}}


class Printed(msgspec.Struct, frozen=True):
    """The part of `runner run --json` that is used here."""

    run: str
    metrics: dict[str, Metric]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="customer table (the real one; with --identical both)")
    parser.add_argument("--seeds", type=seed_range, default=range(100, 130), metavar="FIRST-LAST")
    parser.add_argument("--identical", action="store_true", help="compare bytes of equal runs; exit 1 if they differ")
    options = parser.parse_args()
    if options.identical:
        tables = [options.table] if options.table else [OWN_TABLE, *([REAL_TABLE] if REAL_TABLE.is_file() else [])]
        same = [identical(table, seed=options.seeds[0]) for table in tables]
        sys.exit(0 if all(same) else 1)
    for line in seed_lines(options.table or REAL_TABLE, options.seeds):
        print(line, flush=True)


def seed_range(text: str) -> range:
    """`100-129` as the seeds 100 to 129, both included; one number is one seed."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def seed_lines(table: Path, seeds: Iterable[int]) -> Iterator[str]:
    """A Markdown table, a line for each seed as soon as it has run; then the means beside what is required of them."""
    yield "| seed | test rows | AUC | interval | accuracy | F1 |"
    yield "|---:|---:|---:|---|---:|---:|"
    rows: list[dict[str, Metric]] = []
    with tempfile.TemporaryDirectory() as scratch:
        project = copy_project(Path(scratch) / "project")
        for seed in seeds:
            metrics = run(project, table, seed=seed).metrics
            rows.append({name: metrics[f"evaluate.{name}"] for name in SHOWN})
            auc, accuracy, f1 = rows[-1].values()
            yield (
                f"| {seed} | {metrics['evaluate.test_rows'].value:.0f} | {auc.value:.4f} | "
                f"{auc.low:.4f} to {auc.high:.4f} | {accuracy.value:.4f} | {f1.value:.4f} |"
            )
    values = {name: [metrics[name].value for metrics in rows] for name in SHOWN}
    mean = {name: statistics.fmean(numbers) for name, numbers in values.items()}
    yield f"| **mean** | | **{mean['auc']:.4f}** | | **{mean['accuracy']:.4f}** | **{mean['f1']:.4f}** |"
    ends = {name: f"{min(numbers):.4f} to {max(numbers):.4f}" for name, numbers in values.items()}
    yield f"| lowest to highest | | {ends['auc']} | | {ends['accuracy']} | {ends['f1']} |"
    yield ""
    for name, least in REQUIRED.items():
        yield f"mean {name} {mean[name]:.4f}, required {least}: {'met' if mean[name] >= least else 'NOT met'}"


def identical(table: Path, *, seed: int) -> bool:
    """Whether runs with the same seed, twice and on one and two threads, left the same numbers and bytes."""
    print(f"{table.name}, seed {seed}: {', '.join(VARIANTS)}, each with --force in a folder of its own\n")
    evidence = {name: _evidence(table, seed=seed, parameters=parameters) for name, parameters in VARIANTS.items()}
    names = sorted({name for facts in evidence.values() for name in facts})
    print("| compared | first | equal in |\n|---|---|---|")
    same = True
    for name in names:
        values = [facts.get(name, "missing") for facts in evidence.values()]
        equal = sum(value == values[0] for value in values)
        same = same and equal == len(values)
        print(f"| {name} | `{values[0][:16]}` | {equal} of {len(values)} |", flush=True)
    print(f"\n{len(names)} facts compared: {'all equal' if same else 'NOT equal'}\n", flush=True)
    return same


def _evidence(table: Path, *, seed: int, parameters: dict[str, str]) -> dict[str, str]:
    """A run's numbers and hashes by name."""
    with tempfile.TemporaryDirectory() as scratch:
        project = copy_project(Path(scratch) / "project")
        folder = project / "runs" / run(project, table, seed=seed, parameters=parameters).run
        manifest = read(RunManifest, folder / "run.json")
        facts = {name: repr(metric) for name, metric in _metrics(manifest).items()}
        for name, source in manifest.sources.items():
            facts[f"source {name}"] = source.artifact.sha256 if source.artifact else "absent"
        for step in manifest.steps:
            for name, output in step.result.outputs.items() if step.result else ():
                facts[f"output {step.name}.{name}"] = output.sha256
        for file in sorted((folder / "steps" / "train" / "out" / "model").iterdir()):
            facts[f"file model/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return facts


def _metrics(manifest: RunManifest) -> dict[str, float]:
    """Values and both ends of intervals, by name."""
    return {
        f"metric {name}{end}": value
        for name, metric in manifest.metrics.items()
        for end, value in (("", metric.value), (" low", metric.low), (" high", metric.high))
        if value is not None
    }


def run(project: Path, table: Path, *, seed: int, parameters: dict[str, str] | None = None) -> Printed:
    """One run up to the evaluation; registers nothing. Raises SystemExit with its messages where a step failed."""
    values = {"seed": str(seed), "split_seed": str(seed), "data.source": str(table.resolve()), **(parameters or {})}
    command = [sys.executable, "-m", "runner", "run", "evaluate", "--json", "--no-register", "--force"]
    command += [part for name, value in values.items() for part in ("-p", f"{name}={value}")]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # threads that spin while they wait crawl on busy cores
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in JUDGED:
        raise SystemExit(f"{' '.join(command)} left with {done.returncode}:\n{done.stderr[-4000:]}")
    return msgspec.json.decode(done.stdout, type=Printed)


if __name__ == "__main__":
    main()

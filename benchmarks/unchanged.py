"""`python -m benchmarks.unchanged`: how long it takes to find out that nothing has changed, beside dvc and ploomber.

The same four notebooks everywhere, run once; then each tool is asked again, rounds interleaved, medians. The plain
script is what a full run costs without any tool.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import measure
from benchmarks.paths import copy_project, plain_script, runner
from benchmarks.peers import dvc, ploomber

REQUIRED = {"plain script": 0.05, "dvc repro": 0.1, "ploomber build": 0.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        projects = {name: copy_project(Path(scratch) / name.split()[0]) for name in COMMANDS}
        commands = {name: command(projects[name]) for name, command in COMMANDS.items()}
        scripts = [
            measure(plain_script(project), project / "notebooks").wall_s
            for project in (copy_project(Path(scratch) / f"plain-{number}") for number in range(4))
        ]
        plain = statistics.median(scripts[1:])
        for name, command in commands.items():
            measure(command, projects[name])  # the one that does the work
            measure(command, projects[name])  # ploomber reads its own products once more
        seconds_by_tool: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                seconds_by_tool[name].append(measure(command, projects[name]).wall_s)
    medians = {name: statistics.median(seconds) for name, seconds in seconds_by_tool.items()}
    ours = medians["runner run"]
    print(f"{'nothing changed':<18} {'median s':>9} {'min s':>7} {'max s':>7}   runner run is")
    print(f"{'plain script':<18} {plain:9.3f} {min(scripts):7.3f} {max(scripts):7.3f}   {ours / plain:.3f} of it")
    for name, seconds in seconds_by_tool.items():
        line = f"{name:<18} {medians[name]:9.3f} {min(seconds):7.3f} {max(seconds):7.3f}"
        print(f"{line}   {ours / medians[name]:.3f} of it")
    medians["plain script"] = plain
    missed = [name for name, most in REQUIRED.items() if ours / medians[name] > most]
    print("required: " + ", ".join(f"<= {most} of {name}" for name, most in REQUIRED.items()))
    print(f"missed: {', '.join(missed)}" if missed else "all met")
    sys.exit(1 if missed else 0)


COMMANDS = {"runner run": lambda project: runner(project)[:-1], "dvc repro": dvc, "ploomber build": ploomber}

if __name__ == "__main__":
    main()

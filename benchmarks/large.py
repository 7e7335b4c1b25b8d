"""A table larger than memory may be: the churn notebooks in parts, beside scripts of Polars and DuckDB with XGBoost.

    python -m benchmarks.large [--rows 10000000] [--rounds 30] [--peers PYTHON] [--template churn|tabular]

The table is drawn as data/make_churn.py draws its own, into a folder of the system's temporary ones (0.1 GB for each
million rows), and stays there. Each way reads it, splits it by a hash of the phone number, learns `rounds` trees with the
settings of 02_train, and judges them on the test side. With `--template tabular` it is a project that `runner init` makes
for the table, and then each of its first three notebooks alone, in a process of its own. `--peers` is a Python that has polars, duckdb, xgboost-cpu,
scikit-learn and pyarrow; without it the notebooks run alone. Memory is PSS, of all processes together, read while the
same run is timed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from benchmarks.measuring import check, machine, pss_mb, start, table, tree
from benchmarks.paths import ROOT, copy_project, runner

BLOCK = 500_000  # rows drawn at a time
SCRIPT = """
import sys, numpy as np, xgboost as xgb
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, f1_score, log_loss, roc_auc_score
which, source, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
CATEGORIES, KEY, TARGET = ["State", "Area Code", "Int'l Plan", "VMail Plan"], "Phone", "Churn?"
if which == "polars":
    import polars as pl
    frame = pl.scan_csv(source, schema_overrides={"Area Code": pl.String})
    place = (pl.col(KEY).hash(7) % 1000).alias("place")
    kinds = [pl.col(name).cast(pl.Categorical) for name in CATEGORIES]
    numbers = pl.selectors.numeric().cast(pl.Float32)
    frame = frame.with_columns(numbers, *kinds, (pl.col(TARGET) == "True.").cast(pl.Int8))
    frame = frame.with_columns(place).drop(KEY).collect(engine="streaming")
    sides = [frame.filter(pl.col("place").is_between(a, b)).drop("place")
             for a, b in ((0, 699), (700, 879), (880, 999))]
    del frame
    sides = [(side.drop(TARGET), side[TARGET].to_numpy()) for side in sides]
else:
    import duckdb
    link = duckdb.connect()
    link.execute("set threads = 2")
    kinds = ", ".join("'" + name.replace("'", "''") + "': 'varchar'" for name in CATEGORIES)
    link.execute(f'''create table t as select * exclude ("Phone", "Churn?"), ("Churn?" = 'True.')::tinyint as "Churn?",
        hash("Phone") % 1000 as place from read_csv('{source}', types = {{{kinds}}})''')
    for name in CATEGORIES:
        values = [row[0] for row in link.execute(f'select distinct "{name}" from t order by 1').fetchall()]
        kind = "k" + str(CATEGORIES.index(name))
        link.execute(f"create type {kind} as enum (" + ", ".join(f"'{value}'" for value in values) + ")")
        link.execute(f'alter table t alter "{name}" type {kind}')
    sides = []
    for a, b in ((0, 699), (700, 879), (880, 999)):
        side = link.execute(f"select * exclude (place) from t where place between {a} and {b}").df()
        answers = side.pop(TARGET).to_numpy()
        sides.append((side, answers))
settings = {
    "objective": "binary:logistic", "eval_metric": ["logloss", "auc"], "max_depth": 5, "eta": 0.1, "gamma": 1.0,
    "min_child_weight": 6.0, "subsample": 0.8, "seed": 42, "nthread": 2,
}
train = xgb.QuantileDMatrix(*sides[0], enable_categorical=True)
validation = xgb.QuantileDMatrix(*sides[1], enable_categorical=True, ref=train)
records, truth = sides[2]
del sides
booster = xgb.train(settings, train, rounds, evals=[(train, "train"), (validation, "validation")],
                    early_stopping_rounds=30, verbose_eval=False)
scores = booster.predict(xgb.QuantileDMatrix(records, enable_categorical=True, ref=train))
print([float(one(truth, scores)) for one in (roc_auc_score, average_precision_score, brier_score_loss, log_loss)],
      accuracy_score(truth, scores >= 0.5), f1_score(truth, scores >= 0.5))
"""


def draw(path: Path, rows: int) -> None:
    """Write the table with so many rows, each with a phone number of its own."""
    sys.path.insert(0, str(ROOT / "data"))
    import make_churn

    phones = np.random.default_rng(1).permutation(rows) + 2_000_000
    with path.open("wb") as file:
        for at, begin in enumerate(range(0, rows, BLOCK)):
            numbers = phones[begin : begin + BLOCK]
            make_churn.ROWS, make_churn.SEED = len(numbers), 20_240_611 + at
            frame = make_churn.customers()
            frame["Phone"] = [f"{number // 10_000}-{number % 10_000:04d}" for number in numbers]
            if not at:
                file.write((",".join(frame.columns) + "\n").encode())
            options = pa.csv.WriteOptions(include_header=False, quoting_style="none")
            pa.csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), file, options)


def measured(command: list[str], folder: Path) -> tuple[float, float, float, str]:
    """Wall and processor seconds, the highest PSS of all processes in MB, and what was printed."""
    before, clock, sums = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), [0.0]
    process = start(command, folder)

    def watch() -> None:
        while process.poll() is None:
            sums.append(sum(map(pss_mb, tree(process.pid))))
            time.sleep(0.2)

    watching = threading.Thread(target=watch)
    watching.start()
    output = process.communicate()
    wall = time.perf_counter() - clock
    watching.join()
    check(process, output)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, max(sums), output[0]


def steps(project: Path, source: Path, rounds: int) -> Iterator[tuple[str, float, float, float]]:
    """Of each notebook of the template alone: seconds, and the highest memory (RSS) of its process in MB."""
    sides = {side: str(project / f"{side}.parquet") for side in ("train", "validation", "test")}
    columns, model = str(project / "columns.toml"), str(project / "model")
    learning = {side: sides[side] for side in ("train", "validation")}
    judging = {"test": sides["test"], "train": sides["train"], "predictions": str(project / "predictions.parquet")}
    given = {
        "01_data": {"source": str(source), **sides},
        "02_train": {**learning, "model": model, "rounds": rounds},
        "03_evaluate": {**judging, "model": model},
    }
    for name, parameters in given.items():
        line = [
            sys.executable,
            "-m",
            "benchmarks.tabular",
            "--execute",
            name,
            json.dumps({"columns": columns, **parameters}),
        ]
        wall, cpu, _, said = measured(line, ROOT)
        yield name, wall, cpu, float(said.split()[-1])


def made_project(folder: Path, template: str, source: Path) -> Path:
    """A project of the template, which reads this table."""
    if template == "tabular":
        asked = ["init", str(folder), "--data", str(source), "--target", "Churn?", "--key", "Phone"]
        subprocess.run([sys.executable, "-m", "runner", *asked], check=True, stdout=subprocess.DEVNULL)
        return folder
    project = copy_project(folder)
    (project / "data" / "churn.csv").unlink()
    (project / "data" / "churn.csv").symlink_to(source)
    return project


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--template", choices=("churn", "tabular"), default="churn")
    options = parser.parse_args()
    source = Path(tempfile.gettempdir()) / f"churn-{options.rows}.csv"
    if not source.exists():
        draw(source, options.rows)
    print(
        machine(),
        f"{options.rows:,} rows, {source.stat().st_size / 1e6:,.0f} MB, {options.rounds} rounds.",
        "",
        sep="\n",
    )
    rows: list[list[str]] = []

    def add(name: str, wall: float, cpu: float, peak: float) -> None:
        rows.append([name, f"{wall:.0f}", f"{cpu:.0f}", f"{peak:.0f}"])
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)  # the next one may fail

    with tempfile.TemporaryDirectory(prefix="large-") as made:
        project = made_project(Path(made) / "project", options.template, source)
        given = ["-p", f"rounds={options.rounds}", "--no-register"]
        wall, cpu, peak, said = measured(runner(project, *given), project)
        add("`runner run`, with report", wall, cpu, peak)
        for step in json.loads(said).get("steps", []):
            print(f"{step['name']}: {step.get('seconds')} s", file=sys.stderr)
        if options.template == "tabular":
            for name, wall, cpu, peak in steps(project, source, options.rounds):
                add(name, wall, cpu, peak)
        script = Path(made) / "script.py"
        script.write_text(SCRIPT, encoding="utf-8")
        for name in ("polars", "duckdb") if options.peers else ():
            line = [str(options.peers), "-P", str(script), name, str(source), str(options.rounds)]
            wall, cpu, peak, said = measured(line, Path(made))
            print(name, said, file=sys.stderr)
            add(f"{name} + XGBoost", wall, cpu, peak)
    print("\n".join(table(["", "wall s", "CPU s", "peak MB"], rows)))


if __name__ == "__main__":
    main()

"""Makes the table that `runner init` brings: 4,000 invented deliveries, the same bytes every time.

What makes one late is written in `late_score`. It has what real tables have: a key, dates, categories, blanks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

ROWS = 4_000
SEED = 20_261_129
DEPOTS = {"North": 0.35, "Harbour": 0.3, "Airport": 0.2, "Old Town": 0.15}
VEHICLES = {"van": 0.6, "bicycle": 0.25, "truck": 0.15}
PLACE = Path(__file__).parents[1] / "runner" / "templates" / "example" / "deliveries.csv"


def deliveries() -> pd.DataFrame:
    """One row for each delivery, in the order of their days."""
    rng = np.random.default_rng(SEED)
    days = np.sort(rng.integers(0, 365, ROWS))
    distance = rng.gamma(2.2, 4.0, ROWS).clip(0.3, 60)
    weight = rng.gamma(1.5, 3.0, ROWS).clip(0.1, 40).round(1).astype(object)
    weight[rng.random(ROWS) < 0.04] = None  # not everything is weighed
    frame = pd.DataFrame(
        {
            "delivery": [f"D{number:06d}" for number in rng.choice(900_000, ROWS, replace=False) + 100_000],
            "ordered": (pd.Timestamp("2025-01-01") + pd.to_timedelta(days, unit="D")).strftime("%Y-%m-%d"),
            "depot": rng.choice(list(DEPOTS), ROWS, p=list(DEPOTS.values())),
            "vehicle": rng.choice(list(VEHICLES), ROWS, p=list(VEHICLES.values())),
            "distance_km": distance.round(1),
            "weight_kg": weight,
            "stops_before": rng.poisson(6, ROWS),
            "express": np.where(rng.random(ROWS) < 0.2, "yes", "no"),
        }
    )
    late = rng.random(ROWS) < 1 / (1 + np.exp(-late_score(frame)))
    frame["late"] = np.where(late, "yes", "no")
    return frame


def late_score(frame: pd.DataFrame) -> pd.Series:
    """Log-odds of being late: bicycles with long ways or heavy loads, trucks in the old town, many stops, December."""
    heavy = pd.to_numeric(frame["weight_kg"]).fillna(4) > 6
    far, bicycle = frame["distance_km"] > 9, frame["vehicle"].eq("bicycle")
    return (
        -2.6
        + 3.0 * (bicycle & (far | heavy))
        + 3.2 * (frame["vehicle"].eq("truck") & frame["depot"].eq("Old Town"))
        + 1.8 * (frame["stops_before"] > 8)
        + 1.6 * frame["ordered"].str[5:7].eq("12")
        - 1.5 * (frame["express"].eq("yes") & ~bicycle)
    )


if __name__ == "__main__":
    deliveries().to_csv(PLACE, index=False, lineterminator="\n")
    print(f"{PLACE.name}: {ROWS} deliveries, {PLACE.stat().st_size} bytes")

"""Makes churn.csv beside this file: 5,000 invented customers of a telephone company, the same bytes every time.

What decides whether a customer leaves is written in `leaving_score`; the rest is realistic filling.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

ROWS = 5_000
SEED = 20_240_611
STATES = (  # noqa: SIM905
    "AK AL AR AZ CA CO CT DC DE FL GA HI IA ID IL IN KS KY LA MA MD ME MI MN MO MS MT NC ND NE NH NJ NM NV NY OH OK OR "
    "PA RI SC SD TN TX UT VA VT WA WI WV WY"
).split()
AREA_CODES = {408: 0.2, 415: 0.3, 510: 0.2, 628: 0.1, 650: 0.1, 707: 0.06, 925: 0.04}
PRICE_PER_MINUTE = {"Day": 0.17, "Eve": 0.085, "Night": 0.045, "Intl": 0.27}


def customers() -> pd.DataFrame:
    """The table as the company's billing system would export it."""
    rng = np.random.default_rng(SEED)
    voice_mail = rng.random(ROWS) < 0.28
    minutes = {
        "Day": rng.normal(180, 55, ROWS).clip(0, 380),
        "Eve": rng.normal(200, 50, ROWS).clip(0, 380),
        "Night": rng.normal(200, 50, ROWS).clip(10, 400),
        "Intl": rng.gamma(6.5, 1.6, ROWS).clip(0, 40),
    }
    table = {
        "State": rng.choice(STATES, ROWS),
        "Account Length": rng.gamma(6.0, 17.0, ROWS).clip(1, 260).astype(int),
        "Area Code": rng.choice(list(AREA_CODES), ROWS, p=list(AREA_CODES.values())),
        "Phone": [f"{n // 10_000}-{n % 10_000:04d}" for n in rng.choice(8_000_000, ROWS, replace=False) + 2_000_000],
        "Int'l Plan": np.where(rng.random(ROWS) < 0.18, "yes", "no"),
        "VMail Plan": np.where(voice_mail, "yes", "no"),
        "VMail Message": np.where(voice_mail, rng.poisson(28, ROWS), 0),
    }
    for part, spoken in minutes.items():
        rounded = spoken.round(1)
        table[f"{part} Mins"] = rounded
        table[f"{part} Calls"] = rng.poisson(5 if part == "Intl" else 100, ROWS)
        table[f"{part} Charge"] = (rounded * PRICE_PER_MINUTE[part]).round(2)
    table["CustServ Calls"] = rng.poisson(1.7, ROWS)
    frame = pd.DataFrame(table)
    stays = rng.random(ROWS) >= 1 / (1 + np.exp(-leaving_score(frame)))
    frame["Churn?"] = np.where(stays, "False.", "True.")
    return frame


def leaving_score(frame: pd.DataFrame) -> pd.Series:
    """Log-odds of leaving: expensive months, complaints and a bad fit of plan and use drive customers away."""
    bill = sum(frame[f"{part} Charge"] for part in PRICE_PER_MINUTE)
    abroad = frame["Int'l Plan"].eq("yes")
    rarely_abroad = abroad & (frame["Intl Calls"] < 4)
    complaints = frame["CustServ Calls"]
    return (
        -2.6
        + 0.42 * (bill - 60).clip(-12, 14)
        + 5.5 * (complaints >= 4)
        + 3.2 * abroad
        + 3.0 * rarely_abroad
        - 4.0 * (frame["VMail Plan"].eq("yes") & (complaints < 4))
        + 2.5 * (frame["Account Length"] < 40)
    )


if __name__ == "__main__":
    path = Path(__file__).with_name("churn.csv")
    customers().to_csv(path, index=False, lineterminator="\n")
    print(f"{path.name}: {ROWS} customers, {path.stat().st_size} bytes")

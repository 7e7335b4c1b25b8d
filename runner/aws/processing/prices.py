"""What a job costs: billed seconds by a table of prices that a project may replace."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from runner.aws.settings import Settings
from runner.errors import PipelineError

TABLE = Path(__file__).with_name("prices.toml")


@dataclass(frozen=True)
class Prices:
    """US dollars an hour by instance type."""

    hourly: dict[str, float]
    source: str

    @classmethod
    def read(cls, path: Path | None) -> Prices:
        """The project's table, or the package's own. Raises PipelineError where it is not a table of prices."""
        path = path or TABLE
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            hourly = {str(name): float(price) for name, price in table["hourly"].items()}
        except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
            raise PipelineError(
                f"[sagemaker] prices: {path} is not a table of prices ({error}); write [hourly] with lines "
                '"ml.m5.xlarge" = 0.23.'
            ) from error
        return cls(hourly, str(table.get("source", path)))

    def of(self, instance: str, seconds: float) -> float | None:
        """The price of so many seconds; None where the table does not have the instance."""
        hourly = self.hourly.get(instance)
        return None if hourly is None else round(hourly * seconds / 3600, 6)


def project_prices(job_settings: Settings, root: Path) -> Prices:
    """The table of prices that the settings name. Raises PipelineError as `Prices.read`."""
    return Prices.read(root / job_settings.prices if job_settings.prices else None)

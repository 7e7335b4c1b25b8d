"""The command `runner`, also as `python -m runner`."""

from __future__ import annotations

import sys


def main() -> None:
    from runner.cli import entry

    sys.exit(entry(sys.argv[1:]))


if __name__ == "__main__":
    main()

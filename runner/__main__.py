"""The command `runner`, also as `python -m runner`."""

from __future__ import annotations

import sys


def main() -> None:
    if sys.argv[1:] == ["clean-notebook"]:  # git calls it for each notebook that it looks at
        from runner.pipeline.cleaned import cleaned

        sys.stdout.buffer.write(cleaned(sys.stdin.buffer.read()))
        return
    if sys.argv[1:2] == ["run"]:
        from runner.run.unchanged import again

        code = again(sys.argv[2:])
        if code is not None:
            sys.exit(code)
    from runner.cli import entry

    sys.exit(entry(sys.argv[1:]))


if __name__ == "__main__":
    main()

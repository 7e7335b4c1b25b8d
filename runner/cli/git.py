"""Working together with git: `setup-git`, and `clean-notebook`, the filter that it installs.

The filter alone is not enough: git takes another size for a change before it asks the filter, so a notebook that was
only executed would show as modified and prevent every pull. git can ask a program which files changed
(core.fsmonitor); ours answers with `git diff`, which compares what the filter leaves.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from runner.cli.terminal import say
from runner.errors import UsageError
from runner.notebook import strip_outputs
from runner.notebook.strip_outputs import cleaned

NAME = "runner-notebook"  # of the filter and of both drivers
ATTRIBUTES = ".gitattributes"
RULE = f"*.ipynb filter={NAME} diff={NAME} merge={NAME}"
SECTIONS = (f"filter.{NAME}", f"diff.{NAME}", f"merge.{NAME}")

SCRIPT = f"{NAME}-changed-files"
# in a copy of the index, as `git diff` writes down what it found to be unchanged; with its time, by which
# git knows that a file of the same second may have changed since
CHANGED_FILES = r"""#!/bin/sh
# Tells git which files changed, by content. Where this fails, git looks for itself.
[ "$1" = 2 ] || exit 1
index=$(git rev-parse --git-path index) && copy=$(mktemp -d) || exit 1
trap 'rm -rf "$copy"' EXIT
cp -p "$index" "$copy/index" 2>/dev/null || exit 1
GIT_INDEX_FILE="$copy/index" git -c core.fsmonitor=false -c core.hooksPath=/dev/null -c diff.autoRefreshIndex=true \
    diff --name-only --no-relative --no-ext-diff -z >"$copy/changed" 2>/dev/null || exit 1
printf 'content\0'
cat "$copy/changed"
"""
# The filter and both drivers. They work without the environment too, with any Python or as git does by itself: whoever
# removes it must be able to add a notebook still, and to take all this out again.
DRIVERS = r"""#!/bin/sh
# By `runner setup-git`; `sh .git/hooks/NAME undo` takes it out again.
python=PYTHON
hooks=$(cd "$(dirname "$0")" && pwd)
without() { echo "runner: $python does not work any more, so $1. Make it again, or: sh $hooks/NAME undo" >&2; }
nbdime() { "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("nbdime") is None)' 2>/dev/null; }
try() { "$@" <"$copy/notebook" >"$copy/cleaned" 2>/dev/null; }
what=$1
shift
case $what in
clean)
    copy=$(mktemp -d) || exec cat
    trap 'rm -rf "$copy"' EXIT
    cat >"$copy/notebook"
    try "$python" -P -m runner clean-notebook || try python3 -I "$hooks/NAME.py" || try python -I "$hooks/NAME.py" || {
        without "a notebook is added with its outputs"
        cp "$copy/notebook" "$copy/cleaned"
    }
    cat "$copy/cleaned" ;;
merge)
    nbdime && exec "$python" -P -c MERGE merge "$@"
    without "notebooks merge as text"
    exec git merge-file --marker-size="$4" "$2" "$1" "$3" ;;
diff)
    nbdime && exec "$python" -P -c DIFF diff --use-filter "$@"
    without "notebooks are compared as text"
    copy=$(mktemp -d) || exit 1
    trap 'rm -rf "$copy"' EXIT
    for file in "$2" "$5"; do sh "$0" clean <"$file" >"$copy/$((count += 1))"; done
    diff -u --label "a/$1" --label "b/$1" "$copy/1" "$copy/2" || : ;;
undo)
    cd "$(git rev-parse --show-toplevel)" || exit 1
    case $(git config --local core.fsmonitor) in *SCRIPT*)
        git config --local --unset-all core.fsmonitor
        git config --local --unset-all core.untrackedCache ;;
    esac
    for section in SECTIONS; do git config --local --remove-section $section 2>/dev/null; done
    rest=$hooks/NAME.rest
    for hook in HOOKS; do
        [ -f "$hooks/$hook" ] || continue
        LC_ALL=C grep -v '# NAME$' "$hooks/$hook" >"$rest"
        case $(cat "$rest") in
        '' | '#!/bin/sh') rm "$hooks/$hook" ;;
        *) cat "$rest" >"$hooks/$hook" ;;
        esac
    done
    rule='^[[:space:]]*RULE[[:space:]]*$'
    if LC_ALL=C grep -q "$rule" ATTRIBUTES 2>/dev/null; then
        LC_ALL=C grep -v "$rule" ATTRIBUTES >"$rest"
        if [ -s "$rest" ] || git ls-files --error-unmatch ATTRIBUTES >/dev/null 2>&1; then
            cat "$rest" >ATTRIBUTES
        else
            rm ATTRIBUTES
        fi
    fi
    rm -f "$rest" "$hooks/SCRIPT" "$hooks/NAME.py" "$hooks/NAME" ;;
esac
"""
# git asks only about files that it once saw unchanged: refresh after each checkout and commit, before any execution
HOOKS = ("post-index-change", "post-commit")
REFRESH = f"git -c core.hooksPath=/dev/null update-index -q --refresh >/dev/null 2>&1 || :  # {NAME}\n"
SHELL = "#!/bin/sh\n"
BY_HAND = "\n\nimport sys\n\nsys.stdout.buffer.write(cleaned(sys.stdin.buffer.read()))\n"


@click.command("setup-git")
@click.option("--undo", is_flag=True, help="Take out again what this command put in.")
def setup_git_command(undo: bool) -> None:
    """Keep outputs out of commits, and merge notebooks cell by cell.

    Adds a line to .gitattributes, which everybody shares, and settings to this clone's git configuration, which
    everybody makes once. Calling it again changes nothing; after moving the environment it corrects the paths.
    Without the environment notebooks are still added, and `sh .git/hooks/runner-notebook undo` is --undo. Should a
    notebook ever show as modified while `git diff` is empty, `git add -u` settles it.

    \b
    Example:
      runner setup-git
      runner setup-git --undo
    """
    top = repository(Path.cwd())
    if undo:
        remove(top)
        say(f"removed from {top}: the line in {ATTRIBUTES}, {', '.join(SECTIONS)} and the hooks")
        say("from its next save on, a notebook's outputs are changes again")
        return
    added = install(top)
    say(f"{top / ATTRIBUTES}: {RULE}{'' if added else '   (was there)'}")
    for name, value in {**settings(), **watching(top)}.items():
        say(f"git config {name} = {value}")
    for note in notes(top):
        say(f"  note: {note}")
    say("Outputs stay on the screen and out of commits. Undo: runner setup-git --undo")


@click.command("clean-notebook", hidden=True)
def clean_notebook_command() -> None:
    """Read a notebook, write what a commit keeps of it; git calls this.

    \b
    Example:
      runner clean-notebook < notebooks/01_data.ipynb
    """
    sys.stdout.buffer.write(cleaned(sys.stdin.buffer.read()))


def repository(folder: Path) -> Path:
    """The top folder of the work tree that `folder` is in. Raises UsageError outside one, with git's reason."""
    try:
        return Path(_git(folder, "rev-parse", "--show-toplevel"))
    except UsageError as error:
        raise UsageError(
            f"{folder} is in no git repository: {error}. Go to the project's folder, or make it one with `git init`."
        ) from error


def settings() -> dict[str, str]:
    """git's filter and drivers. Without nbdime, git merges and shows cleaned JSON as text."""
    driver = f'sh "$(git rev-parse --git-common-dir)/hooks/{NAME}"'  # also where the clone was moved
    config = {
        f"filter.{NAME}.clean": f"{driver} clean",
        f"filter.{NAME}.smudge": "cat",
        f"filter.{NAME}.required": "true",  # a notebook that cannot be cleaned is not added
    }
    if _has_nbdime():
        config |= {
            f"merge.{NAME}.name": "notebooks, cell by cell",
            f"merge.{NAME}.driver": f"{driver} merge %O %A %B %L %P",
            f"diff.{NAME}.command": f"{driver} diff",
        }
    return config


def drivers() -> str:
    """The script behind these settings, for this environment."""
    words = {
        "PYTHON": shlex.quote(Path(sys.executable).as_posix()), "MERGE": _nbdime("mergedriver"),
        "DIFF": _nbdime("diffdriver"), "SECTIONS": " ".join(SECTIONS), "HOOKS": " ".join(HOOKS), "SCRIPT": SCRIPT,
        "ATTRIBUTES": ATTRIBUTES, "RULE": re.sub(r"[*.]", r"\\\g<0>", RULE), "NAME": NAME,
    }  # fmt: skip
    return re.sub(rf"\b({'|'.join(words)})\b", lambda match: words[match[0]], DRIVERS)


def watching(top: Path) -> dict[str, str]:
    """git's settings for asking what changed; {} where this clone has settings or hooks that conflict with them."""
    ours = _watch(top)
    taken = any(_config(top, name) not in ("", value) for name, value in ours.items())
    foreign = any(not _takes_a_line(_hook(top, name)) for name in HOOKS)
    return {} if taken or foreign or _git(top, "config", "core.hooksPath", check=False) else ours


def install(top: Path) -> bool:
    """Write the rule, the settings and the hooks; whether the rule is new."""
    watch = watching(top)
    _write(_hook(top, NAME), [drivers()], mode=0o755)
    _write(_hook(top, f"{NAME}.py"), [Path(strip_outputs.__file__).read_text(encoding="utf-8"), BY_HAND])
    if watch:
        _write(_hook(top, SCRIPT), [CHANGED_FILES], mode=0o755)
        for hook in (_hook(top, name) for name in HOOKS):
            first, *others = _lines(hook) or [SHELL]
            _write(hook, [first, REFRESH, *(line for line in others if line != REFRESH)], mode=0o755)
    for name, value in {**settings(), **watch}.items():
        _git(top, "config", "--local", "--replace-all", name, value)
    lines = _lines(top / ATTRIBUTES)
    is_new = RULE not in map(str.strip, lines)
    if is_new:
        _write(top / ATTRIBUTES, [*lines, RULE + "\n"])
    _accept_outputs(top)
    return is_new


def remove(top: Path) -> None:
    """Remove the rule, the settings and the hooks, and files that are empty then, unless git tracks them."""
    script = _hook(top, NAME)
    _write(script, [drivers()], mode=0o755)
    subprocess.run(["sh", script, "undo"], cwd=top, check=True, capture_output=True)


def notes(top: Path) -> Iterator[str]:
    """What is left to do or to know: a sentence for each."""
    if not _has_nbdime():
        yield "nbdime is not installed, so notebooks merge as text; `pip install nbdime`, then this once more."
    if not watching(top):
        yield (
            "this clone has its own core.fsmonitor, core.untrackedCache, core.hooksPath or a hook that is not a shell "
            "script, which stay. A notebook that was only executed then shows as modified; `git add -u` says it is not."
        )
    effective = _git(top, "check-attr", "filter", "--", "notebook.ipynb").split(": ")[-1]
    if effective != NAME:
        yield (
            f"another rule wins for notebooks: filter is {effective}. Look in .git/info/attributes and further down in "
            f"{ATTRIBUTES}."
        )
    if _git(top, "status", "--porcelain", "--", ATTRIBUTES):
        yield f"commit {ATTRIBUTES}; whoever clones the repository calls `runner setup-git` once."
    if dirty := ", ".join(uncleaned(top)):
        yield (
            f"committed with outputs or in another layout: {dirty}. Bring them in line with "
            "`git add --renormalize '*.ipynb'` and commit."
        )


def uncleaned(top: Path) -> Iterator[str]:
    """The notebooks in git's index, relative to `top`, that the filter would change; unmerged ones are left out."""
    for entry in _git(top, "ls-files", "--stage", "-z", "--", "*.ipynb").split("\0")[:-1]:
        fields, _, name = entry.partition("\t")
        _, blob, stage = fields.split()
        content = subprocess.run(["git", "-C", top, "cat-file", "blob", blob], capture_output=True, check=True).stdout
        if stage == "0" and cleaned(content) != content:
            yield name


def _accept_outputs(top: Path) -> None:
    """Make git see notebooks that were executed before as unchanged; stages nothing."""
    other_size = _git(top, "diff-files", "--name-only", "-z", "--", "*.ipynb").split("\0")[:-1]
    changed = _git(top, "diff", "--name-only", "--no-relative", "--no-ext-diff", "-z").split("\0")
    if same := [name for name in other_size if name not in changed]:
        _git(top, "--literal-pathspecs", "add", "--", *same)
    _git(top, "update-index", "-q", "--refresh", check=False)


def _watch(top: Path) -> dict[str, str]:
    return {
        "core.fsmonitor": shlex.quote(_hook(top, SCRIPT).as_posix()),
        "core.untrackedCache": "false",  # with it git would ask about new files too
    }


def _hook(top: Path, name: str) -> Path:
    return (top / _git(top, "rev-parse", "--git-common-dir") / "hooks" / name).absolute()


def _takes_a_line(hook: Path) -> bool:
    """Whether our line in it would run and change nothing else: no hook yet, or a shell script that git runs."""
    lines = _lines(hook)
    return not lines or (re.match(r"#!.*sh\b", lines[0]) is not None and os.access(hook, os.X_OK))


def _config(top: Path, name: str) -> str:
    """This clone's own value, "" where it has none."""
    return _git(top, "config", "--local", name, check=False)


def _has_nbdime() -> bool:
    return importlib.util.find_spec("nbdime") is not None


def _nbdime(driver: str) -> str:
    """Python that is nbdime's driver, quoted for a shell; without a grammar that jsonschema would build in 2.6 s."""
    leaner = "import sys; sys.modules['rfc3987_syntax'] = None"
    return shlex.quote(f"{leaner}; from nbdime.vcs.git.{driver} import main; sys.exit(main())")


def _lines(path: Path) -> list[str]:
    """The file's lines with their ends, the last one's too; [] where there is no file."""
    try:
        lines = path.read_bytes().decode("utf-8", "surrogateescape").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [line if line.endswith(("\n", "\r")) else f"{line}\n" for line in lines]


def _write(path: Path, lines: list[str], *, mode: int | None = None) -> None:
    """Write the lines, or remove the file where there are none."""
    if not lines:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("".join(lines).encode("utf-8", "surrogateescape"))
    if mode is not None:
        path.chmod(mode)


def _git(folder: Path, *arguments: str, check: bool = True) -> str:
    """What git prints, without the last line end. Raises UsageError with git's own last line where it fails."""
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise UsageError("git is not installed") from None
    if check and done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(lines[-1] if lines else f"git {arguments[0]} failed")
    return done.stdout.decode("utf-8", "surrogateescape").rstrip("\n")

"""What a notebook's code does that no step declares: databases, the web, the shell, questions, credentials.

A sentence for each; nothing of it is changed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from runner.adopt.source import CodeCell, Source
from runner.notebook.redaction import FORMS

SECRET_NAME = re.compile(r"(?i)(?:^|_)(?:password|passwd|pwd|secret|token|api_?key|access_?key|credentials?)(?:$|_)")
SHELL = re.compile(r"(?m)^\s*(?:[\w.,\[\]'\" ]+=\s*)?!\s*(?P<command>\S.*)$")
MAGIC = re.compile(r"(?m)^\s*%(?P<magic>run|cd|load|store|sql|pip|conda|env|set_env)\b(?P<rest>.*)$")
CELL_MAGIC = re.compile(r"\s*%%(?P<magic>\w+)")
PYTHON_CELLS = {"time", "timeit", "capture", "prun", "mprun", "memit", "debug"}
# the end of a call's dotted name -> what it does
CALLS = {
    "read_sql": "reads a database", "read_sql_query": "reads a database", "read_sql_table": "reads a database",
    "to_sql": "writes to a database", "create_engine": "opens a database", "read_gbq": "reads a database",
    "sqlite3.connect": "opens a database", "psycopg2.connect": "opens a database", "duckdb.connect": "opens a database",
    "MongoClient": "opens a database", "bigquery.Client": "opens a database",
    "requests.get": "asks the web", "requests.post": "asks the web", "urlopen": "asks the web",
    "urlretrieve": "fetches a file from the web", "urllib.request.urlretrieve": "fetches a file from the web",
    "wget.download": "fetches a file from the web", "fetch_openml": "fetches a table from the web",
    "fetch_california_housing": "fetches a table from the web", "fetch_20newsgroups": "fetches a table from the web",
    "sns.load_dataset": "fetches a table from the web", "seaborn.load_dataset": "fetches a table from the web",
    "load_dataset": "fetches a table from the web", "from_pretrained": "may fetch a model from the web",
    "boto3.client": "asks AWS", "boto3.resource": "asks AWS", "storage.Client": "asks Google Cloud",
    "input": "asks whoever runs it, and nobody is there", "getpass": "asks whoever runs it, and nobody is there",
    "getpass.getpass": "asks whoever runs it, and nobody is there",
    "os.chdir": "changes the folder, so that its paths lead elsewhere",
    "glob.glob": "lists a folder", "glob": "lists a folder", "rglob": "lists a folder", "iglob": "lists a folder",
    "os.listdir": "lists a folder", "os.walk": "lists a folder", "os.scandir": "lists a folder",
    "iterdir": "lists a folder", "flow_from_directory": "reads a folder", "ImageFolder": "reads a folder",
    "image_dataset_from_directory": "reads a folder",
    "os.system": "runs a program", "subprocess.run": "runs a program", "subprocess.Popen": "runs a program",
    "subprocess.check_output": "runs a program", "subprocess.call": "runs a program",
    "shutil.copy": "copies files", "shutil.copyfile": "copies files", "shutil.move": "moves files",
    "os.rename": "moves files", "os.remove": "deletes files", "os.unlink": "deletes files",
    "shutil.rmtree": "deletes files", "exec": "runs code that it makes", "eval": "runs code that it makes",
}  # fmt: skip


@dataclass(frozen=True)
class Unseen:
    """One thing, with the cell it is in."""

    cell: CodeCell
    sentence: str


def unseen(source: Source) -> Iterator[Unseen]:
    """What adopting cannot see or must not decide, in the order of the code; equal ones of a cell once."""
    for cell in source.cells:
        sentences = [*_magics(cell), *_credentials(cell)]
        for node in ast.walk(cell.tree):
            sentences += [f"`{ast.unparse(node.func)}` {what}." for what in _calls(node) if isinstance(node, ast.Call)]
        yield from (Unseen(cell, sentence) for sentence in dict.fromkeys(sentences))


def secret_name(name: str, value: object) -> bool:
    """Whether the name says that its text lets one in."""
    return isinstance(value, str) and bool(value) and SECRET_NAME.search(name) is not None


def has_credential(text: str) -> bool:
    return any(form.search(text) for form in FORMS.values())


def _magics(cell: CodeCell) -> Iterator[str]:
    source = cell.cell.source
    if (match := CELL_MAGIC.match(source)) is not None and match["magic"] not in PYTHON_CELLS:
        yield f"is a %%{match['magic']} cell, whose text is not read as Python."
        return
    for match in SHELL.finditer(source):
        yield f"runs `{match['command'][:60]}` in a shell; what it reads, writes and installs is not seen."
    for match in MAGIC.finditer(source):
        yield f"has `%{match['magic']}{match['rest'][:60].rstrip()}`; what it does is not seen."


def _credentials(cell: CodeCell) -> Iterator[str]:
    advice = "Take it out, declare it `# secret` in the parameters cell, and change it if it was real."
    for kind, form in FORMS.items():
        if form.search(cell.cell.source):
            yield f"has what looks like a credential ({kind}). {advice}"
    for node in ast.walk(cell.tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                if secret_name(name, value):
                    yield f"gives `{name}` a value in the clear. {advice}"
            case ast.keyword(arg=str(name), value=ast.Constant(value=value)):
                if secret_name(name, value):
                    yield f"hands over `{name}` in the clear. {advice}"


def _calls(node: ast.AST) -> Iterator[str]:
    if not isinstance(node, ast.Call):
        return
    dotted = ast.unparse(node.func) if isinstance(node.func, ast.Attribute | ast.Name) else ""
    parts = dotted.split(".")
    for name in dict.fromkeys((".".join(parts[-2:]), parts[-1])):
        # `model.eval()`, `df.eval("a + b")` and `p.input` are methods of something else
        if name in CALLS and not (len(parts) > 1 and name in ("eval", "exec", "input")):
            yield CALLS[name]
            return

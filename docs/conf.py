"""How the pages are built: `make docs`. What stands in code is taken from there by `_extensions/reference.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import runner

project = "runner"
copyright = "the authors of runner; Apache 2.0"
release = version = runner.__version__
html_title = f"runner {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "reference"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_extensions"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
# `…` in examples of JSON and TOML
suppress_warnings = ["misc.highlighting_failure"]

smartquotes = False  # of `--option` they would make a dash
default_role = "literal"  # what docstrings put between single backticks
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sourcelink = False

# pages that are files beside docs/, where GitHub looks for them
BESIDE = {"../SECURITY.md": "security.md", "../CHANGELOG.md": "changelog.md", "../CONTRIBUTING.md": "contributing.md"}


def link_to_pages(_app: Any, name: str, text: list[str]) -> None:
    for file, page in BESIDE.items():
        depth = "../" * name.count("/")
        text[0] = text[0].replace(f"]({depth}{file}", f"]({depth}{page}")


def show_examples(_app: Any, _context: Any, lines: list[str]) -> None:
    """The examples of a command's help as a terminal shows them, instead of lines of prose."""
    if "| Example:" in lines:
        start = lines.index("| Example:")
        lines[start:] = [
            ".. code-block:: text",
            "",
            *(f"   {line.removeprefix('|').strip()}" for line in lines[start + 1 :]),
            "",
        ]


def setup(app: Any) -> None:
    app.connect("source-read", link_to_pages)
    app.connect("sphinx-click-process-description", show_examples)

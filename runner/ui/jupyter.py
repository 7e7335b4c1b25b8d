"""The pages inside JupyterLab: the tile of its launcher, and where pages and notebooks are from a terminal there.

jupyter-server-proxy calls `tile` in Jupyter's own process, so this imports the standard library alone. It starts
`runner ui --socket`, whose socket lies in a folder that no other account enters; Jupyter has let in whoever comes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

NAME = "runner"  # in addresses, of the tile and of its configuration
ICON = Path(__file__).parent / "static" / "tile.svg"
STUDIO = Path("/opt/ml/metadata/resource-metadata.json")  # of a space of SageMaker Studio
START_S = 60  # of the pages, on a machine that has just started
CONFIGURATION = Path("jupyter_server_config.d", f"{NAME}-pages.json")


def tile() -> dict[str, Any]:
    """What jupyter-server-proxy starts, and how it looks; the entry point `jupyter_serverproxy_servers`."""
    return {
        "command": [sys.executable, "-P", "-m", "runner", "ui", "--socket", "{unix_socket}"],
        "unix_socket": True,
        "timeout": START_S,
        "new_browser_tab": False,
        "launcher_entry": {"title": "Runs and models", "icon_path": str(ICON), "category": "Other"},
    }


def configure() -> Path:
    """Give a JupyterLab of this account that is installed elsewhere the tile, from its next start; the file that does.

    Where this package is installed beside JupyterLab, the tile is there by itself.
    """
    path = _configuration()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"ServerProxy": {"servers": {NAME: tile()}}}, indent=1)
    path.write_text(content + "\n", encoding="utf-8")
    return path


def page_address(project: Path, *page: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The address of a page of the project in the JupyterLab whose terminal this is.

    None elsewhere, and where JupyterLab has no tile.
    """
    base = environment.get("JUPYTER_SERVER_URL")
    if not base or not (_is_installed_beside() or _configuration().is_file()):
        return None
    return _below(base, NAME, project.absolute().name, *page, "")


def notebook_address(notebook: Path, environment: Mapping[str, str] = os.environ) -> str | None:
    """Where the JupyterLab whose terminal this is opens the notebook; None elsewhere, or where it does not reach it."""
    base, root = environment.get("JUPYTER_SERVER_URL"), environment.get("JUPYTER_SERVER_ROOT")
    if not base or not root:
        return None
    try:
        parts = notebook.resolve().relative_to(Path(root).expanduser().resolve()).parts
    except ValueError:
        return None
    return None if any(part.startswith(".") for part in parts) else _below(base, "lab", "tree", *parts)


def _is_installed_beside() -> bool:
    """Whether this package is in Jupyter's own environment; Studio's Jupyter has one of its own."""
    return importlib.util.find_spec("jupyter_server_proxy") is not None and not STUDIO.exists()


def _below(base: str, *parts: str) -> str:
    """In Studio only the path: Jupyter does not know the name under which a browser reaches it there."""
    path = "/".join(quote(part, safe="") for part in parts)
    server, _, prefix = base.partition("://")[2].partition("/")
    origin = "" if STUDIO.exists() else f"{base.partition('://')[0]}://{server}"
    return f"{origin}/{prefix.strip('/')}/{path}" if prefix.strip("/") else f"{origin}/{path}"


def _configuration() -> Path:
    return Path(os.environ.get("JUPYTER_CONFIG_DIR") or Path.home() / ".jupyter") / CONFIGURATION

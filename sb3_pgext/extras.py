"""The optional extras: how one that is missing is installed, wherever sb3-pgext itself came from."""

import json
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

__all__ = ["installing"]


def installing(extra: str) -> str:
    """
    Say which command adds an extra to this installation, from an index, a checkout, a file or a repository.

    :param extra: its name in ``pyproject.toml``
    :return: the command
    """
    checkout = Path(__file__).parents[1]
    if (checkout / "pyproject.toml").is_file():
        return f'pip install -e "{checkout}[{extra}]"'
    origin = json.loads(distribution("sb3-pgext").read_text("direct_url.json") or "{}")
    if "vcs_info" in origin:
        return f'pip install "sb3-pgext[{extra}] @ {origin["vcs_info"]["vcs"]}+{origin["url"]}"'
    file = url2pathname(urlsplit(origin.get("url", "")).path)
    return f'pip install "{file if Path(file).is_file() else "sb3-pgext"}[{extra}]"'

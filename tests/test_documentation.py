"""Claim: the snippets of README and of each page run, and their commands and the targets of their links exist."""

import re
import shlex
from pathlib import Path

import pytest

from sb3_pgext.cli import _parser

_ROOT = Path(__file__).parents[1]
_PAGES = {
    path.relative_to(_ROOT).as_posix(): path for path in [_ROOT / "README.md", *sorted(_ROOT.glob("docs/**/*.md"))]
}
_SHORTER = [
    (r"\.learn\([\d_]+", ".learn(200"),
    (r", compile=True", ""),
    (r"200_000 - model", "400 - model"),
    (r"n_batches=200", "n_batches=4"),
    (r"n_episodes=200", "n_episodes=4"),
    (r"learning_starts=1_000", "learning_starts=100"),
    (r'"CartPole-v1", num_envs=256', '"CartPole-v1", num_envs=4'),
]


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", _PAGES[page].read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in _PAGES if _blocks(page, "python")])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_snippets_run(page: str, tmp_path: Path, monkeypatch, capsys) -> None:
    if "EnvPoolVecEnv(" in _PAGES[page].read_text():
        pytest.importorskip("envpool")
        pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(_blocks(page, "python"))
    for long, short in _SHORTER:
        code = re.sub(long, short, code)
    code, error, _ = code.partition("  # ValueError: ")
    names: dict[str, object] = {"__name__": page}
    if not error:
        exec(code, names)
        return
    with pytest.raises(ValueError, match=re.escape(_blocks(page, "python")[0].rpartition("ValueError: ")[2].strip())):
        exec(code, names)


@pytest.mark.parametrize("page", [page for page in _PAGES if "\nsb3-pgext " in _PAGES[page].read_text()])
def test_commands_exist(page: str) -> None:
    for block in _blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["sb3-pgext"]:
                arguments, rest = _parser().parse_known_args(words[1:])
                assert not rest or arguments.command in ("train", "enjoy", "record-video")


@pytest.mark.parametrize("page", _PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", _PAGES[page].read_text()):
        assert (_PAGES[page].parent / target).exists(), target

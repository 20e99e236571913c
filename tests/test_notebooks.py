"""Claim: the notebooks run, and are committed with their outputs."""

import json
import re
from pathlib import Path

import pytest

_NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells), "run it: jupyter nbconvert --execute --inplace"
    assert any(cell["outputs"] for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells)
    # Some budgets count steps, the others batches.
    code = re.sub(r"^(STEPS) = [\d_]+  # budget", r"\1 = 600", code, flags=re.MULTILINE)
    code = re.sub(r"^(BATCHES) = [\d_]+  # budget", r"\1 = 6", code, flags=re.MULTILINE)
    code = re.sub(r"from IPython.*", "", code, flags=re.DOTALL)  # from there on, pictures are shown
    exec(code, {"__name__": path.stem})
    assert capsys.readouterr().out

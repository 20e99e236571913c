"""Claim: an agent that is put into a folder, or on the Hub, plays the same when it is loaded, without running code."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from sb3_pgext import load
from sb3_pgext.cli import main

_SHORT = ["-n", "300", "--eval-freq", "-1", "--device", "cpu", "--seed", "3"]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> Path:
    """The folder of an agent whose observations are normalized, beside its training."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        params = ["-params", "normalize:True", "policy_kwargs:dict(activation_fn=nn.ReLU,net_arch=[16])"]
        assert main(["train", *_SHORT, *params]) == 0
        assert main(["push-to-hub", "logs/reinforce/CartPole-v1_1", "--to-folder", "agent", "--episodes", "3"]) == 0
    return folder / "agent"


def test_the_agent_plays_the_same(pushed: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["load-from-hub", str(pushed)]) == 0
    results = json.loads((pushed / "results.json").read_text())
    assert len(results["returns"]) == 3
    assert results["low"] <= results["mean"] <= results["high"]
    said = f"return: {results['mean']:.2f} [{results['low']:.2f}, {results['high']:.2f}] over 3 episodes"
    assert said in capsys.readouterr().out
    assert load("hub/agent/model").policy.state_dict().keys()


def test_nothing_in_the_folder_is_a_pickle_or_a_path_of_the_machine(pushed: Path) -> None:
    names = {path.relative_to(pushed).as_posix() for path in pushed.rglob("*") if path.is_file()}
    model = {f"model/{name}" for name in ("manifest.json", "model.json", "tensors.safetensors")}
    assert names == {"README.md", "replay.mp4", "results.json", "settings/args.yml", "settings/config.yml", *model}
    for name in names - {"replay.mp4", "model/tensors.safetensors"}:
        assert str(pushed.parent) not in (pushed / name).read_text()
    assert (pushed / "replay.mp4").stat().st_size > 0


def test_the_card_has_what_the_hub_and_people_look_for(pushed: Path) -> None:
    _, head, body = (pushed / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["license"] == "mit"
    assert {"CartPole-v1", "sb3-pgext", "reinforcement-learning"} <= set(head["tags"])
    (entry,) = head["model-index"]
    assert entry["name"] == "REINFORCE"
    (result,) = entry["results"]
    mean = json.loads((pushed / "results.json").read_text())["mean"]
    assert result["metrics"][0]["value"].startswith(f"{mean:.2f} +/- ")
    for text in (
        f"**Return: {mean:.2f} [",
        f"trained on CartPole-v1 for {load(pushed / 'model').num_timesteps:,} steps.",  # not the configuration's
        "replay.mp4",
        "n_episodes:",
        "stable-baselines3 | ",
        "activation.ReLU",
    ):
        assert text in body


def test_an_upload_is_that_folder(pushed: Path, tmp_path: Path, monkeypatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    uploaded = {}

    class Api:
        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
            uploaded["repo"] = repo_id, private, exist_ok

        def upload_folder(self, repo_id: str, folder_path: Path) -> None:
            uploaded["names"] = {path.name for path in folder_path.iterdir()}
            uploaded["card"] = (folder_path / "README.md").read_text()

    monkeypatch.setattr(hub, "HfApi", Api)
    run = str(pushed.parent / "logs/reinforce/CartPole-v1_1")
    flags = ["--episodes", "2", "--license", "cc-by-4.0", "--private"]
    assert main(["push-to-hub", run, "--repo-id", "me/agent", *flags]) == 0
    assert uploaded["repo"] == ("me/agent", True, True)
    assert uploaded["names"] == {"README.md", "model", "replay.mp4", "results.json", "settings"}
    assert "license: cc-by-4.0" in uploaded["card"]
    assert "sb3-pgext load-from-hub me/agent" in uploaded["card"]

    def download(repo_id: str, local_dir: Path) -> None:
        assert repo_id == "me/agent"
        shutil.copytree(pushed, local_dir)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert main(["load-from-hub", "me/agent", "--out", str(tmp_path / "got"), "--episodes", "2"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["push-to-hub", "logs"], "repo_id=None: allowed is user/name, unless there is a to_folder"),
        (
            ["push-to-hub", "logs", "--to-folder", "there"],
            "to_folder='there': allowed is a folder that is not there yet",
        ),
        (["push-to-hub", "logs", "--to-folder", "new"], "logs: allowed is the folder of a run"),
        (["push-to-hub", "logs", "--to-folder", "new", "--episodes", "1"], "episodes=1: allowed is"),
        (["load-from-hub", "there", "--out", "there"], "out='there': allowed is a folder that is not there yet"),
        (["load-from-hub", "there"], "hub/there: allowed is the folder of a run"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_training_without_checkpoints_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--algo", "a2c", *_SHORT[:-2], "--verbose", "0"]) == 0
    assert main(["push-to-hub", "logs/a2c/CartPole-v1_1", "--to-folder", "agent"]) == 2
    assert "allowed is a training that wrote checkpoints" in capsys.readouterr().err

"""Claim: a file that has been changed is refused by its name, and nothing that a stranger has written is run."""

import hashlib
import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_pgext import ISPG, REINFORCE, VPG, CheckpointCallback, ClippedCriticPPO, has_checkpoint, load, resume, save
from sb3_pgext.checkpoints import files
from sb3_pgext.checkpoints.encoding import CLASSES
from tests.checkpoints.models import assert_same, small

pytestmark = pytest.mark.filterwarnings("ignore:the episodes restart")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_changed_files(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["corruption.py", "--files", "60"])
    runpy.run_path(str(BENCHMARKS / "corruption.py"), run_name="__main__")
    assert "60 of 60" in capsys.readouterr().out


def test_killed_processes(tmp_path):
    command = [sys.executable, BENCHMARKS / "kill.py", "--kills", "3", "--updates", "10"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "killed 3 times" in ran.stdout


@pytest.fixture
def checkpoint(tmp_path):
    """A stranger's: of another key than that of this user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path / "stranger"))
        save(small(ISPG).learn(300), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def rewritten(checkpoint, name, content):
    """The same with another content of a file, and checksums that fit: a stranger can compute them too."""
    contents = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != files.MANIFEST}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(checkpoint.parent / "stranger"))
        files.write(checkpoint.with_name("rewritten"), {**contents, name: content})
    return checkpoint.with_name("rewritten")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", [files.MODEL, files.TENSORS, files.CUSTOM, files.ENVIRONMENT, files.MANIFEST])
def test_a_pickle_in_any_file_is_not_opened(name, checkpoint):
    run = checkpoint.parent / "has run"
    content = pickle.dumps(Malicious(run))
    if name == files.MANIFEST:
        path = checkpoint
        (path / name).write_bytes(content)
    else:
        path = rewritten(checkpoint, name, content)
    env = small(VPG).get_env()
    for function in (load, resume):
        if name in (files.CUSTOM, files.ENVIRONMENT):  # there is a model beside it
            function(path, env=env)
        else:
            with pytest.raises(ValueError, match=rf"{path}.*({name}|{files.MODEL})"):
                function(path, env=env)
    assert not run.exists()
    if name in (files.CUSTOM, files.ENVIRONMENT):
        resume(path, env=env, trust=True)
        assert run.exists(), "the pickle is one that does something"


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("policy_kwargs", {"activation_fn": {"is": "class", "of": "os.system"}}),
        ("policy_kwargs", {"activation_fn": {"is": "class", "of": "subprocess.Popen"}}),
        ("policy_class", {"is": "class", "of": "sb3_pgext.zoo.train"}),
        # Its constructor would import the module that it finds in `env`.
        ("policy_class", {"is": "class", "of": "stable_baselines3.ppo.ppo.PPO"}),
        ("learning_rate", {"is": "record", "of": "subprocess.Popen", "attributes": {"args": "true"}}),
        ("learning_rate", {"is": "record", "of": "stable_baselines3.common.utils.ConstantSchedule", "attributes": {}}),
        ("learning_rate", {"is": "code", "of": "print()"}),
        ("learning_rate", {"is": "class"}),
        ("learning_rate", {"is": "tensor", "of": "nothing"}),
        ("observation_space", {"is": "made", "of": "__import__", "arguments": ["antigravity"]}),
        ("observation_space", {"is": "made", "of": "Discrete", "arguments": [10**30, None, 0]}),
        ("observation_space", {"is": "made", "of": "Discrete", "arguments": [-1, None, 0]}),
        ("ep_info_buffer", {"is": "made", "of": "deque", "arguments": [[], 10**30]}),
        ("baseline", {"is": "custom", "of": "attributes/baseline", "type": "somebody.Baseline"}),
        ("predict", "a method"),
        ("n_episodes", "many"),
        ("n_episodes", None),
    ],
)
def test_what_is_in_no_schema_is_refused(entry, value, checkpoint):
    state = json.loads((checkpoint / files.MODEL).read_text())
    state["attributes"][entry] = value
    path = rewritten(checkpoint, files.MODEL, json.dumps(state).encode())
    for function in (load, resume):
        with pytest.raises(ValueError, match=str(path)):
            function(path, env=small(VPG).get_env())


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"[" * 100_000, b'{"attributes": 1}', b"\xff"])
def test_a_model_that_is_none_is_refused(content, checkpoint):
    with pytest.raises(ValueError, match=str(checkpoint.parent)):
        load(rewritten(checkpoint, files.MODEL, content))


def test_tensors_of_other_shapes_are_refused(checkpoint):
    tensors = safetensors.torch.load_file(checkpoint / files.TENSORS)
    tensors["state_dicts/policy/action_net.weight"] = th.zeros(3)
    path = rewritten(checkpoint, files.TENSORS, safetensors.torch.save(tensors))
    with pytest.raises(ValueError, match=r"action_net\.weight"):
        load(path)


@pytest.mark.parametrize(
    "change", [lambda text: text.replace("\n", "\r"), lambda text: text.replace('"signature": "', '"signature": "0')]
)
def test_no_byte_of_the_manifest_can_be_changed_unseen(change, checkpoint):
    path = checkpoint / files.MANIFEST
    path.write_bytes(change(path.read_text()).encode())
    json.loads(path.read_bytes())
    with pytest.raises(ValueError, match=r"manifest\.json is torn or altered"):
        load(checkpoint)


def test_files_outside_the_checkpoint_are_not_read(checkpoint):
    (checkpoint.parent / "outside").write_bytes(b"{}")
    manifest = json.loads((checkpoint / files.MANIFEST).read_text())
    del manifest["sha256"]
    manifest["files"]["../outside"] = hashlib.sha256(b"{}").hexdigest()
    (checkpoint / files.MANIFEST).write_bytes(files._sealed(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json is torn or altered"):
        load(checkpoint)


class Extractor(FlattenExtractor):
    """The user's own."""


def test_custom_classes_need_trust_and_are_named(tmp_path):
    policy_kwargs = {"features_extractor_class": Extractor, "activation_fn": nn.ELU, "optimizer_class": th.optim.SGD}
    policy_kwargs["optimizer_kwargs"] = {"momentum": 0.5}
    model = small(VPG, policy_kwargs=policy_kwargs)
    model.learn(300, callback=CheckpointCallback(100, tmp_path))
    entry = r"attributes/policy_kwargs/features_extractor_class \(tests.checkpoints.test_safety.Extractor\) is pickled"
    with pytest.raises(ValueError, match=entry):
        load(tmp_path)
    with pytest.raises(ValueError, match=entry):
        resume(tmp_path, env=model.env, trust=False)
    assert isinstance(load(tmp_path, trust=True).policy.features_extractor, Extractor)
    assert_same(model, resume(tmp_path))  # which this user has written


def test_known_classes_need_no_trust(tmp_path):
    policy_kwargs = {"activation_fn": nn.ELU, "optimizer_class": th.optim.AdamW, "net_arch": {"pi": [8], "vf": [4]}}
    model = small(ClippedCriticPPO, policy_kwargs=policy_kwargs, clip_range_vf=lambda progress: 0.1)
    save(model, tmp_path / "schedule")
    with pytest.raises(ValueError, match="attributes/clip_range_vf/value_schedule"):
        load(tmp_path / "schedule")
    save(small(ClippedCriticPPO, policy_kwargs=policy_kwargs), tmp_path / "plain")
    assert not (tmp_path / "plain" / files.CUSTOM).exists()
    load(tmp_path / "plain")
    assert {"torch.nn.modules.activation.Tanh", "torch.optim.adam.Adam"} <= CLASSES.keys()


def test_a_stranger_does_not_say_where_logs_are_written(checkpoint):
    state = json.loads((checkpoint / files.MODEL).read_text())
    elsewhere = checkpoint.parent / "elsewhere"
    state["attributes"]["tensorboard_log"] = str(elsewhere)
    path = rewritten(checkpoint, files.MODEL, json.dumps(state).encode())
    for function in (load, resume):
        function(path, env=small(VPG).get_env()).learn(64, reset_num_timesteps=False)
        assert not elsewhere.exists()
    assert load(path, trust=True).tensorboard_log == resume(path, trust=True).tensorboard_log == str(elsewhere)


def test_a_path_needs_no_trust(tmp_path):
    model = small(VPG, tensorboard_log=tmp_path / "logs")
    save(model, tmp_path / "checkpoint")
    assert load(tmp_path / "checkpoint").tensorboard_log is None
    assert load(tmp_path / "checkpoint", trust=True).tensorboard_log == tmp_path / "logs"


def test_a_replay_buffer_is_of_a_class_of_sb3(tmp_path):
    save(SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu"), tmp_path / "checkpoint")
    state = json.loads((tmp_path / "checkpoint" / files.MODEL).read_text())
    state["replay_buffer"]["class"] = {"is": "class", "of": "torch.nn.modules.activation.Tanh"}
    with pytest.raises(ValueError, match=r"replay_buffer/class=.*Tanh.*: allowed is one of"):
        load(rewritten(tmp_path / "checkpoint", files.MODEL, json.dumps(state).encode()))


def test_the_environment_of_a_stranger_is_not_opened(checkpoint):
    with pytest.raises(ValueError, match=r"env=None.*may be opened with trust=True only"):
        resume(checkpoint)
    env = small(ISPG).get_env()
    with pytest.warns(UserWarning, match=r"the episodes restart.*may be opened with trust=True only"):
        resume(checkpoint, env=env).learn(100, reset_num_timesteps=False)
    assert resume(checkpoint, trust=True).get_env() is not None


def test_where_no_key_can_be_kept_nothing_is_signed(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    save(small(VPG).learn(100), tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="may be opened with trust=True only"):
        resume(tmp_path / "checkpoint")


def test_the_key_is_for_nobody_else(tmp_path):
    save(small(VPG), tmp_path / "checkpoint")
    key = Path(os.environ["XDG_CONFIG_HOME"]) / "sb3-pgext" / "key"
    assert len(key.read_bytes()) == 32
    assert key.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such modes")
def test_a_key_that_others_could_know_signs_nothing(tmp_path):
    save(small(VPG), tmp_path / "before")
    key = Path(os.environ["XDG_CONFIG_HOME"]) / "sb3-pgext" / "key"
    secret = key.read_bytes()
    try:
        for content, mode in ((b"", 0o600), (secret[:31], 0o600), (secret, 0o640), (secret, 0o604)):
            key.write_bytes(content)
            key.chmod(mode)
            assert not files.read(tmp_path / "before").own
            assert files._signature({}) is None
    finally:
        key.write_bytes(secret)
        key.chmod(0o600)
    assert files.read(tmp_path / "before").own


def test_without_a_home_directory_nothing_is_signed(tmp_path, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    save(small(VPG), tmp_path / "checkpoint")
    assert not files.read(tmp_path / "checkpoint").own


def test_the_key_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    fsync, link = os.fsync, os.link
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "link", lambda *paths: (done.append("link"), link(*paths)))
    assert files._own_key() is not None
    assert done[:2] == ["fsync", "link"]


@pytest.mark.parametrize("manifest", [{"files": ["model.json"]}, {"files": "all"}, {"signature": "ä"}])
def test_a_manifest_of_another_shape_does_not_stop_the_one_before(manifest, tmp_path):
    small(VPG).learn(200, callback=CheckpointCallback(100, tmp_path))
    last, before, *_ = files.found(tmp_path)
    sealed = json.loads((last / files.MANIFEST).read_text())
    del sealed["sha256"]
    (last / files.MANIFEST).write_bytes(files._sealed(sealed | manifest))
    if "signature" in manifest:
        assert not files.read(last).own
        return
    with pytest.warns(UserWarning, match=r"manifest\.json is torn or altered.*: the checkpoint before it"):
        assert load(tmp_path).num_timesteps == files.num_timesteps_at(before)


def test_the_one_before_is_taken_with_a_warning(tmp_path):
    small(VPG).learn(500, callback=CheckpointCallback(100, tmp_path))
    last, before, *_ = files.found(tmp_path)
    (last / files.ENVIRONMENT).write_bytes(b"")
    with pytest.warns(UserWarning, match=f"{last / files.ENVIRONMENT} is torn or altered.*: the checkpoint before it"):
        assert load(tmp_path).num_timesteps == files.num_timesteps_at(before)
    with pytest.raises(ValueError, match=r"environment\.pkl is torn or altered"):
        load(last)


def test_none_is_left(tmp_path):
    small(VPG).learn(1, callback=CheckpointCallback(100, tmp_path))
    for path in files.found(tmp_path):
        (path / files.MANIFEST).unlink()
    with (
        pytest.raises(ValueError, match="none of its 2 checkpoints is good"),
        pytest.warns(UserWarning, match=r"manifest\.json is missing"),
    ):
        resume(tmp_path)


def test_where_there_is_nothing(tmp_path):
    with pytest.raises(ValueError, match="allowed is a checkpoint, or a folder of checkpoints"):
        resume(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"manifest\.json is missing"):
        resume(tmp_path)


def test_whether_there_is_a_checkpoint(tmp_path):
    """Not where a process was killed while it wrote the first one: that folder has been made all the same."""
    folder = tmp_path / "checkpoints"
    assert not has_checkpoint(folder)
    (folder / ".writing-0").mkdir(parents=True)
    assert not has_checkpoint(folder)
    small(VPG).learn(1, callback=CheckpointCallback(100, folder))
    assert has_checkpoint(folder)
    last, first = files.found(folder)
    assert has_checkpoint(last)
    (last / files.MODEL).write_text("{}")
    assert not has_checkpoint(last)
    assert has_checkpoint(str(folder))
    (first / files.MODEL).write_text("{}")
    assert not has_checkpoint(folder)


def test_a_version_to_come_is_refused(checkpoint, monkeypatch):
    monkeypatch.setitem(files.FORMAT, "version", 2)
    path = rewritten(checkpoint, files.MODEL, (checkpoint / files.MODEL).read_bytes())
    monkeypatch.setitem(files.FORMAT, "version", 1)
    with pytest.raises(ValueError, match="version=2: allowed is 1"):
        load(path)


def test_sb3s_own_files_are_as_they_were(tmp_path):
    model = small(REINFORCE).learn(100)
    model.save(tmp_path / "model")
    other = REINFORCE.load(tmp_path / "model", device="cpu")
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(tensor, other.policy.state_dict()[name])

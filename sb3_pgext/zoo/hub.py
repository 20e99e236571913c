"""``sb3-pgext push-to-hub`` and ``load-from-hub``: trained agents as folders that open without running code."""

import json
import platform
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import yaml
from rl_zoo3 import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_pgext.arguments import require, require_count
from sb3_pgext.checkpoints import files, load
from sb3_pgext.checkpoints.saving import contents
from sb3_pgext.zoo.experiments import experiment
from sb3_pgext.zoo.names import import_environments
from sb3_pgext.zoo.saved_runs import plain_yaml, read_run
from sb3_pgext.zoo.trainings import checkpoints_folder
from sb3_pgext.zoo.versions import VERSIONS

__all__ = ["Played", "load_from_hub", "push_to_hub"]

_CARD = Path(__file__).with_name("card.md")
_MODEL, _SETTINGS, _RESULTS, _FILM = "model", "settings", "results.json", "replay.mp4"
_KEPT = ("algo", "env", "env_kwargs", "seed", "n_timesteps")
"""Arguments of a training that say something to others; the rest are paths and flags of one machine."""
_SEED = 2**31
"""Of the episodes that are played for the card; no training begins there."""
_MOST_ENVS, _MOST_FRAMES, _RESAMPLES = 10, 1000, 10_000


class Played(NamedTuple):
    """
    Returns of an agent.

    :param returns: of the episodes, in the order in which they ended
    :param mean: their mean
    :param low: lower end of its 95 % bootstrap interval
    :param high: upper end
    """

    returns: list[float]
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}] over {len(self.returns)} episodes"


def push_to_hub(
    run: Path,
    repo_id: str | None = None,
    to_folder: Path | None = None,
    episodes: int = 20,
    license_id: str = "mit",
    private: bool = False,
    gym_packages: Sequence[str] = (),
) -> Played:
    """
    Write the latest checkpoint of a training, its configuration, a film and a model card, and upload them.

    :param run: folder of a training of ``sb3-pgext train``
    :param repo_id: ``user/name`` on the Hugging Face Hub; None to upload nothing
    :param to_folder: a new folder for the files; None for a temporary one
    :param episodes: to play for the card
    :param license_id: licence of the agent, as the Hub spells it
    :param private: whether a repository that is made is private
    :param gym_packages: modules that register the environment
    :return: the returns of the episodes
    :raises ValueError: the run wrote no checkpoints or needs code to be opened, or there is nowhere to write
    """
    require_count("episodes", episodes, at_least=2)
    require(repo_id is not None or to_folder is not None, "repo_id", repo_id, "user/name, unless there is a to_folder")
    require(to_folder is None or not to_folder.exists(), "to_folder", str(to_folder), "a folder that is not there yet")
    import_environments(gym_packages)
    config, args = read_run(run)
    require("checkpoint_every" in args, "run", str(run), "a training that wrote checkpoints, which ours do")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "agent" if to_folder is None else to_folder
        (folder / _SETTINGS).mkdir(parents=True)
        written_config = plain_yaml(next(run.glob("*/config.yml")))
        for name, content in (("config", written_config), ("args", {key: args.get(key) for key in _KEPT})):
            (folder / _SETTINGS / f"{name}.yml").write_text(_yaml(content))
        model, played = _played(config, args, checkpoints_folder(run), episodes)
        model.replay_buffer = None  # type: ignore[attr-defined]
        with warnings.catch_warnings():  # of an environment that cannot be pickled: none is
            warnings.simplefilter("ignore")
            written = contents(model)
        written.pop(files.ENVIRONMENT, None)
        files.write(folder / _MODEL, written)
        filmed = _film(model, config, args, folder / _FILM)
        (folder / _RESULTS).write_text(json.dumps(played._asdict(), indent=1))
        (folder / "README.md").write_text(_card(written_config, args, model, played, filmed, license_id, repo_id))
        if repo_id is not None:
            from huggingface_hub import HfApi

            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder)
    return played


def load_from_hub(
    source: str, out: Path | None = None, episodes: int | None = None, gym_packages: Sequence[str] = ()
) -> Played:
    """
    Get an agent and play it. Nothing of it is run but its parameters: ``sb3_pgext.load(out / "model")`` opens it.

    :param source: ``user/name`` on the Hugging Face Hub, or a folder that :func:`push_to_hub` has written
    :param out: a new folder for the files; default: ``hub/<name>``
    :param episodes: to play; None for as many as stand in its card, which are played again
    :param gym_packages: modules that register the environment
    :return: the returns of the episodes
    :raises ValueError: there is something already, or what was got is no agent or needs code to be opened
    """
    out = out or Path("hub") / Path(source).name
    require(not out.exists(), "out", str(out), "a folder that is not there yet")
    import_environments(gym_packages)
    if Path(source).is_dir():
        shutil.copytree(source, out)
    else:
        from huggingface_hub import snapshot_download

        snapshot_download(source, local_dir=out)
    config, args = read_run(out)
    if episodes is None:
        episodes = len(json.loads((out / _RESULTS).read_text())["returns"])
    require_count("episodes", episodes, at_least=2)
    return _played(config, args, out / _MODEL, episodes)[1]


def _played(config: Mapping[str, Any], args: Mapping[str, Any], path: Path, n: int) -> tuple[BaseAlgorithm, Played]:
    """Load an agent, and play episodes with its mode actions."""
    env = _env(config, args, min(n, _MOST_ENVS))
    model = load(path, env, device="cpu")
    assert model.env is not None
    if normalizer := model.get_vec_normalize_env():
        normalizer.training = normalizer.norm_reward = False
    model.env.seed(_SEED)
    returns, _ = evaluate_policy(model, model.env, n, return_episode_rewards=True)
    env.close()
    assert isinstance(returns, list)
    means = np.random.default_rng(0).choice(returns, (_RESAMPLES, n)).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return model, Played([float(x) for x in returns], float(np.mean(returns)), float(low), float(high))


def _env(config: Mapping[str, Any], args: Mapping[str, Any], n_envs: int, **kwargs: Any) -> VecEnv:
    """Make an environment for evaluation, with the wrappers of the configuration."""
    with tempfile.TemporaryDirectory() as folder:
        manager = experiment(args["algo"], args["env"], {}, args["seed"] or 0, Path(folder))
        _, manager.env_wrapper, _, manager.vec_env_wrapper = manager._preprocess_hyperparams(dict(config))
        manager.eval_env_kwargs = {**manager.env_kwargs, **(args["env_kwargs"] or {}), **kwargs}
        return manager.create_envs(n_envs, eval_env=True, no_log=True)


def _film(model: BaseAlgorithm, config: Mapping[str, Any], args: Mapping[str, Any], path: Path) -> bool:
    """Film an episode; returns False for an environment that has no pictures."""
    if "rgb_array" not in gym.make(args["env"], **(args["env_kwargs"] or {})).metadata.get("render_modes", ()):
        return False
    from moviepy.video.io.ImageSequenceClip import ImageSequenceClip

    env = _env(config, args, 1, render_mode="rgb_array")
    assert model.env is not None
    if model.get_vec_normalize_env() is not None:
        sync_envs_normalization(model.env, env)
    env.seed(_SEED)
    observation, ended = env.reset(), np.array([False])
    frames: list[Any] = []
    while not ended[0] and len(frames) < _MOST_FRAMES:
        frames.append(env.render(mode="rgb_array"))
        action, _ = model.predict(observation, deterministic=True)  # type: ignore[arg-type]
        observation, _, ended, _ = env.step(action)
    fps = env.get_attr("metadata")[0].get("render_fps", 30)
    env.close()
    ImageSequenceClip(frames, fps=fps).write_videofile(str(path), logger=None)
    return True


def _yaml(content: Mapping[str, Any]) -> str:
    """Write a mapping as YAML, one line for each key, without rl_zoo3's OrderedDict."""
    return yaml.dump(dict(content), sort_keys=True)


def _card(
    config: Mapping[str, Any],
    args: Mapping[str, Any],
    model: BaseAlgorithm,
    played: Played,
    filmed: bool,
    license_id: str,
    repo_id: str | None,
) -> str:
    """Write the model card: what the Hub reads between the dashes, and what people read below."""
    algorithm, env_id = ALGOS[args["algo"]].__name__, args["env"]
    reward = {"type": "mean_reward", "name": "mean_reward", "verified": False}
    reward["value"] = f"{played.mean:.2f} +/- {float(np.std(played.returns)):.2f}"
    task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
    result = {"task": task, "dataset": {"name": env_id, "type": env_id}, "metrics": [reward]}
    head = {
        "library_name": "sb3-pgext",
        "license": license_id,
        "tags": [env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "sb3-pgext"],
        "model-index": [{"name": algorithm, "results": [result]}],
    }
    versions = {**VERSIONS, "python": platform.python_version()}
    return _CARD.read_text().format(
        head=yaml.safe_dump(head, sort_keys=False),
        algorithm=algorithm,
        env_id=env_id,
        steps=model.num_timesteps,
        played=played,
        n_episodes=len(played.returns),
        film=f'\n<video src="{_FILM}" controls loop></video>\n' if filmed else "",
        source=repo_id or "FOLDER",
        config=_yaml(config),
        versions="\n".join(f"| {name} | {version} |" for name, version in versions.items()),
    )

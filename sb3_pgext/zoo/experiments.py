"""Models as rl_zoo3 makes them from a configuration: with its wrappers, schedules and normalisation."""

import contextlib
import io
import re
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import yaml
from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pgext.parallel import present
from sb3_pgext.zoo.names import check_environment, check_name
from sb3_pgext.zoo.vec_envs import VEC_ENVS, WHOLE, make_vec_env

ATARI, DEFAULT = "atari", "default"
"""Entries of a configuration file that belong to no single environment."""

WRAPPERS = {"env_wrapper", "vec_env_wrapper", "callback"}
"""Keys of a configuration under which wrappers stand."""


def entry_for(env_id: str, conf_file: str) -> str:
    """
    Find the entry of a configuration file that holds for an environment.

    :param env_id: a registered environment
    :param conf_file: a configuration file. What is not YAML is taken as rl_zoo3 takes it
    :return: its own id, :data:`ATARI`, the id of the latest other version of it that is not wrapped (wrappers are for
        the one version), or :data:`DEFAULT`
    """
    if Path(conf_file).suffix not in (".yml", ".yaml"):
        return env_id
    try:
        entries = _entries(Path(conf_file).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{conf_file}: allowed is YAML, in UTF-8. {error}") from error
    if not entries or env_id in entries:
        return env_id
    if ATARI in entries and ExperimentManager.is_atari(env_id):
        return ATARI
    name = re.escape(re.sub(r"-v\d+$", "", env_id))
    bare = [entry for entry, config in entries.items() if isinstance(config, Mapping) and not WRAPPERS & config.keys()]
    versions = {int(match[1]): entry for entry in bare if (match := re.fullmatch(rf"{name}-v(\d+)", str(entry)))}
    return versions[max(versions)] if versions else DEFAULT


@lru_cache
def _entries(text: str) -> Mapping[str, object]:
    """Parse a file's text, which takes a while; empty where it is no mapping, which rl_zoo3 then says."""
    content = yaml.safe_load(text)
    return content if isinstance(content, Mapping) else {}


class Experiment(ExperimentManager):
    """
    rl_zoo3's experiment; its configuration may also say which kind of vectorised environment it has: ``vec_env``.
    An environment without an entry in it gets that of another version, such as HalfCheetah-v4's: :func:`entry_for`.

    :param arguments: rl_zoo3's
    :param vec_env: the kind, laid over the configuration; None for what it says
    :param keywords: rl_zoo3's
    """

    def __init__(self, *arguments: Any, vec_env: str | None = None, **keywords: Any):
        super().__init__(*arguments, **keywords)
        if vec_env is not None:
            self.custom_hyperparams = {**(self.custom_hyperparams or {}), "vec_env": vec_env}
        self._vec_env: str | None = None

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        """rl_zoo3's, and the same for ``action_std``."""
        make = ExperimentManager._preprocess_schedules
        if hyperparams.get("action_std") is not None:
            hyperparams["action_std"] = make({"learning_rate": hyperparams["action_std"]})["learning_rate"]
        return make(hyperparams)

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """rl_zoo3 reads those of ``env_name``."""
        own = self.env_name
        entry = entry_for(own.gym_id, self.config)
        if entry not in (own.gym_id, ATARI, DEFAULT):
            print(f"{self.config} has no entry {own.gym_id}: that of {entry} is used")
            self.env_name = type(own)(entry)
        config, saved = super().read_hyperparameters()
        self.env_name = own
        if entry == DEFAULT and "policy" in config:  # a default is for any observations
            policy = fitting_policy(config["policy"], spaces_of(own.gym_id)[0])
            config, saved = ({**each, "policy": policy} for each in (config, saved))
        return config, saved

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        if "vec_env" in hyperparams:
            self._vec_env = check_name("vec_env", hyperparams.pop("vec_env"), VEC_ENVS)
        return super()._preprocess_hyperparams(hyperparams)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Make an environment of the kind that the configuration says, with all its wrappers.

        :param n_envs: number of sub-environments
        :param eval_env: whether it is for evaluation: it has its own settings, and does not normalise rewards
        :param no_log: whether its episodes are not written to files
        :return: the environment
        :raises ValueError: the configuration asks for what this kind cannot do
        """
        no_log = no_log or present().rank > 0
        if self._vec_env is not None:
            kwargs = self.eval_env_kwargs if eval_env else self.env_kwargs
            log_folder = None if eval_env or no_log else Path(self.save_path)
            options = kwargs, self.env_wrapper, self.monitor_kwargs, log_folder
            kind = WHOLE.get(self._vec_env, self._vec_env) if eval_env else self._vec_env  # with one sub-environment
            self.vec_env_class = partial(make_vec_env, kind, self.env_name.gym_id, *options)  # type: ignore[assignment]
        return super().create_envs(n_envs, eval_env, no_log)

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        if self.trained_agent:
            return super()._maybe_normalize(env, eval_env)
        # Without a trained agent rl_zoo3 would unpickle statistics that happen to lie in the current folder.
        if not self.normalize:
            return env
        for_evaluation = {"norm_reward": False, "training": False} if eval_env else {}
        return VecNormalize(env, **{**self.normalize_kwargs, **for_evaluation})


@lru_cache
def spaces_of(env_id: str) -> tuple[spaces.Space[Any] | None, spaces.Space[Any] | None]:
    """
    Look up the observations and actions of an environment.

    :param env_id: a registered environment
    :return: both spaces; None of one that cannot be made, which the training will tell
    """
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.closing(gym.make(env_id)) as env:
            return env.observation_space, env.action_space
    return None, None


def fitting_policy(policy: str, observation_space: spaces.Space[Any] | None) -> str:
    """
    Choose among SB3's three policies the one for the observations.

    :param policy: name of a policy; one of another name is taken as it is
    :param observation_space: the observations, None where they are not known
    :return: ``"MultiInputPolicy"`` for a Dict, ``"CnnPolicy"`` for an image unless ``"MlpPolicy"`` was asked for, else
        ``"MlpPolicy"``
    """
    if observation_space is None or policy not in ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"):
        return policy
    if isinstance(observation_space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if policy == "CnnPolicy" and is_image_space(observation_space) else "MlpPolicy"


def experiment(algo: str, env_id: str, config: Mapping[str, Any], seed: int, folder: Path) -> Experiment:
    """
    Make rl_zoo3's experiment; the whole configuration is written into the folder.

    :param algo: zoo key of the algorithm
    :param env_id: id of the environment
    :param config: hyperparameters as rl_zoo3 reads them
    :param seed: of everything
    :param folder: where its files go
    :return: the experiment
    :raises ValueError: the environment is unknown
    """
    check_environment(env_id)
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump({env_id: dict(config)}))
    args = Namespace(algo=algo, env=env_id, seed=seed, env_kwargs=None)
    options: dict[str, Any] = {"eval_freq": -1, "seed": seed, "verbose": 0, "config": str(path)}
    return Experiment(args, algo, env_id, str(folder), **options)


@contextlib.contextmanager
def model_of(manager: ExperimentManager) -> Iterator[BaseAlgorithm]:
    """
    Make the model of an experiment, and close its environment at the end.

    :param manager: an experiment that trains
    :return: context of the model
    """
    results = manager.setup_experiment()
    assert results is not None, "only a search for hyperparameters has no model"
    model: BaseAlgorithm = results[0]
    assert model.env is not None
    with contextlib.closing(model.env):
        yield model


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch to one thread: in worker processes it is the runs that are parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def quiet_model(algo: str, env_id: str, config: Mapping[str, Any], seed: int) -> Iterator[Any]:
    """
    Make a model as rl_zoo3 does, without its output, its files or more than one thread.

    :param algo: zoo key of the algorithm
    :param env_id: id of the environment
    :param config: hyperparameters as rl_zoo3 reads them
    :param seed: of everything
    :return: context of the model; meanwhile nothing is printed
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        one_torch_thread(),
        model_of(experiment(algo, env_id, config, seed, Path(folder))) as model,
    ):
        yield model

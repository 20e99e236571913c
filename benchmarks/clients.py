r"""Programs that others wrote around SB3's PPO, once as they are, and once with our classes in its place.

usage: python benchmarks/clients.py [--only imitation rllte …]

Prints a table, and exits with 1 if something runs with SB3's PPO and not with ours, or if ``ClippedCriticPPO``, which
is SB3's PPO to the bit, ends in other parameters.

Each is the client's own documented example, with fewer steps. optuna, rl_zoo3 and sb3-contrib are in the environment of
the ``zoo`` extra. The others pin versions that contradict it, so they go into a folder of their own, without what they
require, and are left out if they are not there:

    pip install --target FOLDER --no-deps \
        imitation==1.0.1 seals==0.2.1 scikit-learn==1.9.1 threadpoolctl==3.8.0 tqdm==4.70.1 \
        huggingface-sb3==3.0 huggingface-hub==2.4.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 \
        pyarrow==26.0.1 xxhash==4.1.0 fsspec==2026.9.0 httpx==0.28.1 httpcore==1.0.9 h11==0.16.0 anyio==4.16.0 \
        sniffio==1.3.1 idna==3.20 certifi==2026.10.19.post1 \
        rllte-core==1.0.1 termcolor==3.3.0 nvidia-ml-py==13.615.71 \
        supersuit==3.11.0 tinyscaler==1.2.8 pettingzoo==1.27.0
    PYTHONPATH=.:FOLDER python benchmarks/clients.py

(imitation imports ``datasets``, and rllte ``pynvml``, whether they are used or not.)
"""

import argparse
import contextlib
import importlib
import io
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecMonitor

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO

N_ENVS, N_STEPS = 4, 64
BY_STEPS = {"n_steps": N_STEPS, "batch_size": 64}
CONTENDERS: dict[type[BaseAlgorithm], dict[str, Any]] = {
    PPO: BY_STEPS | {"n_epochs": 3},
    ClippedCriticPPO: BY_STEPS | {"n_epochs": 3},
    VPG: BY_STEPS,
    NPG: BY_STEPS,
    REINFORCE: {"n_episodes": 4},
    ISPG: {"n_episodes": 4, "gradient_steps": 2},
}
"""PPO, and what is put in its place → how much it collects and learns per update."""

Make = Callable[..., Any]
"""A contender's constructor, with seed, device and options."""


class Client(NamedTuple):
    """
    A program around an on-policy algorithm.

    :param package: that it comes from
    :param modules: that must be there
    :param what: of the package runs
    :param run: trains what the constructor makes in so many environments, and returns it
    :param by_steps: whether it is for algorithms that collect ``n_steps`` steps into SB3's rollout buffer only
    :param alone: whether it forbids a reset before it has seen all that happened: REINFORCE and ISPG, whose batches
        begin with new episodes, need none in a single environment
    """

    package: str
    modules: tuple[str, ...]
    what: str
    run: Callable[[Make, int], BaseAlgorithm]
    by_steps: bool = False
    alone: bool = False


def _expert(observations: np.ndarray, *_: Any) -> tuple[np.ndarray, None]:
    """Holds the pole of a cart up for long."""
    position, speed, angle, turn = np.asarray(observations).T
    return (0.05 * position + 0.2 * speed + angle + 0.5 * turn > 0).astype(int), None


def _adversarial(trainer: str, make: Make, n_envs: int) -> BaseAlgorithm:
    from imitation.algorithms.adversarial import airl, gail
    from imitation.data import rollout
    from imitation.data.wrappers import RolloutInfoWrapper
    from imitation.rewards.reward_nets import BasicRewardNet, BasicShapedRewardNet
    from imitation.util.networks import RunningNorm
    from imitation.util.util import make_vec_env

    rng = np.random.default_rng(0)
    wrappers = [lambda env, _: RolloutInfoWrapper(env)]
    env = make_vec_env("CartPole-v1", rng=rng, n_envs=n_envs, post_wrappers=wrappers)
    until = rollout.make_sample_until(min_timesteps=None, min_episodes=8)
    rollouts = rollout.rollout(_expert, env, until, rng=rng)
    learner = make("MlpPolicy", env, gamma=0.95)
    reward = {"GAIL": BasicRewardNet, "AIRL": BasicShapedRewardNet}[trainer]
    with tempfile.TemporaryDirectory() as folder:
        imitation_of = {"GAIL": gail.GAIL, "AIRL": airl.AIRL}[trainer](
            demonstrations=rollouts,
            demo_batch_size=128,
            gen_replay_buffer_capacity=512,
            n_disc_updates_per_round=4,
            gen_train_timesteps=N_STEPS * n_envs,  # its default where `n_steps` is a number of steps
            venv=env,
            gen_algo=learner,
            reward_net=reward(env.observation_space, env.action_space, normalize_input_layer=RunningNorm),
            log_dir=folder,
            allow_variable_horizon=True,
        )
        imitation_of.train(4 * N_STEPS * n_envs)
    return learner


def _gail(make: Make, n_envs: int) -> BaseAlgorithm:
    return _adversarial("GAIL", make, n_envs)


def _airl(make: Make, n_envs: int) -> BaseAlgorithm:
    return _adversarial("AIRL", make, n_envs)


def _density(make: Make, n_envs: int) -> BaseAlgorithm:
    from imitation.algorithms.density import DensityAlgorithm, DensityType
    from imitation.data import rollout
    from imitation.data.wrappers import RolloutInfoWrapper
    from imitation.util.util import make_vec_env

    rng = np.random.default_rng(0)
    env = make_vec_env("CartPole-v1", rng=rng, n_envs=n_envs, post_wrappers=[lambda env, _: RolloutInfoWrapper(env)])
    until = rollout.make_sample_until(min_timesteps=200, min_episodes=None)
    trainer = DensityAlgorithm(
        venv=env,
        rng=rng,
        demonstrations=rollout.rollout(_expert, env, until, rng=rng),
        rl_algo=make("MlpPolicy", env, gamma=0.95),
        density_type=DensityType.STATE_ACTION_DENSITY,
        kernel_bandwidth=0.4,
        allow_variable_horizon=True,
    )
    trainer.train()
    trainer.train_policy(2 * N_STEPS * n_envs)
    assert trainer.rl_algo is not None
    return trainer.rl_algo


def _preferences(make: Make, n_envs: int) -> BaseAlgorithm:
    from imitation.algorithms import preference_comparisons as comparisons
    from imitation.policies.base import FeedForward32Policy, NormalizeFeaturesExtractor
    from imitation.rewards.reward_nets import BasicRewardNet
    from imitation.util.networks import RunningNorm
    from imitation.util.util import make_vec_env

    rng = np.random.default_rng(0)
    env = make_vec_env("Pendulum-v1", rng=rng, n_envs=n_envs)
    reward = BasicRewardNet(env.observation_space, env.action_space, normalize_input_layer=RunningNorm)
    normalized = {"normalize_class": RunningNorm}
    agent = make(
        FeedForward32Policy,
        env,
        policy_kwargs={
            "features_extractor_class": NormalizeFeaturesExtractor,
            "features_extractor_kwargs": normalized,
        },
    )
    main = comparisons.PreferenceComparisons(
        comparisons.AgentTrainer(algorithm=agent, reward_fn=reward, venv=env, exploration_frac=0.05, rng=rng),
        reward,
        num_iterations=2,
        fragmenter=comparisons.RandomFragmenter(warning_threshold=0, rng=rng),
        preference_gatherer=comparisons.SyntheticGatherer(rng=rng),
        reward_trainer=comparisons.BasicRewardTrainer(
            preference_model=comparisons.PreferenceModel(reward),
            loss=comparisons.CrossEntropyRewardLoss(),
            epochs=2,
            rng=rng,
        ),
        fragment_length=50,
        initial_comparison_frac=0.1,
    )
    main.train(total_timesteps=4 * N_STEPS * n_envs, total_comparisons=20)
    return agent


class IntrinsicRewards(BaseCallback):
    """What RLeXplore documents for SB3: it watches each step, and adds its rewards to advantages and returns."""

    def __init__(self, module: Any):
        super().__init__()
        self.module = module

    def init_callback(self, model: BaseAlgorithm) -> None:
        """Remember the buffer, as its documentation does."""
        super().init_callback(model)
        self.buffer = model.rollout_buffer  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        found = self.locals
        device = found["obs_tensor"].device
        actions, rewards, dones, new_obs = (
            th.as_tensor(found[name], device=device) for name in ("actions", "rewards", "dones", "new_obs")
        )
        self.module.watch(found["obs_tensor"], actions, rewards, dones, dones, new_obs)
        return True

    def _on_rollout_end(self) -> None:
        observations = th.as_tensor(self.buffer.observations)
        new_observations = observations.clone()
        new_observations[:-1] = observations[1:]
        new_observations[-1] = th.as_tensor(self.locals["new_obs"])
        starts = th.as_tensor(self.buffer.episode_starts)
        samples = {
            "observations": observations,
            "actions": th.as_tensor(self.buffer.actions),
            "rewards": th.as_tensor(self.buffer.rewards),
            "terminateds": starts,
            "truncateds": starts,
            "next_observations": new_observations,
        }
        rewards = self.module.compute(samples=samples, sync=True).cpu().numpy()
        self.buffer.advantages += rewards
        self.buffer.returns += rewards


def _intrinsic(name: str, make: Make, n_envs: int) -> BaseAlgorithm:
    from rllte.xplore import reward

    env = make_vec_env("CartPole-v1", n_envs=n_envs, seed=0)
    module = getattr(reward, name)(env)
    return make("MlpPolicy", env).learn(3 * N_STEPS * n_envs, callback=IntrinsicRewards(module))


def _re3(make: Make, n_envs: int) -> BaseAlgorithm:
    return _intrinsic("RE3", make, n_envs)


def _rnd(make: Make, n_envs: int) -> BaseAlgorithm:
    return _intrinsic("RND", make, n_envs)


def _icm(make: Make, n_envs: int) -> BaseAlgorithm:
    return _intrinsic("ICM", make, n_envs)


def _by_hand(make: Make, n_envs: int) -> BaseAlgorithm:
    """The loop of RLeXplore's first documentation, which drives the algorithm's own methods."""
    env = make_vec_env("CartPole-v1", n_envs=n_envs, seed=0)
    model = make("MlpPolicy", env)
    _, callback = model._setup_learn(total_timesteps=3 * N_STEPS * n_envs)
    for _ in range(3):
        model.collect_rollouts(env=env, rollout_buffer=model.rollout_buffer, n_rollout_steps=N_STEPS, callback=callback)
        novelty = np.abs(model.rollout_buffer.observations).sum(axis=-1)
        model.rollout_buffer.advantages += novelty
        model.rollout_buffer.returns += novelty
        model.train()
    return model


def _time_feature(make: Make, n_envs: int) -> BaseAlgorithm:
    from sb3_contrib.common.wrappers import TimeFeatureWrapper

    env = make_vec_env("Pendulum-v1", n_envs=n_envs, seed=0, wrapper_class=TimeFeatureWrapper)
    return make("MlpPolicy", env).learn(4 * N_STEPS * n_envs)


def _pruning(make: Make, n_envs: int) -> BaseAlgorithm:
    import optuna
    from rl_zoo3.callbacks import TrialEvalCallback

    models, pruned = [], []

    def objective(trial: Any) -> float:
        learning_rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
        env = make_vec_env("Pendulum-v1", n_envs=n_envs, seed=0)
        models.append(make("MlpPolicy", env, learning_rate=learning_rate))
        callback = TrialEvalCallback(make_vec_env("Pendulum-v1", seed=1), trial, n_eval_episodes=2, eval_freq=N_STEPS)
        models[-1].learn(4 * N_STEPS * n_envs, callback=callback)
        pruned.append(callback.is_pruned)
        if callback.is_pruned:
            raise optuna.TrialPruned
        return callback.last_mean_reward

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), pruner=pruner, direction="maximize").optimize(
        objective, n_trials=4
    )
    assert any(pruned), "no trial was pruned"
    return models[-1]


def _agents(make: Make, n_envs: int) -> BaseAlgorithm:
    import pettingzoo
    import supersuit

    class Meeting(pettingzoo.ParallelEnv):
        """Two on a line, who are paid for being close to each other; a time limit ends it."""

        metadata: dict[str, Any] = {"name": "meeting_v0", "render_modes": []}  # noqa: RUF012
        render_mode = None
        possible_agents = ["left", "right"]  # noqa: RUF012

        def observation_space(self, _: str) -> spaces.Space:
            return spaces.Box(-10, 10, (2,), np.float32)

        def action_space(self, _: str) -> spaces.Space:
            return spaces.Discrete(3)

        def _observations(self) -> dict[str, np.ndarray]:
            left, right = self.place.values()
            return {"left": np.float32([left, right]), "right": np.float32([right, left])}

        def reset(self, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
            self.agents = list(self.possible_agents)
            self.place, self.time = {"left": -3.0, "right": 3.0}, 0
            return self._observations(), {agent: {} for agent in self.agents}

        def step(self, actions: dict[str, int]) -> tuple[Any, ...]:
            for agent, action in actions.items():
                self.place[agent] = float(np.clip(self.place[agent] + int(action) - 1, -10, 10))
            self.time += 1
            distance = abs(self.place["left"] - self.place["right"])

            def each(value: Any) -> dict[str, Any]:
                return dict.fromkeys(self.possible_agents, value)

            met, late = distance == 0, self.time == 20
            infos: dict[str, Any] = {agent: {} for agent in self.possible_agents}
            return self._observations(), each(-distance), each(met), each(late), infos

    vector = supersuit.pettingzoo_env_to_vec_env_v1(Meeting())
    env = VecMonitor(supersuit.concat_vec_envs_v1(vector, 2, num_cpus=1, base_class="stable_baselines3"))
    # Without a seed: supersuit's environments have no `seed`, in SB3's PPO as in ours.
    return make("MlpPolicy", env, seed=None).learn(4 * N_STEPS * n_envs)


class Pictures(gym.Env):
    """Noise, of which the brightest quarter is asked for."""

    observation_space = spaces.Box(0, 255, (40, 40, 3), np.uint8)
    action_space = spaces.Discrete(4)

    def _observe(self) -> np.ndarray:
        self.quarter = int(self.np_random.integers(4))
        picture = self.np_random.integers(0, 100, (40, 40, 3), dtype=np.uint8)
        row, column = divmod(self.quarter, 2)
        picture[20 * row : 20 * row + 20, 20 * column : 20 * column + 20] += 100
        return picture

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode."""
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Paid if right."""
        self.time += 1
        return self._observe(), float(action == self.quarter), self.time == 16, False, {}


def _pictures(make: Make, n_envs: int) -> BaseAlgorithm:
    import supersuit

    def wrapped() -> gym.Env:
        return supersuit.frame_stack_v1(
            supersuit.resize_v1(supersuit.color_reduction_v0(Pictures(), "full"), 36, 36), 4
        )

    env = make_vec_env(wrapped, n_envs=n_envs, seed=0)
    return make("CnnPolicy", env).learn(2 * N_STEPS * n_envs)


IMITATION = ("imitation.algorithms.preference_comparisons", "imitation.algorithms.density")
RLLTE = ("rllte.xplore.reward",)
OPTUNA = ("optuna", "rl_zoo3.callbacks")
CLIENTS = (
    Client("imitation", IMITATION, "GAIL, CartPole-v1", _gail, alone=True),
    Client("imitation", IMITATION, "AIRL, CartPole-v1", _airl, alone=True),
    Client("imitation", IMITATION, "density estimation, CartPole-v1", _density, alone=True),
    Client("imitation", IMITATION, "preference comparisons, Pendulum-v1", _preferences),
    Client("rllte-core", RLLTE, "RE3 in a callback, CartPole-v1", _re3, by_steps=True),
    Client("rllte-core", RLLTE, "RND in a callback, CartPole-v1", _rnd, by_steps=True),
    Client("rllte-core", RLLTE, "ICM in a callback, CartPole-v1", _icm, by_steps=True),
    Client("stable-baselines3", (), "`collect_rollouts` and `train` by hand, CartPole-v1", _by_hand, by_steps=True),
    Client("sb3-contrib", ("sb3_contrib",), "TimeFeatureWrapper, Pendulum-v1", _time_feature),
    Client("optuna", OPTUNA, "rl_zoo3's TrialEvalCallback with a pruner, Pendulum-v1", _pruning),
    Client("supersuit", ("supersuit",), "two agents of PettingZoo as vector environment", _agents),
    Client("supersuit", ("supersuit",), "image wrappers and CnnPolicy", _pictures),
)


def missing(client: Client) -> str | None:
    """
    :param client: that may not be installed
    :return: why it cannot be imported; None if it can
    """
    for module in client.modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return str(error)
    return None


def parameters(client: Client, algorithm: type[BaseAlgorithm]) -> tuple[th.Tensor, int]:
    """
    :param client: runs
    :param algorithm: in the place of PPO
    :return: parameters of the policy and number of steps in the end
    """
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  the generator that SB3 draws from
    th.manual_seed(0)

    def make(*arguments: Any, **options: Any) -> BaseAlgorithm:
        return algorithm(*arguments, **{"seed": 0, "device": "cpu"} | CONTENDERS[algorithm] | options)

    alone = client.alone and algorithm in (REINFORCE, ISPG)
    model = client.run(make, 1 if alone else N_ENVS)
    found = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()
    assert found.isfinite().all(), "parameters are not finite"
    return found, model.num_timesteps


def row(client: Client) -> tuple[str, bool]:
    """
    :param client: that is installed
    :return: its row of the table, and whether ours did as SB3's PPO
    """
    ends: dict[type[BaseAlgorithm], tuple[th.Tensor, int]] = {}
    cells: dict[type[BaseAlgorithm], str] = {}
    for algorithm in CONTENDERS:
        if client.by_steps and algorithm in (REINFORCE, ISPG):
            cells[algorithm] = "–"
            continue
        try:
            ends[algorithm] = parameters(client, algorithm)
            cells[algorithm] = f"{ends[algorithm][1]:,} steps"
        except Exception as error:
            print(f"{client.what}, {algorithm.__name__}:\n{traceback.format_exc()}", file=sys.__stderr__)
            cells[algorithm] = f"**{type(error).__name__}**"
    failed = [algorithm for algorithm, cell in cells.items() if "**" in cell]
    equal = "–"
    if PPO in ends and ClippedCriticPPO in ends:
        difference = (ends[PPO][0] - ends[ClippedCriticPPO][0]).abs().max().item()
        equal = "to the bit" if difference == 0 else f"no: {difference:.1e}"
    change = "one environment for REINFORCE, ISPG" if client.alone else "nothing"
    columns = client.package, version(client.package), client.what, *cells.values(), "–" if failed else change, equal
    return f"| {' | '.join(columns)} |", PPO in failed or (not failed and equal == "to the bit")


def main() -> None:
    """Run what is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted({client.package for client in CLIENTS}))
    only = parser.parse_args().only
    th.set_num_threads(1)
    warnings.simplefilter("ignore")

    head = ("client", "version", "what ran", *(a.__name__ for a in CONTENDERS), "to change", "PPO = ClippedCriticPPO")
    rows, well = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"], True
    for client in CLIENTS:
        if only and client.package not in only:
            continue
        if (reason := missing(client)) is not None:
            print(f"{client.package} is left out: {reason}")
            continue
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # imitation's log
            line, as_ppo = row(client)
        rows.append(line)
        well &= as_ppo
    print("\n".join(rows))
    sys.exit(not well)


if __name__ == "__main__":
    main()

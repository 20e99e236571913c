"""Discrete SAC: the off-policy actor-critic under the name and with the settings that it is known by."""

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.sac.policies import SACPolicy

from sb3_pgext.algorithms.constructor import given
from sb3_pgext.algorithms.opac import OffPolicyActorCritic

__all__ = ["DiscreteSAC"]


class DiscreteSAC(OffPolicyActorCritic):
    """
    Soft actor-critic for discrete actions (Christodoulou 2019): :class:`~sb3_pgext.OffPolicyActorCritic` with
    ``gradient="all_action"`` and the settings of that paper.

    One gradient step per four environment steps on minibatches of 64, after 20,000 steps of exploration; the target
    entropy is 0.98 of the largest one. Many tasks need a lower one: the configurations of ``sacd.yml`` say which.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class as SB3's SACPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: of actor, critics and temperature; can be a function of the remaining progress (from 1 to 0)
    :param buffer_size: size of the replay buffer
    :param learning_starts: steps, with actions drawn uniformly, before learning starts; less than ``buffer_size``
    :param batch_size: Minibatch size of each gradient step
    :param tau: how fast the target critics follow, φ_tar ← τφ + (1-τ)φ_tar, in [0, 1]
    :param gamma: Discount factor, in [0, 1]
    :param train_freq: collect this many steps between updates; or ``(5, "step")``, ``(2, "episode")``
    :param gradient_steps: gradient steps of an update; -1 for as many as steps were collected
    :param replay_buffer_class: Replay buffer class to use. If None, it will be automatically selected
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation
    :param optimize_memory_usage: a replay that takes half of the memory, see SB3
    :param n_steps: rewards in a target before Q, with SB3's ``NStepReplayBuffer``
    :param n_action_samples: draws in place of the sum over all actions, 2 or more; needed where there are more than
        256 joint actions
    :param ent_coef: α, the coefficient of the entropy; ``"auto"`` learns it, ``"auto_0.1"`` from 0.1 on
    :param target_update_interval: gradient steps of an update between two steps of the targets
    :param target_entropy: what ``ent_coef="auto"`` keeps the entropy at. ``"auto"``: 0.98 of the largest possible one
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, ``n_critics`` among them
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, …) on which the code should be run; "auto" uses the GPU if possible
    :param compile: compile acting and the steps of critics and actor: the same results up to rounding, in less time
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: an argument is not allowed, or would have no effect beside the others
    """

    action_spaces: ClassVar[tuple[type[spaces.Space], ...]] = (
        *(spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
    )

    def __init__(
        self,
        policy: str | type[SACPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 20_000,
        batch_size: int = 64,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 4,
        gradient_steps: int = 1,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        n_action_samples: int | None = None,
        ent_coef: str | float = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        compile: bool = False,
        _init_setup_model: bool = True,
    ):
        super().__init__(**given(locals()), gradient="all_action")

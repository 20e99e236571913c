"""Environments whose dynamics are functions of tensors: CartPole and the finite MDPs, thousands at once."""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_pgext.arguments import require_count
from sb3_pgext.envs import TabularMDP
from sb3_pgext.vec_envs.tensors import TensorStep

__all__ = ["TorchCartPole", "TorchEnv", "TorchMDP"]


class TorchEnv(th.nn.Module, ABC):
    """
    A :class:`~sb3_pgext.vec_envs.tensors.TensorEnv` by functions of tensors: a subclass writes ``initial`` and
    ``transition``, and the resets and time limits are here. What the functions need beside their arguments are numbers
    and buffers of the module.

    :param num_envs: number of sub-environments, E
    :param observation_space: of one of them
    :param action_space: of one of them
    :param n_random: random numbers that a step takes for each
    :param max_episode_steps: an episode is truncated after so many steps; None for no limit
    :param device: of all tensors
    """

    limit_terminates = False
    """Whether the limit belongs to the task, so that an episode terminates there."""

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        n_random: int,
        max_episode_steps: int | None = None,
        device: th.device | str = "cpu",
    ):
        super().__init__()
        require_count("num_envs", num_envs)
        if max_episode_steps is not None:
            require_count("max_episode_steps", max_episode_steps)
        self.num_envs, self.observation_space, self.action_space = num_envs, observation_space, action_space
        self.n_random, self.max_episode_steps, self.device = n_random, max_episode_steps, th.device(device)
        self.generator = th.Generator(self.device)
        self.generator.seed()

    @abstractmethod
    def initial(self, uniform: th.Tensor) -> th.Tensor:
        """
        :param uniform: random numbers in [0, 1), ``(E, n_random)``
        :return: first states, ``(E, …)``
        """

    @abstractmethod
    def transition(
        self, state: th.Tensor, actions: th.Tensor, uniform: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param state: ``(E, …)``
        :param actions: ``(E, *action shape)``
        :param uniform: the random numbers that :meth:`initial` gets, too, ``(E, n_random)``
        :return: next states, rewards ``(E,)`` and whether the episode has terminated ``(E,)``
        """

    def observe(self, state: th.Tensor) -> Any:
        """
        :param state: ``(E, …)``
        :return: observations, here the states themselves
        """
        return state

    def reset(self, seed: int | None = None) -> Any:
        """See :class:`~sb3_pgext.vec_envs.tensors.TensorEnv`."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.state = self.initial(self.uniform())
        self.time = th.zeros(self.num_envs, dtype=th.int32, device=self.device)
        return self.observe(self.state)

    def step(self, actions: th.Tensor) -> TensorStep:
        """See :class:`~sb3_pgext.vec_envs.tensors.TensorEnv`."""
        self.state, self.time, step = self(self.state, self.time, actions, self.uniform())
        return step

    def uniform(self) -> th.Tensor:
        """The random numbers of a step, ``(E, n_random)``."""
        return th.rand(self.num_envs, self.n_random, generator=self.generator, device=self.device)

    def forward(
        self, state: th.Tensor, time: th.Tensor, actions: th.Tensor, uniform: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, TensorStep]:
        """
        One step, as a function.

        :param state: ``(E, …)``
        :param time: steps of the episodes before, ``(E,)``
        :param actions: ``(E, *action shape)``
        :param uniform: see :meth:`uniform`
        :return: the next state and time, and what the step returns
        """
        final, rewards, terminated = self.transition(state, actions, uniform)
        time = time + 1
        truncated = th.zeros_like(terminated) if self.max_episode_steps is None else time >= self.max_episode_steps
        if self.limit_terminates:
            terminated, truncated = terminated | truncated, th.zeros_like(terminated)
        truncated = truncated & ~terminated
        ended = terminated | truncated
        state = th.where(ended.view(-1, *[1] * (final.dim() - 1)), self.initial(uniform), final)
        time = time * ~ended
        return state, time, TensorStep(self.observe(state), rewards, terminated, truncated, self.observe(final))


class TorchCartPole(TorchEnv):
    """
    gymnasium's CartPole-v1, in single precision.

    :param num_envs: number of sub-environments, E
    :param max_episode_steps: time limit of an episode
    :param device: of all tensors
    """

    def __init__(self, num_envs: int, max_episode_steps: int = 500, device: th.device | str = "cpu"):
        self.x_limit, self.angle_limit = 2.4, 12 * 2 * math.pi / 360
        high = np.array([2 * self.x_limit, np.inf, 2 * self.angle_limit, np.inf], np.float32)
        super().__init__(num_envs, spaces.Box(-high, high), spaces.Discrete(2), 4, max_episode_steps, device)

    def initial(self, uniform: th.Tensor) -> th.Tensor:
        """See :class:`TorchEnv`."""
        return uniform * 0.1 - 0.05

    def transition(
        self, state: th.Tensor, actions: th.Tensor, uniform: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """See :class:`TorchEnv`; https://coneural.org/florian/papers/05_cart_pole.pdf has the equations."""
        speed, angle, rate = state[:, 1], state[:, 2], state[:, 3]
        force, cos, sin = actions * 20.0 - 10.0, angle.cos(), angle.sin()
        # 1.1: both masses; 0.1: the pole's; 0.5: half of its length; 9.8: gravity
        push = (force + 0.05 * rate.square() * sin) / 1.1
        angle_acceleration = (9.8 * sin - cos * push) / (0.5 * (4.0 / 3.0 - 0.1 * cos.square() / 1.1))
        acceleration = push - 0.05 * angle_acceleration * cos / 1.1
        state = state + 0.02 * th.stack((speed, acceleration, rate, angle_acceleration), 1)
        terminated = (state[:, 0].abs() > self.x_limit) | (state[:, 2].abs() > self.angle_limit)
        return state, th.ones_like(speed), terminated


class TorchMDP(TorchEnv):
    """
    Many copies of a finite MDP.

    :param mdp: which
    :param num_envs: number of copies, E
    :param device: of all tensors
    """

    cumulative: th.Tensor
    cumulative_initial: th.Tensor
    rewards: th.Tensor

    def __init__(self, mdp: TabularMDP, num_envs: int, device: th.device | str = "cpu"):
        super().__init__(num_envs, mdp.observation_space, mdp.action_space, 2, mdp.horizon, device)
        self.limit_terminates = mdp.at_horizon == "terminate"
        rewards = np.concatenate([mdp._next_rewards, mdp._end_rewards[..., None]], axis=2)
        tables = {"cumulative": mdp._cumulative, "rewards": rewards, "cumulative_initial": mdp._cumulative_initial}
        for name, table in tables.items():
            self.register_buffer(name, th.as_tensor(table, dtype=th.float32, device=self.device))

    def initial(self, uniform: th.Tensor) -> th.Tensor:
        """See :class:`TorchEnv`."""
        below_1 = self.cumulative_initial[:-1]
        return (uniform[:, 1:] >= below_1).sum(1)

    def transition(
        self, state: th.Tensor, actions: th.Tensor, uniform: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """See :class:`TorchEnv`."""
        following = (uniform[:, :1] >= self.cumulative[state, actions]).sum(1)
        ended = following == len(self.cumulative_initial)
        return th.where(ended, state, following), self.rewards[state, actions, following], ended

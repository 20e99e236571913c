"""PPO in the style of CleanRL's single files: everything spelled out in one place, as a peer for ``throughput.py``.

Two separate networks, storage of shape (n_steps, n_envs), a loop over time for the advantages, Adam with its default
implementation, both clips, one optimizer step per minibatch. The same hyperparameters as SB3's PPO.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv
from torch import nn
from torch.distributions import Categorical, Independent, Normal


class SingleFilePPO:
    """
    :param policy: ignored: networks of tanh layers
    :param env: with a Box of one dimension as observations, and Discrete or Box actions
    :param n_steps: of each sub-environment per update
    :param batch_size: of a minibatch
    :param n_epochs: passes over the rollout
    :param seed: of the networks and the actions
    :param device: where the networks are
    :param policy_kwargs: ``net_arch`` with the widths of the layers of ``pi`` and ``vf``
    """

    def __init__(
        self,
        policy: str,
        env: VecEnv,
        n_steps: int,
        batch_size: int,
        n_epochs: int,
        seed: int,
        device: str,
        policy_kwargs: dict[str, Any],
    ):
        th.manual_seed(seed)
        self.env, self.n_steps, self.batch_size, self.n_epochs = env, n_steps, batch_size, n_epochs
        self.device = th.device(device)
        self.discrete = hasattr(env.action_space, "n")
        n_inputs = int(np.prod(env.observation_space.shape))  # type: ignore[arg-type]
        n_outputs = int(getattr(env.action_space, "n", 0) or np.prod(env.action_space.shape))  # type: ignore[arg-type]
        architecture = policy_kwargs["net_arch"]
        self.actor = network(n_inputs, architecture["pi"], n_outputs, 0.01).to(device)
        self.critic = network(n_inputs, architecture["vf"], 1, 1.0).to(device)
        self.log_std = nn.Parameter(th.zeros(n_outputs, device=device))
        self.parameters = [*self.actor.parameters(), *self.critic.parameters(), self.log_std]
        self.optimizer = th.optim.Adam(self.parameters, lr=3e-4, eps=1e-5)
        self.num_timesteps = 0
        self.rollout_buffer = None

    def _setup_learn(self, total_timesteps: int) -> tuple[int, None]:
        self.observation = self.tensor(self.env.reset())
        self.done = th.zeros(self.env.num_envs, device=self.device)
        return total_timesteps, None

    def tensor(self, array: Any) -> th.Tensor:
        return th.as_tensor(array, dtype=th.float32, device=self.device)

    def distribution(self, observations: th.Tensor) -> Categorical | Independent:
        if self.discrete:
            return Categorical(logits=self.actor(observations))
        return Independent(Normal(self.actor(observations), self.log_std.exp()), 1)

    @th.no_grad()
    def collect_rollouts(self, env: VecEnv, callback: None, rollout_buffer: None, n_rollout_steps: int) -> None:
        """A rollout and its advantages."""
        columns: dict[str, list[th.Tensor]] = {
            name: [] for name in ("obs", "action", "log_prob", "value", "reward", "done")
        }
        for _ in range(n_rollout_steps):
            distribution = self.distribution(self.observation)
            action = distribution.sample()
            row = (self.observation, action, distribution.log_prob(action), self.critic(self.observation).flatten())
            taken = action.cpu().numpy()
            if not self.discrete:
                taken = np.clip(taken, env.action_space.low, env.action_space.high)  # type: ignore[attr-defined]
            observation, reward, done, _ = env.step(taken)
            for column, value in zip(columns.values(), (*row, self.tensor(reward), self.done), strict=True):
                column.append(value)
            self.observation, self.done = self.tensor(observation), self.tensor(done)
            self.num_timesteps += env.num_envs
        stacked = {name: th.stack(column) for name, column in columns.items()}

        next_value, next_done, advantage = self.critic(self.observation).flatten(), self.done, th.zeros_like(self.done)
        advantages = th.zeros_like(stacked["reward"])
        for t in reversed(range(n_rollout_steps)):
            delta = stacked["reward"][t] + 0.99 * next_value * (1 - next_done) - stacked["value"][t]
            advantage = delta + 0.99 * 0.95 * (1 - next_done) * advantage
            advantages[t], next_value, next_done = advantage, stacked["value"][t], stacked["done"][t]
        stacked["advantage"], stacked["target"] = advantages, advantages + stacked["value"]
        self.rollout = {name: column.flatten(0, 1) for name, column in stacked.items()}

    def train(self) -> None:
        """Epochs of minibatch steps."""
        n = len(self.rollout["target"])
        for _ in range(self.n_epochs):
            order = np.random.permutation(n)  # noqa: NPY002
            for start in range(0, n, self.batch_size):
                batch = {name: x[order[start : start + self.batch_size]] for name, x in self.rollout.items()}
                distribution = self.distribution(batch["obs"])
                ratio = (distribution.log_prob(batch["action"]) - batch["log_prob"]).exp()
                advantage = batch["advantage"]
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                policy_loss = th.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
                value_loss = 0.5 * (self.critic(batch["obs"]).flatten() - batch["target"]).pow(2).mean()
                loss = policy_loss + 0.5 * value_loss
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, 0.5)
                self.optimizer.step()


def network(n_inputs: int, widths: list[int], n_outputs: int, gain: float) -> nn.Sequential:
    """Tanh layers with orthogonal weights."""
    sizes = [n_inputs, *widths, n_outputs]
    layers: list[nn.Module] = []
    for k, (n, m) in enumerate(pairwise(sizes)):
        linear = nn.Linear(n, m)
        nn.init.orthogonal_(linear.weight, gain if k == len(widths) else 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])

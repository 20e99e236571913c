"""Regret: what was lost, round by round, against the best fixed policy (``docs/mathematics.md``, section 10)."""

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_pgext.diagnostics.exact import action_probabilities, tables_of

__all__ = ["RegretCallback", "regret"]


def regret(values: th.Tensor, best: th.Tensor | float) -> tuple[th.Tensor, th.Tensor]:
    r"""
    :math:`V^* - V^{\pi_k}` of each round, and :math:`\sum_{j \le k} (V^* - V^{\pi_j})`.

    :param values: V of the policy of each round, ``(K, …)``
    :param best: V*, of the best fixed policy, ``(…)``
    :return: per round and cumulative, ``(K, …)`` each
    """
    per_round = best - values
    return per_round, per_round.cumsum(0)


class RegretCallback(BaseCallback):
    """
    Records the exact values of the policy that plays each rollout, from which ``regret`` is computed.

    :param mdp: a :class:`~sb3_pgext.envs.TabularMDP`, bare or as ``gymnasium.make`` and SB3 wrap it
    :param gamma: discount, in [0, 1]
    """

    def __init__(self, mdp: gym.Env, gamma: float = 0.99):
        super().__init__()
        self.mdp, self.tables = mdp, tables_of(mdp, gamma)
        self._values: list[th.Tensor] = []

    def _on_rollout_start(self) -> None:
        probabilities = action_probabilities(self.model.policy, self.mdp)  # type: ignore[arg-type]
        self._values.append(self.tables.values(probabilities)[0])

    def _on_step(self) -> bool:
        return True

    @property
    def values(self) -> th.Tensor:
        """V of each round's policy in each state, ``(K, S)``."""
        return th.stack(self._values)

    @property
    def regret(self) -> tuple[th.Tensor, th.Tensor]:
        """Per round and cumulative, from each state, ``(K, S)`` each."""
        return regret(self.values, self.tables.best_values())

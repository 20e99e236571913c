r"""Exact value functions of a finite MDP in tables (``docs/mathematics.md``, section 8).

With π (S×A): :math:`P_\pi = \sum_a \pi P`, :math:`r_\pi = \sum_a \pi R`, :math:`V = (I - \gamma P_\pi)^{-1} r_\pi`,
or a backward recursion with a finite horizon. π may be differentiable.
"""

from dataclasses import dataclass

import torch as th

__all__ = ["Tables"]


@dataclass(frozen=True)
class Tables:
    """
    A finite MDP with S states and A actions.

    :param transitions: P(s'|s,a), ``(S, A, S)``; a row that sums to less than 1 may end the episode
    :param rewards: E[r|s,a], ``(S, A)``
    :param initial: P(s_0), ``(S,)``
    :param gamma: discount, in [0, 1]
    :param horizon: number of steps of an episode; None for no limit
    """

    transitions: th.Tensor
    rewards: th.Tensor
    initial: th.Tensor
    gamma: float
    horizon: int | None = None

    def values(self, probabilities: th.Tensor) -> list[th.Tensor]:
        """
        V at each time.

        :param probabilities: π(a|s), ``(S, A)``
        :return: ``(S,)`` each, from the first step to past the last; without a horizon the same one twice
        :raises ValueError: the return is infinite
        """
        rewards = (probabilities * self.rewards).sum(1)
        transitions = th.einsum("sa,sap->sp", probabilities, self.transitions)
        if self.horizon is None:
            values = self._solve(transitions, rewards, self.gamma)
            return [values, values]
        backward = [th.zeros_like(rewards)]
        for _ in range(self.horizon):
            backward.append(rewards + self.gamma * transitions @ backward[-1])
        return backward[::-1]

    def action_values(self, next_values: th.Tensor) -> th.Tensor:
        """
        Q of a step after which the values are known.

        :param next_values: V of the next step, ``(S,)``
        :return: ``(S, A)``
        """
        return self.rewards + self.gamma * self.transitions @ next_values

    def best_values(self, n_iterations: int = 100_000) -> th.Tensor:
        """
        V of the best policy, by policy iteration, or backwards from the horizon.

        :param n_iterations: after how many it is given up
        :return: V* at the first step, ``(S,)``
        """
        if self.horizon is not None:
            values = th.zeros_like(self.initial)
            for _ in range(self.horizon):
                values = self.action_values(values).amax(1)
            return values
        greedy = self.rewards.argmax(1)
        for _ in range(n_iterations):
            values = self.values(th.nn.functional.one_hot(greedy, self.rewards.shape[1]).to(self.rewards.dtype))[0]
            better = self.action_values(values)
            improved = better.amax(1) > better.gather(1, greedy.unsqueeze(1)).squeeze(1) + 1e-12
            if not improved.any():
                break
            greedy = th.where(improved, better.argmax(1), greedy)
        return values

    def visits(self, probabilities: th.Tensor, discount: float) -> list[th.Tensor]:
        """
        How often each state is visited, discounted.

        :param probabilities: π(a|s), ``(S, A)``
        :param discount: weight of a step beside that of the step before
        :return: Σ_t discount^t P(s_t = s), ``(S,)``: one entry per time with a horizon, without one a single sum
        """
        transitions = th.einsum("sa,sap->sp", probabilities, self.transitions)
        if self.horizon is None:
            return [self._solve(transitions.T, self.initial, discount)]
        forward = [self.initial]
        for _ in range(self.horizon - 1):
            forward.append(discount * transitions.T @ forward[-1])
        return forward

    @staticmethod
    def _solve(transitions: th.Tensor, right: th.Tensor, discount: float) -> th.Tensor:
        """(I - discount P)⁻¹ right."""
        radius = discount * th.linalg.eigvals(transitions.detach()).abs().max()
        if radius >= 1 - 1e-12:
            raise ValueError(
                f"gamma={discount!r}: allowed is a number < 1 where there are states without a way out and no horizon"
            )
        return th.linalg.solve(th.eye(len(right), dtype=right.dtype) - discount * transitions, right)

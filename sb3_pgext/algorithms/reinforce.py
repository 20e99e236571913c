"""REINFORCE: the score-function estimator of the policy gradient with a choice of baselines."""

from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_pgext.algorithms.base import ACTION_SPACES
from sb3_pgext.algorithms.constructor import given
from sb3_pgext.algorithms.episodic import Baseline, EpisodicAlgorithm
from sb3_pgext.algorithms.parameters import policy_parameters
from sb3_pgext.arguments import require
from sb3_pgext.engine import whole_update

__all__ = ["REINFORCE"]


class REINFORCE(EpisodicAlgorithm):
    r"""
    REINFORCE (Williams 1992; lectures 000, 001, 003, 004): one gradient step per batch of N whole episodes along

    .. math:: \hat g = \frac1N \sum_{i=1}^N \sum_t w_t \nabla_\theta \log \pi_\theta(a_t|s_t) \, (G_t - b_t).

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or an ActorCriticPolicy class)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: of the policy and of the critic; can be a function of the remaining progress (from 1 to 0)
    :param n_episodes: episodes per update, N. Best a multiple of the number of sub-environments: each plays its share
    :param gamma: Discount factor, in [0, 1]
    :param credit: what a log-probability is multiplied by: ``"reward_to_go"`` (G_t, the return from t on) or
        ``"trajectory"`` (R(τ) = G_0, the return of the whole episode)
    :param baseline: what is subtracted from it:

        * ``"none"``: nothing
        * ``"constant"``: the mean return
        * ``"time"``: the mean return at the same time step
        * ``"optimal"``: for each parameter the constant of minimum variance
        * ``"state"``: the critic's V(s_t)
        * a callable ``baseline(episodes, returns)`` from an :class:`~sb3_pgext.rollouts.EpisodeBatch` and its G_t
          ``(M,)`` to b_t ``(M,)``. If it is an object that also has a method ``fit(episodes, returns)``, that is
          called after each policy step, with the same arguments
    :param leave_one_out: compute an episode's baseline from the other episodes, which keeps ĝ unbiased
        (for ``"constant"``, ``"time"`` and ``"optimal"``; needs N >= 2. With few episodes and continuous actions the
        optimal baseline is a ratio of sums that can be near 0, and its variance large: take 8 or more)
    :param discount_weighting: w_t = γ^t, the gradient of the discounted return, instead of w_t = 1, which everyone
        runs (for ``"reward_to_go"``; ``"trajectory"`` carries the discounts already)
    :param critic_target: what the critic is fitted to (for ``baseline="state"``): ``"mc"`` (G_t), ``"td"``
        (r_t + γV(s_{t+1})) or ``"lambda"`` (TD(λ))
    :param gae_lambda: the λ of ``critic_target="lambda"``
    :param n_critic_updates: passes over the batch when fitting the critic
    :param batch_size: minibatch size when fitting the critic
    :param truncation: an episode cut by a time limit is continued by the critic's V(s_T) (``"bootstrap"``) or taken
        to end there (``"terminal"``); None means ``"bootstrap"`` with a critic, ``"terminal"`` without
    :param max_episode_steps: cut (truncate) longer episodes; None for no limit
    :param normalize_advantage: Whether to normalize G_t - b_t over the batch (not with ``baseline="optimal"``)
    :param ent_coef: coefficient of the mean entropy in the objective
    :param max_grad_norm: The maximum norm of the gradient of a step, of the policy and of the critic; None for no limit
    :param learning_rate_kl_target: mean KL per update that the learning rate adapts to, by factors of 1.5; or None
    :param action_std: σ of the actions on a Box, instead of learning it; can be a function of the remaining progress
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        (-1: only at the beginning of the rollout)
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, …) on which the code should be run; "auto" uses the GPU if possible
    :param compile: compile acting and the steps of the critic's fit: the same results up to rounding, in less time
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: an argument is not allowed, or would have no effect beside the others
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_episodes: int = 16,
        gamma: float = 0.99,
        credit: str = "reward_to_go",
        baseline: str | Baseline = "state",
        leave_one_out: bool = True,
        discount_weighting: bool = False,
        critic_target: str = "mc",
        gae_lambda: float = 0.95,
        n_critic_updates: int = 5,
        batch_size: int = 256,
        truncation: str | None = None,
        max_episode_steps: int | None = None,
        normalize_advantage: bool = False,
        ent_coef: float = 0.0,
        max_grad_norm: float | None = None,
        learning_rate_kl_target: float | None = None,
        action_std: float | Schedule | None = None,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        compile: bool = False,
        _init_setup_model: bool = True,
    ):
        super().__init__(**given(locals()), n_steps=n_episodes, vf_coef=0.0, supported_action_spaces=ACTION_SPACES)

    @whole_update
    def train(self) -> None:
        """Take one step along the policy gradient of the episodes just collected, then fit the baseline."""
        self._begin_update()
        episodes = self.episodes
        returns = self._returns(episodes)  # G_t, continued by V(s_T) where a time limit cut the episode

        parameters = list(policy_parameters(self.policy).values())
        if parameters:  # not all frozen
            advantages = self._advantages(episodes, returns)  # Ψ_t = G_t - b_t
            gradient = self._score_function_gradient(episodes, advantages, parameters)  # mean of Σ_t w_t ∇log π_t Ψ_t
            with self._adapting_learning_rate(episodes):
                self._ascend(gradient, parameters)

        self._fit_baseline(episodes, returns)  # y_t, then minibatch steps on (y_t - V(s_t))²

    def estimate_gradient(self) -> th.Tensor:
        r"""
        The gradient that :meth:`train` would step along, without stepping.

        :return: :math:`\hat g` of ``self.episodes``, plus the gradient of the entropy bonus, ``(P,)``, in the order of
            :func:`~sb3_pgext.algorithms.parameters.policy_parameters`
        """
        require(hasattr(self, "episodes"), "episodes", None, "those of a learn()")
        self.policy.set_training_mode(True)
        advantages = self._advantages(self.episodes, self._returns(self.episodes))
        parameters = list(policy_parameters(self.policy).values())
        return self._score_function_gradient(self.episodes, advantages, parameters)

"""ISPG: the policy gradient of episodes that other policies have played, by importance sampling."""

import io
import math
import pathlib
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_pgext.algorithms.action_std import set_action_std
from sb3_pgext.algorithms.base import ACTION_SPACES
from sb3_pgext.algorithms.constructor import arguments_of, given
from sb3_pgext.algorithms.episodic import Baseline, EpisodicAlgorithm
from sb3_pgext.algorithms.parameters import critic_parameters, policy_parameters
from sb3_pgext.arguments import require, require_bool, require_count, require_fraction, require_one_of, require_positive
from sb3_pgext.engine import whole_update
from sb3_pgext.estimators.importance import (
    WEIGHTS,
    effective_share,
    importance_weights,
    log_mixture,
    log_weights,
    per_decision_credit,
    self_normalized,
)
from sb3_pgext.parallel.start import begin
from sb3_pgext.rollouts import EpisodeBatch, EpisodeBuffer, EpisodeDataset, EpisodeReplay, ReplayedBatch
from sb3_pgext.rollouts.dataset import require_suitable
from sb3_pgext.rollouts.replay import OffPolicyBatch, concatenated

__all__ = ["ISPG"]

SelfISPG = TypeVar("SelfISPG", bound="ISPG")


class ISPG(EpisodicAlgorithm):
    r"""
    Importance-sampled policy gradient (lectures 000, 003): several steps per batch of N new episodes, and K older
    batches beside it, along

    .. math:: \hat g = \frac1n \sum_{i=1}^n \sum_t w_t W_t \nabla_\theta \log \pi_\theta(a_t|s_t) \, (G_t - b_t),

    in which :math:`W_t` makes up for the difference between :math:`\pi_\theta` and the policy that acted.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or an ActorCriticPolicy class)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: of the policy and of the critic; can be a function of the remaining progress (from 1 to 0)
    :param n_episodes: new episodes per update, N. Best a multiple of the number of sub-environments
    :param gradient_steps: gradient steps per update, at most
    :param weights: what makes up for the difference:

        * ``"trajectory"``: the likelihood ratio of the whole episode, :math:`W_{0:T-1}`; unbiased
        * ``"per_decision"``: each reward has that of the actions up to it; unbiased, with less variance
        * ``"causal"``: the ratio of the actions so far, :math:`W_{0:t}`; biased
        * ``"per_step"``: the ratio of this one action, :math:`\rho_t`; biased, with the least variance. With old
          batches under ``mixture="balance"`` the bias depends on the baseline too
    :param weight_clip: larger weights are cut to this; None for no limit
    :param self_normalize: divide the weights by their mean (over the episodes alive at t; over all episodes for
        ``"trajectory"``). Needs N >= 2
    :param replay_batches: older batches that are reused beside the new one, K at most
    :param mixture: what an episode's likelihood is compared with: ``"balance"``, the mixture of all policies whose
        batches are used (the balance heuristic), or ``"own"``, the policy that played it
    :param min_ess: no further gradient step is taken when the effective sample size of the episodes is below this
        share of their number, and an old batch of which less than this share is left is dropped; in [0, 1]. At least
        1/n is always left of n episodes, so up to 1/n it is no limit
    :param gamma: Discount factor, in [0, 1]
    :param credit: what a log-probability is multiplied by: ``"reward_to_go"`` (G_t, the return from t on) or
        ``"trajectory"`` (R(τ) = G_0, the return of the whole episode)
    :param baseline: what is subtracted from it, computed from all episodes used: ``"none"``, ``"constant"``,
        ``"time"``, ``"optimal"``, ``"state"`` or a callable, see :class:`~sb3_pgext.REINFORCE`. The critic of
        ``"state"``, and the ``fit`` of a callable, see only the new episodes, each batch once: with old batches under
        ``mixture="balance"``, which needs one V for all of them, it has been fitted to the old ones before
    :param leave_one_out: compute an episode's baseline from the other episodes (for ``"constant"``, ``"time"`` and
        ``"optimal"``; needs N >= 2). With old batches under ``mixture="balance"``, from those at other places in their
        batches: without bias if all have the same number of episodes, else with one of O(1/n)
    :param discount_weighting: w_t = γ^t instead of w_t = 1 (for ``"reward_to_go"``)
    :param critic_target: what the critic is fitted to: ``"mc"`` (G_t), ``"td"`` (r_t + γV(s_{t+1})) or ``"lambda"``
    :param gae_lambda: the λ of ``critic_target="lambda"``, TD(λ)
    :param n_critic_updates: passes over the new episodes when fitting the critic
    :param batch_size: minibatch size when fitting the critic
    :param truncation: an episode cut by a time limit is continued by V(s_T) (``"bootstrap"``; so does None with a
        critic) or taken to end there (``"terminal"``; so does None without)
    :param max_episode_steps: cut (truncate) longer episodes; None for no limit
    :param normalize_advantage: Whether to normalize G_t - b_t over the episodes used, before they are weighted
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

    replay_buffer: EpisodeReplay

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_episodes: int = 16,
        gradient_steps: int = 10,
        weights: str = "per_step",
        weight_clip: float | None = None,
        self_normalize: bool = False,
        replay_batches: int = 0,
        mixture: str = "balance",
        min_ess: float = 0.2,
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

    def _setup_model(self) -> None:
        super()._setup_model()
        # A file that was saved with `include=["replay_buffer"]` has brought one.
        self._take_over(getattr(self, "replay_buffer", EpisodeReplay(1)))

    def _take_over(self, replay: EpisodeReplay) -> None:
        """Keep as many of its batches as this model may."""
        replay.n_batches = self.replay_batches + 1
        replay.keep(replay.batches[-replay.n_batches :])
        self.replay_buffer = replay

    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: EpisodeBuffer, n_rollout_steps: int
    ) -> bool:
        """Play whole episodes; the new batch also enters ``self.replay_buffer``."""
        finished = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        if finished:
            self._take_over(self.replay_buffer)  # replay_batches may have changed
            self.replay_buffer.add(self.episodes, self._log_prob(self.episodes), self._numbers_of_policy())
        return finished

    def train(self) -> None:
        """Take some steps along the weighted gradient of the episodes kept, then fit the baseline to the new ones."""
        self.replay_buffer.keep(self._live_batches())  # the new batch, and the old ones with enough ESS left
        self.logger.record("train/batches_used", len(self.replay_buffer.batches))
        # The first step is safe: the policy has not moved since it played the new episodes.
        try:
            self._update(self._off_policy_batch(self.replay_buffer.batches), self.episodes, at_least=1)
        except BaseException:
            # A batch that has spoilt this update is not to spoil the next ones.
            self.replay_buffer.keep(self.replay_buffer.batches[:-1])
            raise

    @whole_update
    def _update(self, batch: OffPolicyBatch, new: EpisodeBatch, at_least: int) -> bool:
        """
        Take gradient steps as long as the effective sample size allows, then fit the baseline.

        :param batch: the episodes to take steps with
        :param new: those to fit the baseline to afterwards
        :param at_least: gradient steps that are taken in any case
        :return: whether all of them were allowed
        """
        self._begin_update()
        parameters = list(policy_parameters(self.policy).values())
        n_steps, alive = 0, True
        with self._adapting_learning_rate(new):
            while parameters and n_steps < self.gradient_steps:  # not all frozen
                log_w = self._log_weights(self._log_prob(batch.episodes), batch)  # log W_t
                log_w, ess = self._clipped(log_w), self._effective_share(log_w, batch.episodes)
                self.logger.record("train/ess", ess)
                alive = n_steps < at_least or ess >= self.min_ess
                if not alive:
                    break
                self._ascend(self._policy_gradient(batch, log_w, parameters), parameters)
                n_steps += 1

        self.logger.record("train/gradient_steps", n_steps)
        self._fit_baseline(new, self._returns(new))
        return alive

    def _policy_gradient(self, batch: OffPolicyBatch, log_w: th.Tensor, parameters: list[th.nn.Parameter]) -> th.Tensor:
        """ĝ, the mean over episodes of Σ_t w_t W_t ∇log π(a_t|s_t) (G_t - b_t), ``(P,)``."""
        self.policy.set_training_mode(True)  # weights compare policies as they act; dropout is for the gradient
        if self.self_normalize:
            log_w = self.ranks.together(partial(self_normalized, self.weights), log_w, batch.episodes.time)
        weights = importance_weights(log_w)
        advantages = weights * batch.advantages  # W_t (G_t - b_t)
        if self.weights == "per_decision":
            e = batch.episodes
            steps = e.rewards, weights, e.episode, e.time, self.gamma, e.bootstrap_values
            advantages = advantages + per_decision_credit(self.credit, *steps)
        return self._score_function_gradient(batch.episodes, advantages, parameters, weights, batch.group)

    def estimate_gradient(self) -> th.Tensor:
        r"""
        The gradient that :meth:`train` would take its first step along, without stepping.

        :return: :math:`\hat g` of the batches in ``self.replay_buffer``, plus the gradient of the entropy bonus,
            ``(P,)``, in the order of :func:`~sb3_pgext.algorithms.parameters.policy_parameters`
        """
        batch = self._off_policy_batch(self._live_batches())
        log_w = self._clipped(self._log_weights(self._log_prob(batch.episodes), batch))
        return self._policy_gradient(batch, log_w, list(policy_parameters(self.policy).values()))

    def dataset(self) -> EpisodeDataset:
        """
        The episodes in ``self.replay_buffer``, with the log-probabilities of the policies that played them.

        :raises ValueError: there are none
        """
        batches = self.replay_buffer.some()
        episodes = replace(concatenated([batch.episodes for batch in batches]), final_observations=None)  # as in files
        return EpisodeDataset(episodes, th.cat([batch.log_prob for batch in batches]))

    def learn_from(self: SelfISPG, dataset: EpisodeDataset, n_updates: int) -> SelfISPG:
        """
        Learn from recorded episodes, without playing any.

        Each update takes ``gradient_steps`` steps, each episode weighted by the policy that played it, and fits the
        baseline. Learning ends when the effective sample size of the episodes is below ``min_ess``. Where an episode
        was cut, V(s_T) is what the dataset says, or 0 with ``truncation="terminal"``. Several ranks share the episodes.

        :param dataset: the episodes
        :param n_updates: how many updates
        :return: the model
        :raises ValueError: the dataset does not fit the model
        """
        require_count("n_updates", n_updates)
        begin(self.ranks, self, arguments_of(self))
        dataset = require_suitable(dataset, self).part(self.ranks.rank, self.ranks.size)
        n_episodes = dataset.episodes.n_episodes
        enough = n_episodes > 1 or not (self.self_normalize or self._leaves_out)
        require(enough, "number of episodes", n_episodes, "at least 2 with these options")
        recorded_episodes = replace(dataset.episodes, final_observations=None)
        if not self.bootstraps:
            no_values = th.zeros_like(recorded_episodes.bootstrap_values)
            recorded_episodes = replace(recorded_episodes, bootstrap_values=no_values)
        for n_done in range(n_updates):
            self._update_current_progress_remaining(n_done, n_updates)
            set_action_std(self)
            episodes = self._with_present_values(recorded_episodes)
            recorded = ReplayedBatch(episodes, dataset.log_prob, policy={}, number=0)
            alive = self._update(self._off_policy_batch([recorded]), episodes, at_least=0)
            self.logger.dump(self.num_timesteps + n_done + 1)
            if not alive:
                break
        return self

    def _log_weights(self, log_prob: th.Tensor, batch: OffPolicyBatch) -> th.Tensor:
        """The logarithms of the weights, neither truncated nor normalised, from log π_θ(a_t|s_t), ``(M,)``."""
        return log_weights(self.weights, log_prob - batch.log_prob, batch.episodes.episode) - batch.log_mixture

    def _clipped(self, log_w: th.Tensor) -> th.Tensor:
        """The logarithms of the weights, of which none is above ``weight_clip``; the weights are logged."""
        if self.weight_clip is not None:
            log_w = log_w.clamp(max=math.log(self.weight_clip))
        weights = importance_weights(self.ranks.gathered(log_w))
        self.logger.record("train/weight_max", weights.max().item())
        self.logger.record("train/weight_mean", weights.mean().item())
        return log_w

    def _live_batches(self) -> list[ReplayedBatch]:
        """The new batch, and the old ones that the policy has not moved away from."""
        *old, new = self.replay_buffer.some()
        if self.min_ess == 0:
            return self.replay_buffer.batches

        def share(batch: ReplayedBatch) -> float:
            log_ratio = self._log_prob(batch.episodes) - batch.log_prob
            log_w = log_weights(self.weights, log_ratio, batch.episodes.episode)
            return self._effective_share(log_w, batch.episodes)

        return [*(batch for batch in old if share(batch) >= self.min_ess), new]

    def _effective_share(self, log_w: th.Tensor, episodes: EpisodeBatch) -> float:
        """ESS/N of the episodes of all ranks."""
        steps = log_w, self.ranks.numbered(episodes.episode)
        return effective_share(self.weights, *map(self.ranks.gathered, steps))

    def _off_policy_batch(self, batches: list[ReplayedBatch]) -> OffPolicyBatch:
        """All their episodes, and the constants of their gradient."""
        episodes_of = [batch.episodes for batch in batches]
        log_prob = th.cat([batch.log_prob for batch in batches])
        log_mixture, group = th.zeros_like(log_prob), None
        if self.mixture == "balance" and len(batches) > 1:
            episodes_of = [self._with_present_values(episodes) for episodes in episodes_of]
            log_mixture = th.cat([self._log_mixture(batch, batches) for batch in batches])
            # Without one episode of one policy only, the mean of a baseline would depend on whose it is, and not cancel
            # in the mixture; without one of each it does not.
            group = th.cat([th.arange(episodes.n_episodes, device=self.device) for episodes in episodes_of])
        episodes = concatenated(episodes_of)
        returns = self._returns(episodes)
        if self.weights == "per_decision":  # its return has the weights in it
            advantages = -self._baseline(episodes, returns, group)
        else:
            advantages = self._advantages(episodes, returns, group)
        return OffPolicyBatch(episodes, advantages, log_prob, log_mixture, group)

    def _log_mixture(self, batch: ReplayedBatch, batches: list[ReplayedBatch]) -> th.Tensor:
        """How much more likely the mixture of all policies makes a batch's steps than its own, ``(M,)``."""
        of_others = (self.replay_buffer.log_prob(batch, other, self._log_prob_under) for other in batches)
        log_w = [log_weights(self.weights, x - batch.log_prob, batch.episodes.episode) for x in of_others]
        n_episodes = th.tensor([other.episodes.n_episodes for other in batches], device=self.device)
        n_episodes = self.ranks.sum(n_episodes)
        return log_mixture(th.stack(log_w), n_episodes / n_episodes.sum())

    def _log_prob_under(self, episodes: EpisodeBatch, policy: dict[str, th.Tensor]) -> th.Tensor:
        """:meth:`_log_prob` with the numbers of another policy."""
        own = {name: tensor.clone() for name, tensor in self.policy.state_dict().items() if name in policy}
        try:
            self.policy.load_state_dict(policy, strict=False)
            return self._log_prob(episodes)
        finally:
            self.policy.load_state_dict(own, strict=False)

    def _numbers_of_policy(self) -> dict[str, th.Tensor]:
        """A copy of all that the distribution depends on, frozen or not: name → tensor."""
        of_critic_alone = critic_parameters(self.policy)
        numbers = self.policy.state_dict()
        return {name: tensor.clone() for name, tensor in numbers.items() if name not in of_critic_alone}

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """SB3's: write the batches kept, and the policies that played them; ranks beside 0 to files of their own."""
        self.replay_buffer.save(self.ranks.own_file(path), self.verbose)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """SB3's, of files that you trust. All episodes are finished, whatever ``truncate_last_traj`` says."""
        replay = EpisodeReplay.load(self.ranks.own_file(path), self.device, self.verbose)
        replay.require_fitting(self.policy.state_dict(), policy_parameters(self.policy).keys())
        self._take_over(replay)

    def _check_arguments(self) -> None:
        require_count("gradient_steps", self.gradient_steps)
        require_one_of("weights", self.weights, WEIGHTS)
        if self.weight_clip is not None:
            require_positive("weight_clip", self.weight_clip)
        require_bool("self_normalize", self.self_normalize)
        require_count("replay_batches", self.replay_batches, at_least=0)
        require_one_of("mixture", self.mixture, ("balance", "own"))
        require_fraction("min_ess", self.min_ess)
        super()._check_arguments()
        if self.use_sde and self.weights != "per_step":
            # Noise that several steps share makes the likelihood of an episode another than the product of its steps'.
            reason = f"1 with use_sde=True and weights={self.weights!r}"
            require(self.sde_sample_freq == 1, "sde_sample_freq", self.sde_sample_freq, reason)
        if self.self_normalize:
            require_count("n_episodes", self.n_episodes, at_least=2)

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """See :meth:`~sb3_pgext.algorithms.base.PolicyGradientAlgorithm.ineffective_arguments`."""
        arguments = super().ineffective_arguments()
        if self.weights == "per_decision":
            reason = "with weights='per_decision', where the returns change with the weights"
            arguments["normalize_advantage"] = (False, reason)
        if self.replay_batches == 0:
            arguments["mixture"] = ("balance", "(the default) with replay_batches=0: there is a single policy")
        return arguments

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "replay_buffer"]

"""What the algorithms of the family share: whose parameter is whose, the two gradient steps, checks and logging."""

import math
import os
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import gymnasium as gym
import torch as th
from gymnasium.vector.utils import concatenate, create_empty_array
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from stable_baselines3.common.utils import get_device, obs_as_tensor
from torch.nn import functional as F

from sb3_pgext.algorithms.distributions import log_prob_and_entropy
from sb3_pgext.arguments import (
    python_number,
    require,
    require_bool,
    require_count,
    require_fraction,
    require_number,
    require_one_of,
    require_schedule,
)
from sb3_pgext.engine.compiled import compiled_acting
from sb3_pgext.engine.descent import descending
from sb3_pgext.engine.evaluation import differentiable, evaluated, evaluation_mode
from sb3_pgext.engine.graphs import has_own_methods
from sb3_pgext.engine.nested import minibatches, rows
from sb3_pgext.rollouts import StepBuffer
from sb3_pgext.rollouts.acting import ActingAlgorithm, has_sb3s, unvalidated_distributions

__all__ = [
    "CompilingAlgorithm",
    "PolicyGradientAlgorithm",
    "critic_parameters",
    "forget_dependencies",
    "policy_parameters",
]


_dependencies: "WeakKeyDictionary[ActorCriticPolicy, dict[str, tuple[Hashable, list[str]]]]" = WeakKeyDictionary()
"""Policy → output → its parameters when they were last asked for, and the names of those that the output depends on."""

_DETERMINISTIC_EXTRACTORS = (FlattenExtractor, NatureCNN, CombinedExtractor)
"""SB3's, which compute the same features of an observation each time, whichever others are in the batch."""

_THEIR_PARTS = (th.nn.Sequential, th.nn.ModuleDict, th.nn.Conv2d, th.nn.Linear, th.nn.ReLU, th.nn.Flatten)

_UNCHECKED_BY_SB3: dict[str, Any] = {
    "policy_kwargs": None,
    "rollout_buffer_kwargs": None,
    "stats_window_size": 100,
    "tensorboard_log": None,
    "verbose": 0,
    "seed": None,
    "device": "auto",
    "use_sde": False,
}
"""Arguments that SB3's constructors use, or keep, without looking at them, and their defaults."""


def policy_parameters(policy: ActorCriticPolicy) -> dict[str, th.nn.Parameter]:
    """
    The parameters that the action distribution depends on, as autograd sees it; frozen ones are not among them.

    :param policy: any actor-critic policy
    :return: name → parameter, in the order of ``policy.parameters()``; P numbers in all
    """

    def log_prob(observations: PyTorchObs) -> th.Tensor:
        distribution = policy.get_distribution(observations)
        return distribution.log_prob(distribution.mode())

    return _parameters_of(policy, "log_prob", log_prob)


def critic_parameters(policy: ActorCriticPolicy) -> dict[str, th.nn.Parameter]:
    """
    The parameters that only the values depend on. What the distribution depends on too belongs to the policy.

    :param policy: any actor-critic policy
    :return: name → parameter, in the order of ``policy.parameters()``
    """
    of_values, of_policy = _parameters_of(policy, "values", policy.predict_values), policy_parameters(policy)
    return {name: parameter for name, parameter in of_values.items() if name not in of_policy}


def forget_dependencies(policy: ActorCriticPolicy) -> None:
    """Before each update: a hook, or a switch of the policy's own, may change what depends on what."""
    _dependencies.pop(policy, None)


def _parameters_of(
    policy: ActorCriticPolicy, output: str, compute: Callable[[PyTorchObs], th.Tensor]
) -> dict[str, th.nn.Parameter]:
    """
    Those that an output depends on. Found out once per update, and anew when the policy has other parameters or other
    ones are frozen.
    """
    named = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    present = tuple((name, id(p)) for name, p in named.items())
    known = _dependencies.setdefault(policy, {})
    if output not in known or known[output][0] != present:
        # Not validated: an observation from a space without bounds may be too large for the network, and what depends
        # on what can be seen all the same.
        with evaluation_mode(policy), unvalidated_distributions(), th.enable_grad():
            value = compute(_any_observations(policy))
            gradients = _gradients(value, list(named.values()))
        known[output] = present, [name for name, g in zip(named, gradients, strict=True) if g is not None]
    return {name: named[name] for name in known[output][1]}


def _gradients(output: th.Tensor, parameters: list[th.nn.Parameter]) -> Sequence[th.Tensor | None]:
    """Of its sum; None for those that it does not depend on."""
    if not output.requires_grad:
        return [None] * len(parameters)
    return th.autograd.grad(output.sum(), parameters, allow_unused=True)


def _any_observations(policy: ActorCriticPolicy) -> PyTorchObs:
    """Two observations of the policy's space, drawn from a generator of their own."""
    space = deepcopy(policy.observation_space)
    space.seed(0)
    rows = [space.sample(), space.sample()]
    batch = concatenate(space, rows, create_empty_array(space, n=2))  # type: ignore[arg-type]
    return obs_as_tensor(batch, policy.device)  # type: ignore[arg-type]


def check_constructor_arguments(arguments: Mapping[str, Any]) -> None:
    """
    :param arguments: those of ``_UNCHECKED_BY_SB3``: name → value
    :raises ValueError: naming the argument, its value and what is allowed
    """
    device, seed, log = (arguments[name] for name in ("device", "seed", "tensorboard_log"))
    try:
        suitable = isinstance(device, (str, th.device)) and math.isfinite(th.zeros(1, device=get_device(device)).item())
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ValueError(f"device={device!r}: allowed is one that torch finds here, or 'auto'. {error}") from error
    require(suitable, "device", device, "one of torch's, or 'auto'")
    if seed is not None:
        require_count("seed", seed, at_least=0, at_most=2**32 - 1)
    require(log is None or isinstance(log, (str, os.PathLike)), "tensorboard_log", log, "None or a folder")
    require_count("verbose", arguments["verbose"], at_least=0)
    require_count("stats_window_size", arguments["stats_window_size"])
    require_bool("use_sde", arguments["use_sde"])
    for argument in ("policy_kwargs", "rollout_buffer_kwargs"):
        value = arguments[argument]
        named = isinstance(value, dict) and all(isinstance(name, str) for name in value)
        require(value is None or named, argument, value, "None or a dict of arguments by name")


def check_common_arguments(model: OnPolicyAlgorithm) -> None:
    """
    The arguments that every algorithm of the family has.

    :param model: not yet set up
    :raises ValueError: naming the argument, its value and what is allowed
    """
    policy = model.policy_class
    suitable = isinstance(policy, type) and issubclass(policy, ActorCriticPolicy)
    suitable = suitable and not issubclass(policy, RecurrentActorCriticPolicy)
    name = getattr(policy, "__name__", policy)
    require(suitable, "policy", name, "an ActorCriticPolicy class that is not recurrent")
    methods = ("forward", "evaluate_actions", "get_distribution")
    own = [method for method in methods if _overrides(policy, method)]
    whole = len(own) in (0, len(methods))
    require(whole, "policy", name, f"one that overrides all of {', '.join(methods)}, or none, not {own} alone")
    require_fraction("gamma", model.gamma)
    require_fraction("gae_lambda", model.gae_lambda)
    require_schedule("learning_rate", model.learning_rate)
    require_number("ent_coef", model.ent_coef, "a finite number")
    require_bool("compile", model.compile)  # type: ignore[attr-defined]
    if model.max_grad_norm is not None:
        require_number("max_grad_norm", model.max_grad_norm, "None or a number > 0", at_least=math.ulp(0.0))
    if model.sde_sample_freq != -1:
        require_count("sde_sample_freq", model.sde_sample_freq)
        require(model.use_sde, "sde_sample_freq", model.sde_sample_freq, "-1 without use_sde=True")


def check_step_buffer(model: OnPolicyAlgorithm) -> None:
    """
    The buffer class of the algorithms with fixed-length rollouts.

    :param model: not yet set up
    :raises ValueError: it is not one that hands out whole rollouts
    """
    buffer = model.rollout_buffer_class
    suitable = buffer is None or (isinstance(buffer, type) and issubclass(buffer, StepBuffer))
    require(suitable, "rollout_buffer_class", buffer, "None or a subclass of StepBuffer")


def require_finite_losses(what: str, losses: th.Tensor, update: int) -> None:
    """
    :param what: name of the loss, for the message
    :param losses: of the gradient steps of an update, one after the other, ``(K,)``
    :param update: its number, for the message
    :raises ValueError: naming the first step whose loss is not finite
    """
    finite = losses.isfinite()
    if not finite.all():
        k = int((~finite).nonzero()[0])
        require(False, what, losses[k].item(), f"a finite number (update {update}, gradient step {k})")


def flat_gradient(output: th.Tensor, parameters: list[th.nn.Parameter], retain_graph: bool = False) -> th.Tensor:
    """
    The gradient as one vector.

    :param output: scalar
    :param parameters: what to differentiate for; those it does not depend on get 0
    :param retain_graph: whether another output of the same forward pass is to be differentiated, too
    :return: ``(P,)``
    """
    gradients = th.autograd.grad(
        output, parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
    )
    return th.cat([g.flatten() for g in gradients])


def standardize(x: th.Tensor) -> th.Tensor:
    """
    Subtract the mean and divide by the standard deviation, as SB3 does with advantages.

    :param x: ``(M,)``; returned as it is for M = 1, where there is no deviation
    :return: ``(M,)``
    """
    return (x - x.mean()) / (x.std() + 1e-8) if len(x) > 1 else x


def explained_variance(predictions: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """
    1 - Var(y - V) / Var(y); NaN where the targets do not vary. SB3's, without leaving the device.

    :param predictions: V, ``(M,)``
    :param targets: y, ``(M,)``
    :return: scalar
    """
    variance = targets.var(correction=0)
    return th.where(variance > 0, 1 - (targets - predictions).var(correction=0) / variance, th.nan)


def minibatch_means(x: th.Tensor, sizes: list[int]) -> th.Tensor:
    """
    :param x: of K minibatches' steps, one minibatch after the other, ``(M,)``
    :param sizes: number of steps of each minibatch, M together. All but the last one are equal
    :return: the mean of each minibatch, ``(K,)``
    """
    last = x[-sizes[-1] :].mean(dtype=th.float32)
    return th.cat([x[: -sizes[-1]].view(len(sizes) - 1, sizes[0]).mean(1, dtype=th.float32), last[None]])


class CompilingAlgorithm(ActingAlgorithm):
    """Acting and evaluating, compiled with ``compile=True``, and what the graphs of an algorithm depend on."""

    batch_argument: ClassVar[str]
    compile: bool = False
    max_grad_norm: float | None  # type: ignore[assignment]

    def __init__(self, policy: str | type[BasePolicy], env: GymEnv | str | None, **arguments: Any):
        name = getattr(policy, "__name__", policy)
        require(isinstance(policy, (str, type)), "policy", name, "a name or an ActorCriticPolicy class")
        if isinstance(policy, str):
            require_one_of("policy", policy, self.policy_aliases)
        check_constructor_arguments(_UNCHECKED_BY_SB3 | arguments)
        require_count(self.batch_argument, arguments["n_steps"])
        arguments = {name: python_number(value) for name, value in arguments.items()}
        try:
            super().__init__(policy, env, **arguments)  # type: ignore[arg-type]
        except gym.error.DependencyNotInstalled:
            raise
        except gym.error.Error as error:
            raise ValueError(f"env={env!r}: allowed is an environment or the id of one. {error}") from error

    def _setup_model(self) -> None:
        require(hasattr(self, "observation_space"), "env", None, "an environment or the id of one")
        self._check_arguments()
        try:
            super()._setup_model()
        except Exception as error:  # whatever a policy, torch or an optimizer may raise
            if not (self.policy_kwargs or self.rollout_buffer_kwargs):
                raise
            raise ValueError(
                f"policy={self.policy_class.__name__!r}, policy_kwargs={self.policy_kwargs!r}, rollout_buffer_kwargs="
                f"{self.rollout_buffer_kwargs!r}: allowed is what can be built together. {error}"
            ) from error

    def _check_arguments(self) -> None:
        """
        Subclasses extend this with their own arguments.

        :raises ValueError: naming the argument, its value and what is allowed
        """
        check_common_arguments(self)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """SB3's, but never below 0: the last batch may go past the end, where a linear schedule would be negative."""
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self._current_progress_remaining = max(0.0, self._current_progress_remaining)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        """SB3's, of a schedule that is a number everywhere."""
        progress = self._current_progress_remaining
        require_schedule(f"learning_rate at progress {progress:.3g}", self.lr_schedule(progress))
        super()._update_learning_rate(optimizers)

    def _values(self, observations: PyTorchObs) -> th.Tensor:
        """Some rows at a time."""
        return evaluated(self.policy, super()._values, (observations,))

    def _graph_key(self, *dependencies: Hashable) -> Hashable:
        """
        :param dependencies: what a loss depends on, beside the policy's parameters and the minibatch
        :return: the key of its graph. None where there is to be none: compiling is what a user asks for, while a loss
            of a class of the user's own is recorded only if they do
        """
        ours = type(self).__module__.startswith(f"{__package__}.") and not has_own_methods(self)
        return dependencies if ours or self.compile else None

    def _evaluation_key(self, *dependencies: Hashable) -> Hashable:
        """
        :param dependencies: what a function of the policy depends on, beside its arguments
        :return: the key to compile it with, if anything is to be compiled. gSDE keeps numbers outside the parameters
        """
        return dependencies if self.compile and not self.use_sde else None

    def _acting_policy(self) -> Callable[[PyTorchObs], Sequence[th.Tensor]]:
        """Compiled, or not: gSDE draws its noise beforehand and keeps it outside the networks' parameters."""
        return compiled_acting(self.policy) if self.compile and not self.use_sde else super()._acting_policy()


class PolicyGradientAlgorithm(CompilingAlgorithm):
    """
    The two steps of every policy-gradient method: along the gradient with the policy, by regression with the critic.

    Both use ``policy.optimizer``, and each moves only parameters of its own: an optimizer leaves alone what has no
    gradient.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }
    suboptions: ClassVar[Mapping[str, str]] = {}
    """Arguments that belong to single values of another one: name → that other one."""

    def _begin_update(self) -> None:
        """Training mode and learning rate, as SB3's algorithms do first of all."""
        forget_dependencies(self.policy)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _evaluate(
        self, observations: PyTorchObs, actions: th.Tensor, in_parts: bool = True
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        The current policy on the steps of a batch. The critic is not evaluated.

        :param observations: ``(M, *observation shape)``
        :param actions: ``(M, …)``
        :param in_parts: see :func:`~sb3_pgext.engine.evaluation.differentiable`; for one gradient only
        :return: log π(a_t|s_t), ``(M,)``, and the mean entropy, a scalar, both differentiable
        """

        def of_rows(observations: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
            return log_prob_and_entropy(self.policy.get_distribution(observations), actions)

        batch = (observations, actions)
        log_prob, entropy = differentiable(self.policy, of_rows, batch) if in_parts else of_rows(*batch)
        return log_prob, entropy.mean()

    def _ascend(self, gradient: th.Tensor, parameters: list[th.nn.Parameter]) -> None:
        """
        One optimizer step with the policy's parameters.

        :param gradient: ĝ, of what is to be made larger, ``(P,)``
        :param parameters: the policy's
        :raises ValueError: ĝ is not finite; the parameters are as they were
        """
        norm = gradient.norm().item()
        require(math.isfinite(norm), "policy gradient norm", norm, f"a finite number (update {self._n_updates})")
        self.logger.record("train/grad_norm", norm)
        descent = (-gradient).split([p.numel() for p in parameters])
        self._step(parameters, [d.view_as(p) for d, p in zip(descent, parameters, strict=True)])
        self._log_std()

    def _log_std(self) -> None:
        """SB3's ``train/std``, of policies that have one."""
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())

    def _fit_critic(
        self, observations: PyTorchObs, targets: th.Tensor, values: th.Tensor, n_epochs: int, batch_size: int
    ) -> None:
        """
        Minibatch regression of V(s_t) on the targets.

        :param observations: ``(M, *observation shape)``
        :param targets: y_t, ``(M,)``
        :param values: V(s_t) before the fit, ``(M,)``, for the log
        :param n_epochs: passes over the M steps
        :param batch_size: minibatch size
        :raises ValueError: the loss is not finite
        """
        parameters = list(critic_parameters(self.policy).values())
        if not parameters:  # all frozen
            return

        inputs, values_of = self._inputs_of_critic(observations, parameters)

        def loss_function(minibatch: PyTorchObs, wanted: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
            loss = F.mse_loss(values_of(minibatch).flatten(), wanted)
            return loss, loss.detach()

        losses = []
        # A batch of whole episodes that is shorter than a minibatch has another shape each time.
        key = self._graph_key("critic", inputs is observations) if len(targets) >= batch_size else None
        optimizer = self.policy.optimizer
        with descending(
            self.policy,
            optimizer,
            parameters,
            loss_function,
            self.max_grad_norm,
            fused=True,
            key=key,
            compile=self.compile,
        ) as descend:
            for _ in range(n_epochs):
                order = th.randperm(len(targets), device=targets.device)
                for minibatch in minibatches(rows((inputs, targets), order), batch_size):
                    loss, _, _ = descend(*minibatch)
                    losses.append(loss)
        of_steps = th.stack(losses)
        require_finite_losses("value loss", of_steps, self._n_updates)
        self.logger.record("train/value_loss", of_steps.mean().item())
        self.logger.record("train/explained_variance", explained_variance(values, targets).item())

    def _inputs_of_critic(
        self, observations: PyTorchObs, moved: list[th.nn.Parameter]
    ) -> tuple[PyTorchObs, Callable[[PyTorchObs], th.Tensor]]:
        """
        What V is a function of while it is fitted: the features, where the fit leaves them as they are.

        SB3 shares the features extractor between policy and critic, so that it is the policy's, and the same images
        would go through it in each pass over the rollout.

        :param observations: ``(M, *observation shape)``
        :param moved: the parameters that the fit moves
        :return: the inputs, M of them, and the function of a minibatch of them to V
        """
        policy = self.policy
        if not has_sb3s(policy, "predict_values", "extract_features"):
            return observations, policy.predict_values
        extractor = policy.vf_features_extractor
        fixed = {id(p) for p in extractor.parameters()}.isdisjoint(map(id, moved))
        if not fixed or not _is_deterministic(extractor):
            return observations, policy.predict_values

        def values_of(features: Any) -> th.Tensor:
            return policy.value_net(policy.mlp_extractor.forward_critic(features))

        with th.no_grad():
            features = BasePolicy.extract_features(policy, observations, extractor)  # as predict_values does
        return features, values_of

    def _step(self, parameters: list[th.nn.Parameter], gradients: Collection[th.Tensor]) -> None:
        """One optimizer step that moves these parameters and no others."""
        self.policy.optimizer.zero_grad(set_to_none=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.max_grad_norm is not None:
            th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self.policy.optimizer.step()


def _is_deterministic(extractor: th.nn.Module) -> bool:
    """Whether it is one of SB3's, and no part of it is a user's, such as dropout, or has been changed."""
    parts = list(extractor.modules())
    changed = any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in parts)
    known = type(extractor) in _DETERMINISTIC_EXTRACTORS
    return known and not changed and all(type(m) in _DETERMINISTIC_EXTRACTORS + _THEIR_PARTS for m in parts)


def _overrides(policy_class: type, method: str) -> bool:
    return getattr(policy_class, method) is not getattr(ActorCriticPolicy, method)

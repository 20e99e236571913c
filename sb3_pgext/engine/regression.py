"""Minibatch regression of a critic."""

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

from sb3_pgext.engine.eager import Engine
from sb3_pgext.engine.nested import minibatches, rows
from sb3_pgext.engine.plain import foreign_part, has_sb3s

__all__ = ["regress"]


def regress(
    engine: Engine,
    parameters: Sequence[th.nn.Parameter],
    observations: PyTorchObs,
    targets: th.Tensor,
    n_passes: int,
    batch_size: int,
    max_norm: float | None = None,
    actions: th.Tensor | None = None,
    n_minibatches: int = 0,
) -> th.Tensor:
    """
    Fit V(s_t), or Q(s_t, a_t), to targets by minibatch gradient descent on the squared error.

    :param engine: of the policy whose critic is fitted
    :param parameters: the critic's
    :param observations: ``(M, *observation shape)``, or a dict of such tensors
    :param targets: y_t, ``(M,)``
    :param n_passes: passes over the M steps
    :param batch_size: minibatch size
    :param max_norm: maximum norm of the gradient of a step; None for no limit
    :param actions: a_t where the critic is one of Q, ``(M, …)``
    :param n_minibatches: of a pass, at least: empty ones follow, where another process has more
    :return: the losses of the K steps, ``(K,)``
    """
    policy: Any = engine.policy
    of_q = actions is not None
    inputs, critic = _inputs(policy, observations, parameters, of_q)
    columns = (inputs, targets, actions) if of_q else (inputs, targets)

    def mean_squared_error(minibatch: PyTorchObs, wanted: th.Tensor, *taken: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        loss = F.mse_loss(critic(minibatch, *taken).flatten(), wanted)
        return loss, loss.detach()

    losses = []
    key = inputs is observations
    with engine.descending(
        policy.optimizer, parameters, mean_squared_error, max_norm, fused=True, key=key, batch_size=batch_size
    ) as descend:
        for _ in range(n_passes):
            order = th.randperm(len(targets), device=targets.device)
            of_pass = [*minibatches(rows(columns, order), batch_size)]
            of_pass += [rows(columns, slice(0))] * (n_minibatches - len(of_pass))
            for minibatch in of_pass:
                loss, _, _ = descend(*minibatch)
                losses.append(loss)
    return th.stack(losses)


def _inputs(
    policy: Any, observations: PyTorchObs, moved: Sequence[th.nn.Parameter], of_q: bool = False
) -> tuple[PyTorchObs, Callable[..., th.Tensor]]:
    """
    The inputs of the critic while it is fitted, and V as a function of them, or Q as one of them and actions: features,
    where the fit leaves them alone.

    SB3 shares the features extractor between policy and critic, so that it is the policy's, and the same images would
    go through it in each pass over the rollout.
    """
    critic = policy.q_values if of_q else policy.predict_values
    methods = ("predict_values", "extract_features")
    plain = not foreign_part(policy) if of_q else has_sb3s(policy, ActorCriticPolicy, *methods)
    if not plain or not _computes_the_same_again(policy.vf_features_extractor):
        return observations, critic
    extractor = policy.vf_features_extractor
    if not {id(p) for p in extractor.parameters()}.isdisjoint(map(id, moved)):
        return observations, critic
    with th.no_grad():
        features = BasePolicy.extract_features(policy, observations, extractor)  # as predict_values does
    if of_q:
        return features, policy.q_of_features
    return features, lambda x: policy.value_net(policy.mlp_extractor.forward_critic(x))


_WITHOUT_STATE = (BaseFeaturesExtractor, nn.Sequential, nn.ModuleDict, nn.Conv2d, nn.Linear, nn.ReLU, nn.Flatten)
"""The parts of SB3's extractors; unlike dropout and batch norm, each computes the same of an observation again."""


def _computes_the_same_again(extractor: nn.Module) -> bool:
    return not foreign_part(extractor) and all(isinstance(part, _WITHOUT_STATE) for part in extractor.modules())

"""The coefficient of the entropy and the entropy that it is to keep, as SAC has them."""

import math
import re
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_pgext.algorithms.distributions import largest_entropy
from sb3_pgext.arguments import require, require_number

__all__ = ["Temperature", "default_target_entropy", "initial_ent_coef", "require_temperature"]


class Temperature(th.nn.Module):
    """
    The coefficient α of the entropy where it is learnt, by its logarithm.

    :param ent_coef: see :func:`initial_ent_coef`
    """

    def __init__(self, ent_coef: str):
        super().__init__()
        self.log_ent_coef = th.nn.Parameter(th.log(th.ones(1) * initial_ent_coef(ent_coef)))

    def loss(self, log_prob: th.Tensor, target_entropy: float) -> tuple[th.Tensor, th.Tensor]:
        """
        A step against its gradient makes α larger where the entropy is below its target (Haarnoja et al. 2018, with
        log α in the place of α, as in SB3).

        :param log_prob: log π(a|s) of a minibatch, ``(B,)``
        :param target_entropy: what the entropy is kept at
        :return: the loss, and once more without a graph
        """
        loss = -(self.log_ent_coef * (log_prob + target_entropy)).mean()
        return loss, loss.detach()


def initial_ent_coef(ent_coef: str) -> float:
    """
    The first α of one that is learnt.

    :param ent_coef: ``"auto"`` or ``"auto_0.1"``
    :return: 1 or 0.1
    """
    return float(ent_coef.partition("_")[2] or 1.0)


def default_target_entropy(space: spaces.Space, share: float) -> float:
    """
    The entropy that ``target_entropy="auto"`` stands for.

    :param space: action space
    :param share: of the largest entropy, for discrete actions (Christodoulou 2019)
    :return: -dim(A) for a Box (Haarnoja et al. 2018)
    """
    if isinstance(space, spaces.Box):
        return float(-np.prod(space.shape).astype(np.float32))
    return share * largest_entropy(space)


def require_temperature(ent_coef: Any, target_entropy: Any, space: spaces.Space, learns: bool | None) -> None:
    """
    Check both arguments.

    :param ent_coef: a number, ``"auto"`` or ``"auto_0.1"``
    :param target_entropy: a number or ``"auto"``
    :param space: action space
    :param learns: whether the model was made to learn α; None if it is being made
    :raises ValueError: naming the argument, its value and what is allowed
    """
    allowed = "a number >= 0, 'auto', or 'auto_' and a number > 0"
    if isinstance(ent_coef, str):
        first = re.fullmatch(r"auto(_[0-9.eE+-]+)?", ent_coef)
        try:
            positive = first is not None and 1e37 > initial_ent_coef(ent_coef) > 1e-37  # in single precision, too
        except ValueError:
            positive = False
        require(positive, "ent_coef", ent_coef, allowed)
    else:
        require_number("ent_coef", ent_coef, allowed, at_least=0.0)
    as_made = learns is None or learns == isinstance(ent_coef, str)
    kind = "'auto'" if learns else "a number"
    require(as_made, "ent_coef", ent_coef, f"{kind}, as when the model was made")
    if not (isinstance(target_entropy, str) and target_entropy == "auto"):
        least, most = -math.inf if isinstance(space, spaces.Box) else 0.0, largest_entropy(space)
        allowed = f"'auto' or a number in [{least}, {most:.4g}], the entropies that a policy can have"
        require_number("target_entropy", target_entropy, allowed, least, most)

"""Policies on finite MDPs for the laboratory's tests."""

import torch as th

from sb3_pgext import REINFORCE

HIDDEN_LAYER = {"net_arch": {"pi": [8], "vf": [8]}, "ortho_init": False}
"""SB3's default initialisation makes the policy nearly uniform; this one does not."""


def model_on(env, **parameters):
    return REINFORCE("MlpPolicy", env, **{"policy_kwargs": HIDDEN_LAYER, "seed": 0, "device": "cpu", **parameters})


def shift(policy, parameters, direction):
    """Move the parameters along a flat direction, in place."""
    with th.no_grad():
        for parameter, change in zip(parameters, direction.split([p.numel() for p in parameters]), strict=True):
            parameter += change.view_as(parameter)

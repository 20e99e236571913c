"""Models on finite MDPs, batches of their episodes, and what the estimators make of the same batch."""

from copy import deepcopy
from functools import partial
from unittest import mock

import torch as th
from stable_baselines3.common.logger import Logger

from sb3_pgext import REINFORCE
from sb3_pgext.estimators.statistics import flat_gradient

HIDDEN_LAYER = {"net_arch": {"pi": [8], "vf": [8]}, "ortho_init": False}
"""SB3's default initialisation makes the policy nearly uniform; this one does not."""


BATCH = {"n_episodes": "episodes", "n_steps": "rollout_buffer"}
"""Where a model has its batch, by what it collects."""


def model_on(env, cls=REINFORCE, **parameters):
    model = cls("MlpPolicy", env, **{"policy_kwargs": HIDDEN_LAYER, "seed": 0, "device": "cpu", **parameters})
    if "tensorboard_log" not in parameters:
        model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def collect_batches(model, n_batches):
    """Batches of the policy as it is."""
    _, callback = model._setup_learn(10**9)
    batches = []
    for _ in range(n_batches):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, getattr(model, model.batch_argument))
        batches.append(deepcopy(getattr(model, BATCH[model.batch_argument])))
    return batches


def estimates(model, batches, *options_of):
    """ĝ of each batch under each of these options, which do not influence how it is collected: ``(K, P)`` each."""
    samples = []
    for batch in batches:
        setattr(model, BATCH[model.batch_argument], batch)
        samples.append(present_estimates(model, options_of))
    return [th.stack(column) for column in zip(*samples, strict=True)]


def present_estimates(model, options_of):
    """ĝ of the batch that the model has, ``(P,)``, under each of the options."""
    gradients = []
    retaining = partial(flat_gradient, retain_graph=True)
    with (
        mock.patch.object(model, "_evaluate", asked_once(model._evaluate)),
        mock.patch("sb3_pgext.algorithms.episodic.flat_gradient", retaining),
        mock.patch("sb3_pgext.algorithms.vpg.flat_gradient", retaining),
    ):
        for options in options_of:
            for name, value in options.items():
                setattr(model, name, value)
            model.check_arguments()
            if model.batch_argument == "n_steps":
                model.collector.compute_advantages(model, model.rollout_buffer)
            gradients.append(model.estimate_gradient())
    return gradients


def asked_once(evaluate):
    """
    The policy is the same under all options: its graph is kept after the first time. Options with the balance heuristic
    come first: it loads the other policies, after which a graph is of no use.
    """
    answers = []

    def answer(observations, actions, in_parts=True):
        if not answers:
            answers.append(evaluate(observations, actions, in_parts=False))
        return answers[0]

    return answer

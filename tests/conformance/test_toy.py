"""Claim: an algorithm of somebody else's, off-policy and with two optimizers, gets what ours have."""

import warnings

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from tests.checkpoints.models import assert_same
from tests.toy_off_policy import ToyOffPolicy, gaussian_noise


def toy(**arguments):
    env = make_vec_env("Pendulum-v1", 1, seed=0)
    settings = {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}, "action_noise": gaussian_noise(env)}
    return ToyOffPolicy("MlpPolicy", env, **settings | arguments)


def vector_of(model):
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


def test_arguments_are_checked_as_ours_are():
    with pytest.raises(ValueError, match="learning_rate=-1"):
        toy(learning_rate=-1)
    with pytest.raises(ValueError, match=r"policy='CnnPolicy'.*'MlpPolicy'"):
        ToyOffPolicy("CnnPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match="compile=1"):
        toy(compile=1)


@pytest.mark.parametrize("poison", ["reward", "error"])
def test_a_failed_update_is_put_back(poison):
    """Networks, targets and both optimizers, after some of the steps have been taken."""
    model, twin = toy().learn(60), toy().learn(60)
    if poison == "reward":
        model.replay_buffer.rewards[:] = th.nan
        raised = pytest.raises(ValueError, match=r"loss=nan.*update \d+, gradient step 0")
    else:
        descend, taken = model._descend, []

        def failing(*arguments):
            taken.append(1)
            if len(taken) > 3:
                raise KeyboardInterrupt
            return descend(*arguments)

        model._descend = failing
        raised = pytest.raises(KeyboardInterrupt)
    with raised:
        model.train(5, 8)
    model.replay_buffer = twin.replay_buffer
    vars(model).pop("_descend", None)
    assert_same(model, twin)


@pytest.mark.compiler
def test_its_steps_are_compiled_and_see_its_arguments():
    """Up to rounding the same as uncompiled; another value of an argument has its effect at once."""
    models = [toy(compile=compile) for compile in (False, True)]
    for scale, gamma, n_steps in ((1.0, 0.99, 40), (3.0, 0.5, 30)):
        for model in models:
            model.reward_scale, model.gamma = scale, gamma
            model.set_random_seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # nothing runs uncompiled
                model.learn(n_steps, reset_num_timesteps=False)
        th.testing.assert_close(vector_of(models[1]), vector_of(models[0]), rtol=1e-3, atol=1e-5)

"""Claim: a given spread of the actions is that of the acting policy and of the update, at each time of its schedule."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import (
    ISPG,
    NPG,
    REINFORCE,
    VPG,
    CheckpointCallback,
    ClippedCriticPPO,
    OffPolicyActorCritic,
    load,
    resume,
    save,
)
from sb3_pgext.checkpoints.files import found
from sb3_pgext.engine import graphs
from tests.checkpoints.models import assert_same
from tests.environments import ACTIONS, VECTOR, AnySpaces
from tests.tracing import traced_only

FAMILY = {
    REINFORCE: {"n_episodes": 4},
    VPG: {"n_steps": 10, "batch_size": 10},
    NPG: {"n_steps": 10, "batch_size": 10, "n_critic_updates": 1},
    ClippedCriticPPO: {"n_steps": 10, "batch_size": 10, "n_epochs": 2},
    ISPG: {"n_episodes": 4, "gradient_steps": 2, "replay_batches": 1, "min_ess": 0.0},
    OffPolicyActorCritic: {
        "learning_starts": 4,
        "train_freq": 10,
        "ent_coef": 0.1,
        "batch_size": 8,
        "buffer_size": 100,
    },
}
UPDATE = 20
each_algorithm = pytest.mark.parametrize("algorithm", FAMILY, ids=lambda algorithm: algorithm.__name__)


def small(algorithm, action_std, space=ACTIONS["box"], **arguments):
    env = DummyVecEnv([lambda: AnySpaces(VECTOR, space)] * 2)
    return algorithm(
        "MlpPolicy",
        env,
        action_std=action_std,
        **{"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}} | FAMILY[algorithm] | arguments,
    )


def spread(model):
    """σ in two states, ``(2, action dim)``, as the distribution has it."""
    observations = th.tensor([[0.5, -0.5, 0.1], [0.0, 1.0, -1.0]])
    with th.no_grad():
        if isinstance(model, OffPolicyActorCritic):
            return model.actor.get_action_dist_params(observations)[1].exp()
        return model.policy.get_distribution(observations).distribution.stddev


class Spreads(BaseCallback):
    """σ at each step, and the progress at the beginning of its rollout."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_rollout_start(self):
        self.progress = 1 - self.model.num_timesteps / self.model._total_timesteps

    def _on_step(self):
        self.seen.append((self.progress, spread(self.model)))
        return True


@each_algorithm
def test_a_number_stays_and_everything_else_learns(algorithm):
    model, spreads = small(algorithm, 0.3), Spreads()
    before = {name: p.clone() for name, p in model.policy.named_parameters()}
    th.testing.assert_close(spread(model), th.full((2, 2), 0.3))
    model.learn(3 * UPDATE, spreads)
    for _, std in spreads.seen:
        th.testing.assert_close(std, th.full((2, 2), 0.3))
    for name, p in model.policy.named_parameters():
        frozen = "log_std" in name
        assert th.equal(p, before[name]) == (frozen or not before[name].numel()), name
        assert p.requires_grad != frozen, name


@each_algorithm
def test_a_schedule_is_followed_also_in_a_second_training(algorithm):
    """Each rollout has the σ of the progress at its beginning."""
    model, spreads = small(algorithm, lambda progress: 0.1 + progress), Spreads()
    model.learn(3 * UPDATE, spreads)
    model.learn(2 * UPDATE, spreads)
    model.learn(2 * UPDATE, spreads, reset_num_timesteps=False)
    assert len({progress for progress, _ in spreads.seen}) > 4
    for progress, std in spreads.seen:
        th.testing.assert_close(std, th.full((2, 2), 0.1 + progress))


@pytest.mark.parametrize("algorithm", [REINFORCE, VPG, ClippedCriticPPO, ISPG])
def test_the_step_of_the_mean_is_that_of_a_learnt_spread_of_the_same_size(algorithm):
    options = {
        ClippedCriticPPO: {"n_epochs": 1, "batch_size": 20, "max_grad_norm": None},
        ISPG: {"gradient_steps": 1},
    }.get(algorithm, {})
    given = small(algorithm, 0.5, **options).learn(UPDATE)
    started = {"policy_kwargs": {"net_arch": [8], "log_std_init": math.log(0.5)}}
    learnt = small(algorithm, None, **started, **options).learn(UPDATE)
    names, parameters = zip(*given.policy.named_parameters(), strict=True)
    for name, ours, theirs in zip(names, parameters, learnt.policy.parameters(), strict=True):
        if name == "log_std":
            assert not th.equal(ours, theirs)
        else:
            th.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("algorithm", [VPG, NPG, ClippedCriticPPO])
def test_log_probabilities_are_those_of_that_spread(algorithm):
    model = small(algorithm, lambda progress: 0.2 * progress + 0.1)
    _, callback = model._setup_learn(10**9)
    model._current_progress_remaining = 0.5
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    rollout = model.rollout
    with th.no_grad():
        mean = model.policy.get_distribution(rollout.observations).distribution.mean
    z = (rollout.actions - mean) / 0.2
    expected = (-0.5 * z**2 - math.log(0.2) - 0.5 * math.log(2 * math.pi)).sum(1)
    th.testing.assert_close(rollout.log_prob, expected)


def test_old_batches_keep_the_spread_that_they_were_played_with():
    """The numbers of the policy that played a batch are kept with it."""
    model = small(ISPG, lambda progress: 0.1 + progress)
    model.learn(2 * UPDATE)
    old, new = model.replay_buffer.batches
    assert old.policy["log_std"].exp().tolist() == pytest.approx([1.1, 1.1])
    assert new.policy["log_std"].exp().tolist() == pytest.approx([0.6, 0.6])
    under_old = model._log_prob_under(old.episodes, old.policy)
    th.testing.assert_close(under_old, old.log_prob)


def test_learning_from_recorded_episodes_follows_the_schedule():
    model = small(ISPG, 0.5)
    model.learn(UPDATE)
    dataset, seen = model.dataset(), []
    model.action_std = lambda progress: seen.append(progress) or 0.1 + progress
    model.learn_from(dataset, 4)
    assert seen[-4:] == [1.0, 0.75, 0.5, 0.25]
    assert spread(model)[0, 0].item() == pytest.approx(0.35)


@each_algorithm
def test_a_change_between_two_trainings(algorithm):
    model, spreads = small(algorithm, 0.5), Spreads()
    model.learn(UPDATE)
    model.action_std = 0.2
    model.learn(UPDATE, spreads)
    th.testing.assert_close(spreads.seen[0][1], th.full((2, 2), 0.2))
    model.action_std = None
    with pytest.raises(ValueError, match="action_std=None: allowed is a number or a schedule, as when"):
        model.learn(UPDATE)


@each_algorithm
def test_saved_and_resumed(algorithm, tmp_path):
    schedule = LinearSchedule(0.8, 0.1, 1.0)
    model = small(algorithm, schedule).learn(5 * UPDATE, CheckpointCallback(1, tmp_path / "run", keep=100))
    between = found(tmp_path / "run")[1:-1]
    checkpoint = between[len(between) // 2]
    other = resume(checkpoint, env=DummyVecEnv([lambda: AnySpaces(VECTOR, ACTIONS["box"])] * 2))
    th.testing.assert_close(spread(other), th.full((2, 2), 0.8 - 0.7 * (1 - other._current_progress_remaining)))
    model.save(tmp_path / "model.zip")
    save(model, tmp_path / "safe")
    for loaded in (algorithm.load(tmp_path / "model.zip"), load(tmp_path / "safe")):
        th.testing.assert_close(spread(loaded), spread(model))
        assert not any(p.requires_grad for name, p in loaded.policy.named_parameters() if "log_std" in name)


@pytest.mark.parametrize("algorithm", [VPG, OffPolicyActorCritic])
def test_resumed_to_the_bit(algorithm, tmp_path):
    def pendulum():
        return make_vec_env("Pendulum-v1", 2, seed=3, env_kwargs={"max_episode_steps": 15})

    options = {"seed": 0, "device": "cpu", "action_std": LinearSchedule(0.8, 0.1, 1.0)} | FAMILY[algorithm]
    model = algorithm("MlpPolicy", pendulum(), **options).learn(120, CheckpointCallback(1, tmp_path, keep=100))
    between = found(tmp_path)[1:-1]
    for checkpoint in between[:: max(1, len(between) // 2)]:
        other = resume(checkpoint)
        assert_same(model, other.learn(120 - other.num_timesteps, reset_num_timesteps=False))


@each_algorithm
def test_compiled_it_is_the_same(algorithm, monkeypatch):
    """The graphs see each new value: it is a parameter. (Traced graphs, in the place of compiled ones.)"""
    monkeypatch.setattr(graphs, "_compile", traced_only)
    models = [small(algorithm, lambda progress: 0.1 + progress, compile=c).learn(4 * UPDATE) for c in (False, True)]
    for ours, theirs in zip(*(m.policy.parameters() for m in models), strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@each_algorithm
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"action_std": 0.0}, r"action_std=0\.0: allowed is a finite number > 0, or a schedule"),
        ({"action_std": -1}, "action_std=-1"),
        ({"action_std": math.nan}, "action_std=nan"),
        ({"action_std": "small"}, "action_std='small'"),
        ({"action_std": len}, "action_std=.*TypeError"),
        (
            {"action_std": lambda progress: 0.0 * progress},
            r"action_std at progress 1=0\.0: allowed is a finite number > 0",
        ),
        ({"action_std": 0.5, "use_sde": True}, "action_std=0.5: allowed is None with use_sde=True"),
        (
            {"action_std": 0.5, "space": ACTIONS["discrete"]},
            "action_std=0.5: allowed is None on a Discrete action space",
        ),
    ],
)
def test_wrong_arguments(algorithm, arguments, named):
    with pytest.raises(ValueError, match=named):
        small(algorithm, **arguments)


def test_wrong_arguments_of_the_off_policy_actor_critic():
    with pytest.raises(ValueError, match="ent_coef='auto': allowed is a number with action_std"):
        small(OffPolicyActorCritic, 0.5, ent_coef="auto")
    with pytest.raises(ValueError, match=r"action_std=8\.0: allowed is a number in \[2\.06e-09, 7\.39\]"):
        small(OffPolicyActorCritic, 8.0)


class Spreadless(ActorCriticPolicy):
    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        del self.log_std


def test_a_policy_without_a_spread():
    env = AnySpaces(VECTOR, spaces.Box(-1, 1, (2,), np.float32))
    with pytest.raises(ValueError, match="policy='Spreadless': allowed is one with `log_std`"):
        VPG(Spreadless, env, action_std=0.5)


@each_algorithm
def test_a_schedule_that_falls_to_0_is_refused_where_it_does(algorithm):
    model = small(algorithm, lambda progress: max(0.0, progress - 0.5))
    with pytest.raises(ValueError, match=r"action_std at progress 0\.[0-9]+=0\.0: allowed is a finite number > 0"):
        model.learn(4 * UPDATE)

"""
Claim: at the policy that played the episodes ISPG is REINFORCE; away from it, its gradient is the one of its formula;
it stops, and forgets old batches, when the weights have died; and every option does something.
"""

import io
import itertools
import math
from dataclasses import replace

import pytest
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import ISPG, REINFORCE
from sb3_pgext.algorithms.parameters import critic_parameters, policy_parameters
from sb3_pgext.diagnostics import evaluate_off_policy, gradient_samples
from sb3_pgext.estimators.importance import WEIGHTS, per_decision_credit
from sb3_pgext.estimators.score_function import optimal_baseline_gradient
from sb3_pgext.estimators.statistics import flat_gradient
from sb3_pgext.rollouts import EpisodeBatch, EpisodeDataset
from tests.algorithms.test_reinforce import ACTIONS, DICT, VECTOR, ActionIsReward
from tests.environments import AnySpaces


def model_on(env="CartPole-v1", policy="MlpPolicy", algorithm=ISPG, **parameters):
    return algorithm(policy, env, **{"n_episodes": 4, "seed": 0, "device": "cpu", **parameters})


def collected(n_batches=1, **parameters):
    """A model that has played some batches, each with another policy."""
    model = model_on(make_vec_env("CartPole-v1", 2, seed=0), **parameters)
    _, callback = model._setup_learn(10**9)
    for k in range(n_batches):
        if k > 0:
            move(model, 0.02)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 4)
    return model


def move(model, distance):
    """Change the policy a little."""
    generator = th.Generator().manual_seed(0)
    for parameter in policy_parameters(model.policy).values():
        parameter.data += distance * th.randn(parameter.shape, generator=generator)


def parameters_after(steps=160, **parameters):
    """The parameters after a short training, as one vector."""
    model = model_on(make_vec_env("CartPole-v1", 2, seed=0), **{"gradient_steps": 3, **parameters}).learn(steps)
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


# --- the gradient ----------------------------------------------------------------------------------------------------

VARIANTS = [
    {},
    {"credit": "trajectory"},
    {"baseline": "none", "discount_weighting": True},
    {"baseline": "constant", "credit": "trajectory"},
    {"baseline": "time", "ent_coef": 0.1},
    {"baseline": "optimal"},
    {"baseline": "optimal", "credit": "trajectory"},
    {"max_episode_steps": 12},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_at_the_policy_that_acted_it_is_reinforce(options):
    model = collected(**options)
    reinforce = model_on(algorithm=REINFORCE, **options)
    reinforce.set_logger(model.logger)
    reinforce.policy.load_state_dict(model.policy.state_dict())
    reinforce.episodes = model.episodes
    theirs = reinforce.estimate_gradient()
    for model.weights, model.self_normalize in itertools.product(WEIGHTS, (False, True)):
        assert (model.estimate_gradient() - theirs).abs().max() <= 1e-6 * theirs.abs().max()


@pytest.fixture(scope="module")
def two_policies():
    """8 episodes of two policies, and of each batch: π of a third, μ of both, and the scores of the steps."""
    model = collected(2, replay_batches=1, min_ess=0.0, gamma=0.9, max_episode_steps=15)
    move(model, 0.05)
    parameters = list(policy_parameters(model.policy).values())
    of_batches = []
    for batch in model.replay_buffer.batches:
        e = batch.episodes
        mu = [model._log_prob_under(e, other.policy).double().exp().tolist() for other in model.replay_buffer.batches]
        log_prob = model.policy.get_distribution(e.observations).log_prob(e.actions)
        scores = [th.cat([g.flatten() for g in th.autograd.grad(x, parameters, retain_graph=True)]) for x in log_prob]
        of_batches.append((e, log_prob.detach().double().exp().tolist(), mu, th.stack(scores)))
    return model, of_batches


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("credit", ["reward_to_go", "trajectory"])
@pytest.mark.parametrize("weight_clip", [None, 1.05])
@pytest.mark.parametrize("mixture", ["balance", "own"])
def test_the_gradient_is_the_one_of_the_formula(two_policies, weights, credit, weight_clip, mixture):
    """Two policies, 8 episodes, the last of them truncated: a plain sum over episodes and steps."""
    model, of_batches = two_policies
    model.weights, model.credit, model.weight_clip, model.mixture = weights, credit, weight_clip, mixture
    estimate = 0.0
    for k, (e, pi, mu, scores) in enumerate(of_batches):
        factors = th.zeros(len(e))
        for i in range(4):
            steps = th.nonzero(e.episode == i).flatten().tolist()
            T, V = len(steps), e.bootstrap_values[i].item()
            r = [e.rewards[s].item() for s in steps]

            def W(first, last, steps=steps, k=k, pi=pi, mu=mu):
                denominators = [math.prod(m[steps[j]] for j in range(first, last + 1)) for m in mu]
                denominator = denominators[k] if mixture == "own" else sum(denominators) / 2
                ratio = math.prod(pi[steps[j]] for j in range(first, last + 1)) / denominator
                return ratio if weight_clip is None else min(ratio, weight_clip)

            G = [sum(0.9 ** (j - t) * r[j] for j in range(t, T)) + 0.9 ** (T - t) * V for t in range(T)]
            for t, s in enumerate(steps):
                b = e.values[s].item()
                weight = W(*{"trajectory": (0, T - 1), "per_step": (t, t)}.get(weights, (0, t)))
                credited = weight * (G[0] if credit == "trajectory" else G[t])
                if weights == "per_decision":
                    start = 0 if credit == "trajectory" else t
                    credited = sum(0.9 ** (j - start) * r[j] * W(0, max(j, t)) for j in range(start, T))
                    credited += 0.9 ** (T - start) * V * W(0, T - 1)
                factors[s] = credited - weight * b
        estimate += factors @ scores / 8
    th.testing.assert_close(model.estimate_gradient(), estimate, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("mixture", "of_the_present"), [("balance", True), ("own", False)])
def test_under_the_balance_heuristic_all_batches_have_one_critic(mixture, of_the_present):
    """The present one, also of the states in which episodes were cut, whatever was stored with each batch."""
    model = collected(2, replay_batches=1, mixture=mixture, min_ess=0.0, max_episode_steps=15, weights="trajectory")
    assert any(batch.episodes.truncated.any() for batch in model.replay_buffer.batches)
    before = model.estimate_gradient()
    for k, batch in enumerate(model.replay_buffer.batches):
        batch.episodes.values.fill_(100.0 * (k + 1))
        batch.episodes.bootstrap_values[batch.episodes.truncated] = -100.0 * k
    assert th.equal(before, model.estimate_gradient()) == of_the_present
    before = model.estimate_gradient()
    for parameter in critic_parameters(model.policy).values():
        parameter.data += 0.5
    assert th.equal(before, model.estimate_gradient()) != of_the_present


def test_the_optimal_baseline_has_the_weights_too():
    model = collected(baseline="optimal", weights="causal", gamma=0.9)
    move(model, 0.05)
    (batch,) = model.replay_buffer.batches
    e, parameters = batch.episodes, list(policy_parameters(model.policy).values())
    log_prob = model.policy.get_distribution(e.observations).log_prob(e.actions)
    ratio = (log_prob.detach() - batch.log_prob).exp()
    W = th.cat([ratio[e.episode == i].cumprod(0) for i in range(4)])
    G = th.tensor([sum(0.9 ** (k - t) for k in range(t, n)) for n in e.lengths.tolist() for t in range(n)])
    expected = optimal_baseline_gradient(log_prob, W * G, e.episode, 4, parameters, True, None, W)
    th.testing.assert_close(model.estimate_gradient(), expected, rtol=1e-3, atol=1e-4)


def test_normalised_advantages_are_weighted_afterwards():
    """What the gradient is taken of has mean 0 and deviation 1 when divided by the weights, not as it is."""
    model = collected(normalize_advantage=True, weights="causal")
    move(model, 0.05)
    batch = model._off_policy_batch(model.replay_buffer.batches)
    log_w = model._log_weights(model._log_prob(batch.episodes), batch)
    weighted = log_w.exp() * batch.advantages
    assert weighted.std().item() != pytest.approx(1, abs=1e-2)
    advantages = weighted / log_w.exp()
    assert advantages.mean().item() == pytest.approx(0, abs=1e-5)
    assert advantages.std().item() == pytest.approx(1, abs=1e-5)
    e, parameters = batch.episodes, list(policy_parameters(model.policy).values())
    log_prob = model.policy.get_distribution(e.observations).log_prob(e.actions)
    expected = flat_gradient((weighted * log_prob).sum() / 4, parameters)
    th.testing.assert_close(model.estimate_gradient(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("credit", ["reward_to_go", "trajectory"])
def test_a_small_return_is_not_lost_beside_a_large_weight(credit):
    """W_0 = 1e9 and W_{0:1} = 1: the only reward is weighted by 1 and stands for both steps."""
    model = collected(weights="per_decision", credit=credit, baseline="none", gamma=1.0, max_episode_steps=2)
    batch = model._off_policy_batch(model.replay_buffer.batches)
    assert batch.episodes.lengths.tolist() == [2] * 4
    batch.episodes.rewards.copy_(batch.episodes.time)
    weights = th.where(batch.episodes.time == 0, 1e9, 1.0)
    e = batch.episodes
    assert per_decision_credit(credit, e.rewards, weights, e.episode, e.time, 1.0).tolist() == [1.0] * 8


# --- the inner steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", WEIGHTS)
def test_it_learns(weights):
    """From fewer episodes than REINFORCE, see there."""
    model = model_on(
        make_vec_env(ActionIsReward, 16, seed=0), weights=weights, n_episodes=16, gamma=1.0, learning_rate=0.01
    ).learn(2000)
    assert model.policy.get_distribution(th.zeros(1, 2)).distribution.probs[0, 1] > 0.9


def logged(model, key):
    return model.logger.name_to_value[f"train/{key}"]


def test_the_inner_steps_end_when_the_weights_have_died():
    """With steps that are far too long, one of them is enough; without the limit all are taken."""
    for min_ess, expected in ((0.9, 1), (0.0, 10)):
        model = collected(learning_rate=1.0, min_ess=min_ess)
        model.train()
        assert logged(model, "gradient_steps") == expected
        assert logged(model, "ess") < 0.9
        assert logged(model, "weight_max") > 1.0


def test_one_step_of_one_batch_is_that_of_reinforce():
    """To the bit: weights of 1 round nothing."""
    ours, theirs = (
        model_on(make_vec_env("CartPole-v1", 2, seed=0), algorithm=algorithm, **more).learn(300).policy
        for algorithm, more in ((ISPG, {"gradient_steps": 1}), (REINFORCE, {}))
    )
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert th.equal(a, b)


def test_old_batches_are_used_while_they_are_worth_something():
    model = collected(4, replay_batches=2, min_ess=0.1)
    assert [batch.number for batch in model.replay_buffer.batches] == [1, 2, 3]
    model.train()
    assert logged(model, "batches_used") == 3
    move(model, 1.0)
    model.collect_rollouts(model.env, model._setup_learn(10**9)[1], model.rollout_buffer, 4)
    model.min_ess = 0.99
    model.train()
    assert logged(model, "batches_used") == 1
    assert [batch.number for batch in model.replay_buffer.batches] == [4]


@pytest.mark.parametrize("weights", ["causal", "per_step"])
def test_logged_keys_and_statistics(weights):
    """The effective sample size is that of whole episodes, whichever weights are used."""
    model = collected(2, replay_batches=1, mixture="own", weights=weights, gradient_steps=1, min_ess=0.0)
    with th.no_grad():
        W, used = [], []
        for batch in model.replay_buffer.batches:
            e = batch.episodes
            ratio = (model.policy.get_distribution(e.observations).log_prob(e.actions) - batch.log_prob).exp()
            W += [ratio[e.episode == i].cumprod(0) for i in range(4)]
            used.append(ratio)
    used = th.cat(W if weights == "causal" else used)
    last = th.stack([w[-1] for w in W])
    model.train()
    assert logged(model, "ess") == pytest.approx((last.sum() ** 2 / (last**2).sum() / 8).item(), rel=1e-4)
    assert logged(model, "weight_max") == pytest.approx(used.max().item(), rel=1e-4)
    assert logged(model, "weight_mean") == pytest.approx(used.mean().item(), rel=1e-4)
    assert logged(model, "gradient_steps") == 1
    assert logged(model, "batches_used") == 2


def test_huge_log_ratios_leave_finite_parameters():
    """
    Log-ratios of -1e4 in the old batch and 1e4 in the new one. Against the mixture they end in the log-sum-exp, and
    weights stay below n/n_k; against the own policy they saturate.
    """
    for weights, mixture in itertools.product(WEIGHTS, ("balance", "own")):
        model = collected(2, weights=weights, mixture=mixture, replay_batches=1, min_ess=0.0, gradient_steps=3)
        for batch, sign in zip(model.replay_buffer.batches, (1, -1), strict=True):
            batch.log_prob.add_(sign * 1e4)
        model.train()
        assert logged(model, "batches_used") == 2
        assert logged(model, "gradient_steps") == 3
        assert logged(model, "weight_max") > 1e9 or mixture == "balance"
        assert all(p.isfinite().all() for p in model.policy.parameters())


def test_frozen_policy_and_frozen_critic():
    for parameters in (policy_parameters, critic_parameters):
        model = collected()
        frozen = parameters(model.policy)
        before = [p.detach().clone() for p in frozen.values()]
        for parameter in frozen.values():
            parameter.requires_grad_(False)
        model.train()
        assert all(th.equal(a, b) for a, b in zip(before, frozen.values(), strict=True))


def test_what_is_frozen_stays_while_other_policies_are_asked():
    """Also what was not yet frozen when they played."""
    model = collected(3, replay_batches=2, min_ess=0.0)
    frozen = list(model.policy.mlp_extractor.policy_net.parameters())
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [p.clone() for p in frozen]
    model.train()
    assert all(th.equal(a, b) for a, b in zip(before, frozen, strict=True))


def test_a_policy_asked_again_says_what_it_said_when_it_played():
    """Also if one of its layers was frozen then, and has moved since."""
    model = model_on(make_vec_env("CartPole-v1", 2, seed=0), replay_batches=1)
    layer = list(model.policy.mlp_extractor.policy_net.parameters())
    for parameter in layer:
        parameter.requires_grad_(False)
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 4)
    for parameter in layer:
        parameter.requires_grad_(True)
    move(model, 0.1)
    (batch,) = model.replay_buffer.batches
    assert not th.allclose(model._log_prob(batch.episodes), batch.log_prob)
    th.testing.assert_close(model._log_prob_under(batch.episodes, batch.policy), batch.log_prob)


def test_dropout_has_no_part_in_the_weights():
    model = collected(policy_kwargs={"activation_fn": Dropout}, gradient_steps=1)
    model.train()
    assert logged(model, "weight_max") == logged(model, "weight_mean") == logged(model, "ess") == 1


# --- SB3's promises --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
def test_action_spaces(action, device):
    env = DummyVecEnv([lambda: AnySpaces(VECTOR, ACTIONS[action])] * 2)
    model = model_on(env, replay_batches=2, min_ess=0.0, weights="causal", device=device).learn(100)
    assert logged(model, "batches_used") == 3


def test_dicts_of_observations(device):
    env = DummyVecEnv([lambda: AnySpaces(DICT, ACTIONS["box"])] * 2)
    parameters = {"replay_batches": 2, "min_ess": 0.0, "gradient_steps": 2, "max_episode_steps": 3}
    model = model_on(env, "MultiInputPolicy", device=device, **parameters).learn(60)
    assert logged(model, "batches_used") == 3


def test_gsde(device):
    env = DummyVecEnv([lambda: AnySpaces(VECTOR, ACTIONS["box"])] * 2)
    model = model_on(env, use_sde=True, sde_sample_freq=2, replay_batches=1, min_ess=0.0, device=device).learn(100)
    before = model._numbers_of_policy()
    model.train()
    assert logged(model, "batches_used") == 2
    moved = {name for name, tensor in model._numbers_of_policy().items() if not th.equal(tensor, before[name])}
    assert moved == set(policy_parameters(model.policy))
    assert "log_std" in moved


@pytest.mark.parametrize("weights", WEIGHTS)
def test_gsde_with_a_likelihood_of_the_episode_needs_noise_of_each_step(weights):
    env = DummyVecEnv([lambda: AnySpaces(VECTOR, ACTIONS["box"])])
    model_on(env, use_sde=True, sde_sample_freq=1, weights=weights)
    for sde_sample_freq in (-1, 2):
        if weights == "per_step":
            model_on(env, use_sde=True, sde_sample_freq=sde_sample_freq, weights=weights)
        else:
            with pytest.raises(ValueError, match=f"sde_sample_freq={sde_sample_freq}.*1 with use_sde=True.*{weights}"):
                model_on(env, use_sde=True, sde_sample_freq=sde_sample_freq, weights=weights)


class Dropout(th.nn.Module):
    def forward(self, x):
        return th.nn.functional.dropout(x.tanh(), 0.5, self.training)


def test_the_policy_that_acted_had_no_dropout():
    model = collected(2, replay_batches=1, policy_kwargs={"activation_fn": Dropout})
    batch = model.replay_buffer.batches[-1]
    assert th.equal(model._log_prob(batch.episodes), model._log_prob(batch.episodes))
    th.testing.assert_close(model._log_prob(batch.episodes), batch.log_prob)
    model.train()
    assert model.policy.training


def test_save_load_and_the_replay(tmp_path):
    model = model_on(make_vec_env("CartPole-v1", 2, seed=0), replay_batches=2, min_ess=0.0).learn(300)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    assert (tmp_path / "replay.pkl").exists()
    loaded = ISPG.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 2, seed=0), device="cpu")
    assert loaded.replay_buffer.batches == []
    loaded.load_replay_buffer(tmp_path / "replay")
    loaded.set_logger(model.logger)
    assert len(loaded.replay_buffer.batches) == 3
    assert th.equal(loaded.estimate_gradient(), model.estimate_gradient())
    loaded.learn(100, reset_num_timesteps=False)
    assert logged(loaded, "batches_used") == 3
    narrower = ISPG.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 2, seed=0), replay_batches=1)
    narrower.load_replay_buffer(tmp_path / "replay")
    assert [b.number for b in narrower.replay_buffer.batches] == [b.number for b in model.replay_buffer.batches[-2:]]


def test_the_replay_is_saved_with_the_model_where_that_is_asked_for(tmp_path):
    """As SB3's off-policy algorithms do it."""
    model = model_on(make_vec_env("CartPole-v1", 2, seed=0), replay_batches=2, min_ess=0.0).learn(300)
    model.save(tmp_path / "model", include=["replay_buffer"])
    loaded, narrower = (ISPG.load(tmp_path / "model", device="cpu", replay_batches=k) for k in (2, 1))
    for m in (loaded, narrower):
        m.set_logger(model.logger)
    assert len(loaded.replay_buffer.batches) == 3
    assert th.equal(loaded.estimate_gradient(), model.estimate_gradient())
    assert [b.number for b in narrower.replay_buffer.batches] == [b.number for b in model.replay_buffer.batches[-2:]]


def test_checkpoints_hold_the_replay_if_they_are_asked_to(tmp_path):
    """SB3's callback looks for an attribute of SB3's name."""
    callback = CheckpointCallback(300, str(tmp_path), save_replay_buffer=True)
    model_on(replay_batches=1).learn(300, callback=callback)
    (saved,) = tmp_path.glob("rl_model_replay_buffer_*.pkl")
    other = model_on(replay_batches=1)
    other.load_replay_buffer(saved)
    assert other.replay_buffer.batches


def test_the_replay_in_memory_and_as_rl_zoo3_loads_it():
    model, file = collected(2, replay_batches=1), io.BytesIO()
    model.save_replay_buffer(file)
    file.seek(0)
    other = model_on(replay_batches=1)
    other.load_replay_buffer(file, truncate_last_traj=False)
    assert not file.closed
    assert len(other.replay_buffer.batches) == 2


def test_an_old_replay_stays_if_writing_fails(tmp_path, monkeypatch):
    model = collected()
    model.save_replay_buffer(tmp_path / "new" / "replay")
    before = (tmp_path / "new" / "replay.pkl").read_bytes()

    def half(what, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(th, "save", half)
    with pytest.raises(OSError, match="disk full"):
        model.save_replay_buffer(tmp_path / "new" / "replay")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["replay.pkl"]
    assert (tmp_path / "new" / "replay.pkl").read_bytes() == before


def test_a_replay_that_is_loaded_into_a_training(tmp_path):
    """It takes the place of what was there, with all that was computed of it."""
    saved, late = (collected(2, replay_batches=1, min_ess=0.0, seed=seed) for seed in (0, 1))
    late.estimate_gradient()  # computes the batches' likelihoods under each other's policies
    saved.save_replay_buffer(tmp_path / "replay")
    late.load_replay_buffer(tmp_path / "replay")
    late.policy.load_state_dict(saved.policy.state_dict())
    assert th.equal(late.estimate_gradient(), saved.estimate_gradient())
    late.learn(1, reset_num_timesteps=False)
    assert logged(late, "batches_used") == 2


@pytest.mark.parametrize(
    ("net_arch", "differ"), [([5], "policy_net.0"), ([4, 4], "policy_net.2"), ([], "policy_net.0")]
)
def test_a_replay_of_another_architecture(net_arch, differ, tmp_path):
    collected(policy_kwargs={"net_arch": [4]}).save_replay_buffer(tmp_path / "replay")
    model = collected(policy_kwargs={"net_arch": net_arch})
    batches, before = model.replay_buffer.batches, [p.clone() for p in model.policy.parameters()]
    with pytest.raises(ValueError, match=rf"replay buffer=\[.*{differ}\.weight.*: allowed is one of policies that"):
        model.load_replay_buffer(tmp_path / "replay")
    assert model.replay_buffer.batches is batches
    assert all(map(th.equal, before, model.policy.parameters()))


def test_something_else_is_no_replay(tmp_path):
    th.save([1], tmp_path / "list.pkl")
    with pytest.raises(ValueError, match="replay buffer"):
        model_on().load_replay_buffer(tmp_path / "list.pkl")


# --- recorded episodes -----------------------------------------------------------------------------------------------


def recorded(**parameters):
    """Episodes of a fresh policy, and another model."""
    model = model_on(make_vec_env(ActionIsReward, 20, seed=0), n_episodes=200, gamma=1.0, gradient_steps=1).learn(1)
    return model.dataset(), model_on(ActionIsReward(), gamma=1.0, **{"learning_rate": 0.01, "seed": 1, **parameters})


@pytest.mark.parametrize("weights", WEIGHTS)
def test_it_learns_from_recorded_episodes(weights):
    """Without a step of its own; only as far as the episodes can tell."""
    dataset, model = recorded(weights=weights)
    before = model.policy.get_distribution(th.zeros(1, 2)).distribution.probs[0, 1].item()
    model.learn_from(dataset, 20)
    assert model.policy.get_distribution(th.zeros(1, 2)).distribution.probs[0, 1] > before + 0.1
    assert model.num_timesteps == 0
    assert 1 <= model._n_updates < 20


def test_a_dataset_of_a_policy_too_far_away_teaches_nothing():
    dataset, model = recorded(min_ess=1.0)
    move(model, 1.0)
    before = model._numbers_of_policy()
    model.learn_from(dataset, 5)
    assert all(th.equal(tensor, before[name]) for name, tensor in model._numbers_of_policy().items())


def test_what_was_found_at_the_end_is_logged():
    dataset, model = recorded(min_ess=1.0)
    move(model, 1.0)
    model.set_logger(Logger(None, [kept := Kept()]))
    model.learn_from(dataset, 5)
    assert [values["train/gradient_steps"] for values in kept.dumped] == [0]
    assert kept.dumped[0]["train/ess"] < 1


class Kept(KVWriter):
    """What was logged."""

    def __init__(self):
        self.dumped = []

    def write(self, key_values, key_excluded, step=0):
        self.dumped.append(dict(key_values))

    def close(self):
        pass


def test_the_schedule_of_the_learning_rate_runs_over_the_updates():
    dataset, _ = recorded()
    seen = []
    model = model_on(ActionIsReward(), learning_rate=lambda progress: seen.append(progress) or 1e-4 * progress).learn(1)
    seen.clear()
    model.learn_from(dataset, 4)
    assert list(dict.fromkeys(seen)) == [1.0, 0.75, 0.5, 0.25]


def test_learning_from_records_is_logged(tmp_path):
    dataset, _ = recorded()
    model_on(ActionIsReward(), tensorboard_log=str(tmp_path)).learn_from(dataset, 2)
    assert list(tmp_path.glob("ISPG_*/events*"))


def test_a_single_recorded_episode_cannot_be_left_out():
    dataset = collected().dataset()
    first = dataset.episodes.episode == 0
    parts = {
        name: getattr(dataset.episodes, name)[first]
        for name in ("observations", "actions", "rewards", "values", "episode", "time")
    }
    of_first = {name: getattr(dataset.episodes, name)[:1] for name in ("lengths", "truncated", "bootstrap_values")}
    single = EpisodeDataset(EpisodeBatch(**parts, **of_first), dataset.log_prob[first])
    model_on(baseline="state").learn_from(single, 1)
    with pytest.raises(ValueError, match="number of episodes=1: allowed is at least 2"):
        model_on(baseline="constant").learn_from(single, 1)


def test_the_critic_learns_from_records_beside_a_frozen_policy():
    dataset, model = recorded()
    for parameter in policy_parameters(model.policy).values():
        parameter.requires_grad_(False)
    assert model.learn_from(dataset, 3)._n_updates == 3


@pytest.mark.parametrize(("truncation", "counts"), [("bootstrap", True), ("terminal", False)])
def test_the_recorded_value_of_a_cut_counts_with_bootstrapping_only(truncation, counts):
    after = []
    for value in (0.0, 50.0):
        model = collected(truncation=truncation, max_episode_steps=8, gradient_steps=1)
        dataset = model.dataset()
        dataset.episodes.bootstrap_values[dataset.episodes.truncated] = value
        model.learn_from(dataset, 1)
        after.append(th.nn.utils.parameters_to_vector(model.policy.parameters()))
    assert th.equal(*after) != counts


def test_a_dataset_of_other_spaces_is_refused():
    """By both who use one."""
    model = collected()
    dataset = model.dataset()
    for wrong in (
        {"observations": dataset.episodes.observations[:, :3]},
        {"actions": dataset.episodes.actions.float()},
        {"rewards": th.full_like(dataset.episodes.rewards, th.nan)},
    ):
        bad = replace(dataset, episodes=replace(dataset.episodes, **wrong))
        for use in (lambda bad=bad: model.learn_from(bad, 1), lambda bad=bad: evaluate_off_policy(model, bad)):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                use()


def test_learning_from_records_is_training_on_them():
    """At the policy that acted, one update from the record is one of ``train``."""
    trained, taught = (collected(gradient_steps=2) for _ in range(2))
    trained.train()
    taught.learn_from(taught.dataset(), 1)
    for a, b in zip(trained.policy.parameters(), taught.policy.parameters(), strict=True):
        th.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_no_dataset_before_the_first_episode():
    with pytest.raises(ValueError, match="batches in the replay=0"):
        model_on().dataset()


# --- options ---------------------------------------------------------------------------------------------------------

BASES = {}
"""What :func:`parameters_after` has made of the bases, each of which is compared with several changes."""


@pytest.mark.parametrize(
    ("change", "base"),
    [
        ({"gradient_steps": 4}, {}),
        *(({"weights": weights}, {}) for weights in WEIGHTS if weights != "per_step"),
        ({"weight_clip": 1.0}, {}),
        *(({"self_normalize": True}, {"weights": weights, "learning_rate": 1e-2}) for weights in WEIGHTS),
        ({"replay_batches": 1}, {}),
        *(({"mixture": "own"}, {"replay_batches": 1, "weights": weights, "min_ess": 0.0}) for weights in WEIGHTS),
        ({"min_ess": 1.0}, {}),
        ({"gamma": 0.9}, {}),
        ({"credit": "trajectory"}, {}),
        ({"credit": "trajectory"}, {"weights": "per_decision"}),
        ({"baseline": "time"}, {"baseline": "none"}),
        ({"baseline": "optimal"}, {"baseline": "none"}),
        ({"ent_coef": 0.1}, {}),
        ({"normalize_advantage": True}, {"policy_kwargs": {"optimizer_class": th.optim.SGD}}),
        ({"n_critic_updates": 6}, {}),
    ],
)
def test_every_option_changes_the_run(change, base):
    if repr(base) not in BASES:
        BASES[repr(base)] = parameters_after(**base)
    assert not th.equal(parameters_after(**{**base, **change}), BASES[repr(base)])


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"gradient_steps": 0}, "gradient_steps=0.*>= 1"),
        ({"weights": "all"}, "weights='all'.*'trajectory', 'per_decision', 'causal', 'per_step'"),
        ({"weight_clip": 0.0}, "weight_clip=0.0.*> 0"),
        ({"self_normalize": 1}, "self_normalize=1.*True or False"),
        ({"self_normalize": True, "n_episodes": 1}, "n_episodes=1.*>= 2"),
        ({"replay_batches": -1}, "replay_batches=-1.*>= 0"),
        ({"mixture": "mean", "replay_batches": 1}, "mixture='mean'.*'balance', 'own'"),
        ({"min_ess": 1.1}, r"min_ess=1.1.*\[0, 1\]"),
        ({"mixture": "own"}, "mixture='own'.*replay_batches=0"),
        ({"weights": "per_decision", "normalize_advantage": True}, "normalize_advantage=True.*per_decision"),
        ({"baseline": "none", "n_critic_updates": 3}, "n_critic_updates=3.*critic"),
    ],
)
def test_bad_arguments_and_arguments_without_effect(parameters, named):
    with pytest.raises(ValueError, match=named):
        model_on(**parameters)


def test_dependent_samples_are_refused():
    with pytest.raises(ValueError, match=r"replay_batches=1.*dependent"):
        gradient_samples(model_on(replay_batches=1), 2)
    assert gradient_samples(model_on(), 2).shape[0] == 2


def test_a_saved_model_holds_no_replay(tmp_path):
    model = collected(2, replay_batches=1)
    model.save(tmp_path / "full")
    full = (tmp_path / "full.zip").stat().st_size
    model.replay_buffer.keep([])
    model.save(tmp_path / "empty")
    assert abs(full - (tmp_path / "empty.zip").stat().st_size) < 100

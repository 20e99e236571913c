"""Claim: REINFORCE's update is the one of its formula, and every option does something."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO
from sb3_pgext.algorithms.parameters import critic_parameters, policy_parameters
from tests.algorithms.policies import SharedTrunk, moved_parameters
from tests.environments import ACTIONS, DICT, IMAGE, IMAGE_LAST, VECTOR, ActionIsReward, AnySpaces, Countdown, Scripted

BASELINES = ["none", "constant", "time", "optimal", "state"]


def model_on(env="CartPole-v1", policy="MlpPolicy", **parameters):
    return REINFORCE(policy, env, **{"n_episodes": 4, "seed": 0, "device": "cpu", **parameters})


def parameters_after(steps=160, **parameters):
    """The parameters after a short training, as one vector."""
    model = model_on(make_vec_env("CartPole-v1", 2, seed=0), **parameters).learn(steps)
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


# --- the update ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("credit", ["reward_to_go", "trajectory"])
@pytest.mark.parametrize("baseline", ["none", "constant", "time", "state"])
@pytest.mark.parametrize("discount_weighting", [False, True])
def test_the_step_is_along_the_formula(credit, baseline, discount_weighting):
    """With plain gradient ascent the policy moves by η ĝ, ĝ summed episode by episode and step by step."""
    if credit == "trajectory" and discount_weighting:
        pytest.skip("raises, see test_arguments_without_effect")
    model = model_on(
        make_vec_env("CartPole-v1", 2, seed=0),
        gamma=0.9,
        credit=credit,
        baseline=baseline,
        discount_weighting=discount_weighting,
        learning_rate=0.01,
        policy_kwargs={"optimizer_class": th.optim.SGD},
    )
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 4)
    batch, parameters = model.episodes, list(policy_parameters(model.policy).values())
    before = th.nn.utils.parameters_to_vector(parameters).detach().clone()

    G = {}
    for i in range(4):
        rewards = batch.rewards[batch.episode == i].tolist()
        for t in range(len(rewards)):
            G[i, t] = sum(0.9 ** (k - t) * rewards[k] for k in range(t, len(rewards)))
    R = {i: G[i, 0] for i in range(4)}

    def b(i, t, step):
        if baseline == "constant":
            of_others = {"trajectory": [R[j] for j in R], "reward_to_go": [g for (j, _), g in G.items() if j != i]}
            return np.mean([R[j] for j in R if j != i] if credit == "trajectory" else of_others[credit])
        if baseline == "time":
            alive = [G[j, t] for j in range(4) if j != i and (j, t) in G]
            return np.mean(alive) if alive else 0.0
        return batch.values[step].item() if baseline == "state" else 0.0

    log_prob = model.policy.get_distribution(batch.observations).log_prob(batch.actions)
    estimate = th.zeros_like(before)
    for step, (i, t) in enumerate(zip(batch.episode.tolist(), batch.time.tolist(), strict=True)):
        score = th.cat([g.flatten() for g in th.autograd.grad(log_prob[step], parameters, retain_graph=True)])
        weight = 0.9**t if discount_weighting else 1.0
        estimate += weight * score * ((R[i] if credit == "trajectory" else G[i, t]) - b(i, t, step)) / 4

    model.train()
    moved = th.nn.utils.parameters_to_vector(parameters).detach() - before
    th.testing.assert_close(moved, 0.01 * estimate, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped")
@pytest.mark.parametrize(
    ("baseline", "credit"), [*((baseline, "reward_to_go") for baseline in BASELINES), ("constant", "trajectory")]
)
def test_it_learns(baseline, credit):
    """The action that is rewarded becomes likely, with every baseline and either credit."""
    model = model_on(
        make_vec_env(ActionIsReward, 16, seed=0), baseline=baseline, credit=credit, n_episodes=16, gamma=1.0,
        learning_rate=0.03,
    ).learn(3200)  # fmt: skip
    assert evaluate_policy(model, ActionIsReward(), 5)[0] == 5
    assert model.policy.get_distribution(th.zeros(1, 2)).distribution.probs[0, 1] > 0.9


def critic_target_of(target, **parameters):
    """The values y_t that V is fitted to, on episodes (0, t) and (1, t), t = 0, 1, 2, rewards 100·episode + t."""
    model = model_on(
        DummyVecEnv([lambda: Scripted((3, -3))]), n_episodes=2, gamma=0.5, critic_target=target, **parameters
    )
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 2)
    seen = {}
    model._fit_critic = lambda observations, targets, *_: seen.update(y=targets.tolist())
    model.train()
    return seen["y"], model.episodes


@pytest.mark.parametrize("truncation", ["bootstrap", "terminal"])
def test_critic_targets(truncation):
    y, batch = critic_target_of("mc", truncation=truncation)
    final = batch.bootstrap_values[1].item()
    assert (final != 0) == (truncation == "bootstrap")
    end = [102 + 0.5 * final]
    expected = [0 + 0.5 * 1 + 0.25 * 2, 1 + 0.5 * 2, 2, 100 + 0.5 * 101 + 0.25 * end[0], 101 + 0.5 * end[0], *end]
    assert y == pytest.approx(expected)

    y, batch = critic_target_of("td", truncation=truncation)
    V = batch.values.tolist()
    assert y == pytest.approx(
        [0 + 0.5 * V[1], 1 + 0.5 * V[2], 2, 100 + 0.5 * V[4], 101 + 0.5 * V[5], 102 + 0.5 * final]
    )

    y, batch = critic_target_of("lambda", gae_lambda=0.5, truncation=truncation)
    third = y[5]
    assert third == pytest.approx(102 + 0.5 * final)
    assert y[4] == pytest.approx(101 + 0.5 * (0.5 * V[5] + 0.5 * third))
    assert y[3] == pytest.approx(100 + 0.5 * (0.5 * V[4] + 0.5 * y[4]))


def test_the_critic_fits():
    """Repeated fits bring V near the return, here 5 - t, and the log says so."""
    env = DummyVecEnv([Countdown])
    model = model_on(env, gamma=1.0, n_critic_updates=20, batch_size=5, learning_rate=1e-2).learn(400)
    batch = model.episodes
    th.testing.assert_close(batch.values, 5.0 - batch.time, rtol=0, atol=0.2)
    assert model.logger.name_to_value["train/explained_variance"] > 0.99
    assert model.logger.name_to_value["train/value_loss"] < 0.05


# --- whose parameter is whose ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_each_step_moves_its_own_parameters_only(share_features_extractor):
    model = model_on(
        "Pendulum-v1",
        policy_kwargs={
            "features_extractor_class": SharedTrunk,
            "share_features_extractor": share_features_extractor,
            "optimizer_kwargs": {"weight_decay": 0.1},
        },
    )
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 4)
    fit, model._fit_critic = model._fit_critic, lambda *_: None
    of_policy = moved_parameters(model, model.train)
    batch = model.episodes
    of_critic = moved_parameters(model, lambda: fit(batch.observations, batch.rewards, batch.values))
    assert of_policy == set(policy_parameters(model.policy))
    assert of_critic == set(critic_parameters(model.policy))
    assert not of_policy & of_critic
    assert "log_std" in of_policy
    assert of_critic >= {"value_net.weight", "mlp_extractor.value_net.0.weight"}
    shared = {n for n in of_policy if "features_extractor" in n}
    assert shared
    # SB3 registers a shared trunk under three names, and one of its own under two.
    trunk_of_critic = {n for n in of_critic if n.startswith("vf_features_extractor")}
    assert bool(trunk_of_critic) != share_features_extractor


class NoisyTrunk(SharedTrunk):
    """With batch norm and dropout, and with nothing to say about observations outside the space."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.norm, self.dropout = th.nn.BatchNorm1d(8), th.nn.Dropout(0.5)

    def forward(self, observations):
        assert (observations >= 1).all()
        return self.dropout(self.norm(super().forward(observations)))


def test_finding_parameters_leaves_no_trace():
    """Neither in the statistics of batch norm, nor in the random generator, nor in the mode of any module."""
    env = DummyVecEnv([lambda: AnySpaces(spaces.Box(1, 9, (3,)), spaces.Discrete(2))] * 2)
    model = model_on(env, policy_kwargs={"features_extractor_class": NoisyTrunk}).learn(30)
    model.policy.set_training_mode(True)
    model.policy.features_extractor.dropout.eval()
    before, state = {k: v.clone() for k, v in model.policy.state_dict().items()}, th.get_rng_state()
    assert policy_parameters(model.policy)
    assert critic_parameters(model.policy)
    assert all(th.equal(v, before[k]) for k, v in model.policy.state_dict().items())
    assert th.equal(state, th.get_rng_state())
    assert model.policy.features_extractor.norm.training
    assert not model.policy.features_extractor.dropout.training
    running_mean = model.policy.features_extractor.norm.running_mean.clone()
    model.learn(30, reset_num_timesteps=False)
    assert not th.equal(running_mean, model.policy.features_extractor.norm.running_mean)


@pytest.mark.parametrize("frozen", ["policy", "critic"])
def test_all_of_one_side_may_be_frozen(frozen):
    model = model_on()
    parameters = {"policy": policy_parameters, "critic": critic_parameters}[frozen](model.policy)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    moved = moved_parameters(model, lambda: model.learn(100))
    assert moved
    assert moved.isdisjoint(parameters)


def test_frozen_parameters_stay():
    model = model_on()
    model.policy.action_net.bias.requires_grad_(False)
    assert "action_net.bias" not in policy_parameters(model.policy)
    assert moved_parameters(model, lambda: model.learn(100)).isdisjoint({"action_net.bias"})


def test_parameters_are_found_anew_when_they_are_others():
    policy = model_on().policy
    before = policy_parameters(policy), critic_parameters(policy)
    policy.action_net = th.nn.Sequential(th.nn.Linear(64, 3), th.nn.Linear(3, 2))
    assert set(policy_parameters(policy)) - set(before[0]) == {
        f"action_net.{i}.{x}" for i in (0, 1) for x in ("weight", "bias")
    }
    policy.value_net.weight.requires_grad_(False)
    assert set(before[1]) - set(critic_parameters(policy)) == {"value_net.weight"}
    policy.value_net.weight.requires_grad_(True)
    assert critic_parameters(policy) == before[1]


class WarmUp(ActorCriticPolicy):
    """Its last layer alone is trained at first."""

    warm = True

    def _get_action_dist_from_latent(self, latent):
        return super()._get_action_dist_from_latent(latent.detach() if self.warm else latent)


def test_a_policy_may_switch_what_is_trained():
    model = model_on(policy=WarmUp)
    assert not any("policy_net" in name for name in moved_parameters(model, lambda: model.learn(100)))
    model.policy.warm = False
    moved = moved_parameters(model, lambda: model.learn(100))
    assert any("policy_net" in name for name in moved)


def test_finding_parameters_draws_no_random_number():
    model = model_on("Pendulum-v1", use_sde=True)
    state = th.get_rng_state()
    policy_parameters(model.policy)
    critic_parameters(model.policy)
    assert th.equal(state, th.get_rng_state())


def test_parameters_are_found_where_gradients_are_switched_off():
    model = model_on()
    with th.no_grad():
        found = policy_parameters(model.policy), critic_parameters(model.policy)
    assert [list(x) for x in found] == [list(policy_parameters(model.policy)), list(critic_parameters(model.policy))]
    assert all(found)


def test_the_learning_rate_is_never_negative():
    """The last batch is finished although it goes past the end of the training, where the schedule is at 0."""
    model = model_on(learning_rate=lambda progress: 0.01 * progress)
    model.learn(30)
    assert model.num_timesteps > 30
    assert model.logger.name_to_value["train/learning_rate"] == 0
    assert not moved_parameters(model, model.train)


# --- spaces and logs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
def test_action_spaces_with_an_optimal_baseline(action, device):
    env = DummyVecEnv([lambda: AnySpaces(VECTOR, ACTIONS[action])] * 2)
    model = model_on(env, baseline="optimal", device=device).learn(60)
    actions, _ = model.predict(env.reset())
    assert actions.shape == (2, *ACTIONS[action].shape)


@pytest.mark.parametrize(
    ("policy", "observation"),
    [
        ("CnnPolicy", IMAGE),
        ("CnnPolicy", IMAGE_LAST),
        ("MultiInputPolicy", DICT),
        ("MlpPolicy", spaces.Discrete(4)),
        ("MlpPolicy", spaces.MultiDiscrete([2, 3])),
        ("MlpPolicy", spaces.MultiBinary(4)),
        (ActorCriticPolicy, VECTOR),
    ],
)
def test_what_is_observed_where_an_episode_is_cut(policy, observation, device):
    env = DummyVecEnv([lambda: AnySpaces(observation, spaces.Discrete(2))] * 2)
    model = model_on(env, policy, device=device, truncation="bootstrap", max_episode_steps=3).learn(30)
    model.predict(env.reset())
    assert model.episodes.truncated.all()


def test_logged_keys():
    model = model_on("Pendulum-v1", n_episodes=1).learn(200)
    keys = set(model.logger.name_to_value)
    expected = "learning_rate n_updates entropy_loss policy_gradient_loss grad_norm value_loss explained_variance std"
    assert {f"train/{key}" for key in expected.split()} <= keys


# --- options ---------------------------------------------------------------------------------------------------------

BASES = {}
"""The parameters after a training with the options that stay as they are: each is compared with several changes."""


@pytest.mark.parametrize(
    ("change", "base"),
    [
        ({"learning_rate": 2e-3}, {}),
        ({"n_episodes": 5}, {}),
        ({"gamma": 0.9}, {}),
        ({"credit": "trajectory"}, {}),
        *(({"baseline": baseline}, {"baseline": "none"}) for baseline in ["constant", "time", "optimal", "state"]),
        *(({"leave_one_out": False}, {"baseline": baseline}) for baseline in ["constant", "time", "optimal"]),
        ({"discount_weighting": True}, {}),
        ({"discount_weighting": True}, {"baseline": "optimal"}),
        ({"critic_target": "td"}, {}),
        ({"critic_target": "lambda"}, {}),
        ({"gae_lambda": 0.5}, {"critic_target": "lambda"}),
        ({"n_critic_updates": 6}, {}),
        ({"batch_size": 32}, {}),
        ({"truncation": "terminal"}, {"max_episode_steps": 8}),
        ({"max_episode_steps": 8}, {"baseline": "none"}),
        ({"normalize_advantage": True}, {"policy_kwargs": {"optimizer_class": th.optim.SGD}}),
        ({"ent_coef": 0.1}, {}),
        ({"ent_coef": 0.1}, {"baseline": "optimal"}),
        ({"max_grad_norm": 0.5}, {"policy_kwargs": {"optimizer_class": th.optim.SGD}}),
        ({"policy_kwargs": {"net_arch": [64, 64], "activation_fn": th.nn.ReLU}}, {}),
    ],
)
def test_every_option_changes_the_run(change, base):
    if repr(base) not in BASES:
        BASES[repr(base)] = parameters_after(**base)
    assert not th.equal(parameters_after(**{**base, **change}), BASES[repr(base)])


def test_gsde_options_change_the_run():
    def after(**parameters):
        env = DummyVecEnv([lambda: AnySpaces(VECTOR, ACTIONS["box"])] * 2)
        env.seed(0)
        return th.cat([p.flatten() for p in model_on(env, **parameters).learn(40).policy.get_distribution(
            th.zeros(1, 3)).distribution.mean.detach()])  # fmt: skip

    assert not th.equal(after(use_sde=True), after())
    assert not th.equal(after(use_sde=True, sde_sample_freq=1), after(use_sde=True))


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"baseline": "value"}, "baseline='value'.*'none', 'constant', 'time', 'optimal', 'state'"),
        ({"baseline": None}, "baseline=None"),
        ({"credit": "all"}, "credit='all'.*'reward_to_go', 'trajectory'"),
        ({"critic_target": "gae"}, "critic_target='gae'.*'mc', 'td', 'lambda'"),
        ({"truncation": "cut"}, "truncation='cut'.*'bootstrap', 'terminal'"),
        ({"n_episodes": 0}, "n_episodes=0.*>= 1"),
        ({"n_episodes": 1.5}, "n_episodes=1.5.*whole number"),
        *(({"n_episodes": 1, "baseline": b}, "n_episodes=1.*>= 2") for b in ["constant", "time", "optimal"]),
        ({"gamma": 1.01}, r"gamma=1.01.*\[0, 1\]"),
        ({"gamma": float("nan")}, "gamma=nan"),
        ({"gamma": "0.9"}, "gamma='0.9'"),
        ({"gae_lambda": -0.1, "critic_target": "lambda"}, r"gae_lambda=-0.1.*\[0, 1\]"),
        ({"max_episode_steps": 0}, "max_episode_steps=0"),
        ({"n_critic_updates": 0}, "n_critic_updates=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ({"max_grad_norm": "1"}, "max_grad_norm='1'"),
        ({"ent_coef": float("inf")}, "ent_coef=inf"),
        ({"ent_coef": "auto"}, "ent_coef='auto'"),
        ({"sde_sample_freq": 0}, "sde_sample_freq=0.*>= 1"),
        ({"policy": "NoPolicy"}, "NoPolicy"),
        ({"policy": th.nn.Linear}, "policy='Linear'.*ActorCriticPolicy"),
        ({"policy": print}, "policy='print'.*a name or a policy class"),
        ({"leave_one_out": "no", "baseline": "time"}, "leave_one_out='no'.*True or False"),
        ({"normalize_advantage": "False"}, "normalize_advantage='False'.*True or False"),
    ],
)
def test_bad_arguments(parameters, named):
    with pytest.raises(ValueError, match=named):
        model_on(**parameters)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"baseline": "none", "truncation": "bootstrap"}, "truncation='bootstrap'.*baseline='none'.*critic"),
        ({"baseline": "time", "critic_target": "td"}, "critic_target='td'.*critic"),
        ({"baseline": "time", "critic_target": "lambda"}, "critic_target='lambda'.*critic"),
        ({"baseline": "constant", "n_critic_updates": 3}, "n_critic_updates=3.*critic"),
        ({"baseline": "optimal", "batch_size": 3}, "batch_size=3.*critic"),
        ({"baseline": lambda episodes, returns: returns, "n_critic_updates": 3}, "n_critic_updates=3.*critic"),
        ({"leave_one_out": False}, "leave_one_out=False.*baseline='state'"),
        ({"baseline": "none", "leave_one_out": False}, "leave_one_out=False.*baseline='none'"),
        ({"credit": "trajectory", "discount_weighting": True}, "discount_weighting=True.*trajectory"),
        ({"baseline": "optimal", "normalize_advantage": True}, "normalize_advantage=True.*optimal"),
        ({"gae_lambda": 0.9}, "gae_lambda=0.9.*'lambda'"),
        ({"sde_sample_freq": 4}, "sde_sample_freq=4.*use_sde"),
    ],
)
def test_arguments_without_effect(parameters, named):
    """Nothing is accepted and ignored."""
    with pytest.raises(ValueError, match=named):
        model_on(**parameters)


class ForwardOnly(ActorCriticPolicy):
    def forward(self, obs, deterministic=False):
        return super().forward(obs, deterministic)


class DistributionOnly(ActorCriticPolicy):
    def get_distribution(self, obs):
        return super().get_distribution(obs)


class EvaluationOnly(ActorCriticPolicy):
    def evaluate_actions(self, obs, actions):
        return super().evaluate_actions(obs, actions)


@pytest.mark.parametrize(
    ("policy", "algorithms", "missing"),
    [
        (ForwardOnly, [REINFORCE, ISPG], "get_distribution"),
        (DistributionOnly, [REINFORCE, ISPG, VPG, NPG], "forward"),
        (EvaluationOnly, [REINFORCE, ISPG, VPG, NPG], "get_distribution"),
    ],
)
def test_policies_that_would_act_and_learn_by_different_methods_are_refused(policy, algorithms, missing):
    for algorithm in algorithms:
        with pytest.raises(ValueError, match=rf"policy='{policy.__name__}'.*one that overrides {missing} beside"):
            algorithm(policy, "CartPole-v1", device="cpu")
    for algorithm in {REINFORCE, ISPG, VPG, NPG, ClippedCriticPPO} - set(algorithms):
        algorithm(policy, "CartPole-v1", device="cpu")


def test_recurrent_policies_are_refused():
    from sb3_contrib.ppo_recurrent.policies import MlpLstmPolicy

    with pytest.raises(ValueError, match=r"policy='RecurrentActorCriticPolicy'.*not recurrent"):
        model_on(policy=MlpLstmPolicy)


def test_arguments_are_checked_when_loading_too(tmp_path):
    model_on().save(tmp_path / "model")
    with pytest.raises(ValueError, match="credit='all'"):
        REINFORCE.load(tmp_path / "model", credit="all")


def test_a_gradient_that_is_not_finite_moves_nothing():
    model = model_on(baseline=lambda episodes, returns: returns).learn(100)
    model.episodes.rewards[0] = np.inf
    model.baseline = "none"
    before = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()
    with pytest.raises(ValueError, match="policy gradient norm"):
        model.train()
    assert th.equal(th.nn.utils.parameters_to_vector(model.policy.parameters()), before)


# --- baselines of the user's own -------------------------------------------------------------------------------------


class LastReturn:
    """The mean return of the batch before."""

    def __init__(self):
        self.mean, self.fits = 0.0, 0

    def __call__(self, episodes, returns):
        return self.mean * th.ones_like(returns)

    def fit(self, episodes, returns):
        self.mean, self.fits = returns.mean(), self.fits + 1
        assert len(returns) == len(episodes)


def test_own_baseline():
    assert th.equal(parameters_after(baseline=lambda e, g: th.zeros_like(g)), parameters_after(baseline="none"))
    baseline = LastReturn()
    model = model_on(baseline=baseline).learn(300)
    assert baseline.fits == model._n_updates > 0
    assert not th.equal(parameters_after(baseline=LastReturn()), parameters_after(baseline="none"))


def test_own_baseline_is_saved(tmp_path):
    model = model_on(baseline=LastReturn()).learn(100)
    model.save(tmp_path / "model")
    assert REINFORCE.load(tmp_path / "model").baseline.mean == model.baseline.mean


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda episodes, returns: returns[:-1], "shape of the baseline"),
        (lambda episodes, returns: returns * np.nan, "finite"),
        (lambda episodes, returns: None, "baseline=None.*tensor"),
    ],
)
def test_wrong_own_baseline(wrong, named):
    with pytest.raises(ValueError, match=named):
        model_on(baseline=wrong).learn(10)


def test_hot_path_has_no_step_loop():
    """A guard against loops over steps: a batch ten times as long makes no more calls of torch in an update."""
    calls = []
    for length in (5, 50):
        model = model_on(DummyVecEnv([lambda n=length: Scripted((n,))]), baseline="time")
        model.learn(1)
        with th.profiler.profile() as profile:
            model.train()
        calls.append(sum(event.count for event in profile.key_averages()))
    assert calls[1] < 1.5 * calls[0]

"""Claim: NPG's step is the natural one and of the length asked for, and TRPO's users feel at home."""

import inspect

import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import NPG
from sb3_pgext.algorithms.parameters import critic_parameters, policy_parameters
from tests.algorithms.policies import SharedTrunk, moved_parameters
from tests.environments import ACTIONS, DICT, IMAGE, VECTOR, ActionIsReward, AnySpaces


def model_on(env="CartPole-v1", policy="MlpPolicy", cls=NPG, **parameters):
    return cls(policy, env, **{"n_steps": 128, "batch_size": 32, "seed": 0, "device": "cpu", **parameters})


def collected(model):
    """The model with a rollout, as ``train`` finds it."""
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def vector_of(model):
    return th.cat([p.detach().flatten() for p in policy_parameters(model.policy).values()])


def parameters_after(steps=192, **parameters):
    """The parameters after a short training, as one vector."""
    model = model_on(make_vec_env("CartPole-v1", 2, seed=0), **{"n_steps": 48, **parameters}).learn(steps)
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


def logged(model, name):
    return model.logger.name_to_value[f"train/{name}"]


# --- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_step_solves_for_the_gradient(env, fisher):
    """
    (F + damping) Δθ = c ĝ, with F and ĝ as matrix and vector of sampled scores, written out. Detected is a direction
    that is 8° off (2.6° for the empirical matrix, which has no sampling noise), and a length that is 5 % (0.05 %) off.
    """
    small = {"net_arch": {"pi": [3], "vf": [3]}}
    model = collected(model_on(env, fisher=fisher, policy_kwargs=small, cg_max_steps=300, cg_tolerance=1e-14))
    parameters = list(policy_parameters(model.policy).values())
    rollout, before = model.rollout, vector_of(model)
    advantages = normalized(rollout.advantages)

    # The exact matrix as an average over many actions of the policy; the empirical one over the rollout's own.
    distribution = model.policy.get_distribution(rollout.observations)
    all_actions = [distribution.sample().detach() for _ in range(300)] if fisher == "exact" else [rollout.actions]
    F = th.zeros(len(before), len(before))
    for actions in all_actions:
        log_prob = distribution.log_prob(actions)
        rows = th.autograd.grad(log_prob, parameters, th.eye(len(rollout)), is_grads_batched=True, retain_graph=True)
        scores = th.cat([row.flatten(1) for row in rows], dim=1)
        F += scores.T @ scores / len(rollout) / len(all_actions)
    log_prob = distribution.log_prob(rollout.actions)
    gradient = th.cat([g.flatten() for g in th.autograd.grad((log_prob * advantages).mean(), parameters)])

    model.train()
    step = vector_of(model) - before
    image = (F + 0.1 * th.eye(len(F))) @ step
    tolerance = 0.999 if fisher == "empirical" else 0.99  # sampling noise of F
    assert th.cosine_similarity(image, gradient, dim=0) > tolerance
    assert th.cosine_similarity(step, gradient, dim=0) < 0.98, "the vanilla direction is another"
    assert float(step @ F @ step / 2) == pytest.approx(0.01, rel=1e-3 if fisher == "empirical" else 0.1)


def test_the_quadratic_model_has_the_divergence_asked_for():
    model = collected(model_on(target_kl=0.002))
    model.train()
    assert logged(model, "kl_quadratic") == pytest.approx(0.002, rel=1e-4)
    assert logged(model, "kl") == pytest.approx(0.002, rel=0.3)
    assert logged(model, "step_norm") > 0
    assert 0 < logged(model, "cg_iterations") <= 15
    assert logged(model, "cg_residual") < 1e-4


def test_a_fixed_step():
    """Twice the step size, twice the step."""
    steps = []
    for step_size in (0.01, 0.02):
        model = collected(model_on(step_rule="fixed", step_size=step_size))
        before = vector_of(model)
        model.train()
        steps.append(vector_of(model) - before)
        assert logged(model, "step_norm") == pytest.approx(float(steps[-1].norm()), rel=1e-3)
    th.testing.assert_close(steps[1], 2 * steps[0], rtol=1e-3, atol=1e-6)


def normalized(advantages):
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def objective_of(model):
    log_prob = model.policy.get_distribution(model.rollout.observations).log_prob(model.rollout.actions)
    ratio = (log_prob - model.rollout.log_prob).exp()
    return float((ratio * normalized(model.rollout.advantages)).mean())


def test_a_gradient_that_is_not_a_number_is_an_error():
    model = collected(model_on())
    model.rollout_buffer.advantages[:] = np.nan
    before = vector_of(model)
    with pytest.raises(ValueError, match="policy gradient norm=nan"):
        model.train()
    assert th.equal(vector_of(model), before)


def test_the_scale_of_the_rewards_does_not_matter():
    steps = []
    for scale in (1.0, 1e-7):
        model = collected(model_on(normalize_advantage=False))
        before = vector_of(model)
        model.rollout_buffer.advantages *= scale
        model.train()
        steps.append(vector_of(model) - before)
    th.testing.assert_close(*steps, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("step_rule", [{}, {"step_rule": "fixed", "step_size": 3.0}])
def test_line_search(step_rule):
    """The divergence is never above its target, and the surrogate improves."""
    model = model_on(make_vec_env("CartPole-v1", 2, seed=0), line_search=True, target_kl=0.05, **step_rule)
    shortened = 0
    for _ in range(8):
        collected(model)
        before, objective = vector_of(model), objective_of(model)
        model.train()
        assert logged(model, "kl") <= 0.05
        if logged(model, "is_line_search_success"):
            assert objective_of(model) > objective
            shortened += logged(model, "kl_quadratic") < 0.0499 or bool(step_rule)
        else:
            assert th.equal(vector_of(model), before)
            assert logged(model, "kl") == 0
    assert shortened


def test_a_line_search_without_success_leaves_the_policy():
    model = collected(model_on(line_search=True, line_search_max_iter=1, step_rule="fixed", step_size=10.0))
    before = vector_of(model)
    model.train()
    assert logged(model, "is_line_search_success") == 0
    assert logged(model, "step_norm") == 0
    assert th.equal(vector_of(model), before)


class NoAdvantages(BaseCallback):
    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.model.rollout_buffer.advantages[:] = 0.0


@pytest.mark.parametrize("cause", ["no gradient", "overflow", "overflow in the line search"])
def test_a_step_of_no_use_is_refused_and_the_run_goes_on(cause):
    options = {"step_rule": "fixed", "step_size": 1e30, "ent_coef": 1.0} if "overflow" in cause else {}
    options |= {"line_search": True, "line_search_max_iter": 2} if "line search" in cause else {}
    model = model_on(DummyVecEnv([lambda: AnySpaces(VECTOR, ACTIONS["discrete"])]), **options)
    callback = NoAdvantages() if cause == "no gradient" else None
    message = "not finite" if "overflow" in cause else "no curvature"
    before = vector_of(model)
    with pytest.warns(UserWarning, match=message):
        model.learn(256, callback)
    assert th.equal(vector_of(model), before)
    assert model._n_updates == 2
    assert logged(model, "kl") == logged(model, "step_norm") == 0
    assert np.isfinite(logged(model, "value_loss"))


def test_sub_sampling_looks_at_a_random_third():
    model = collected(model_on(sub_sampling_factor=3, normalize_advantage=False))
    first, second = model._sampled_steps(model.rollout), model._sampled_steps(model.rollout)
    assert len(first.advantages) == 43
    assert not th.equal(first.observations, second.observations)
    everything = zip(model.rollout.observations, model.rollout.advantages, strict=True)
    of_observation = {tuple(o.tolist()): Psi.item() for o, Psi in everything}
    for o, Psi in zip(first.observations, first.advantages, strict=True):
        assert of_observation[tuple(o.tolist())] == Psi.item()


@pytest.mark.parametrize("gap", [4, 8, 12])
@pytest.mark.parametrize("line_search", [False, True])
def test_the_divergence_is_kept_by_a_nearly_deterministic_policy(gap, line_search):
    """There F is far below the damping, and the quadratic model leads a thousand times too far."""
    model = model_on(make_vec_env("CartPole-v1", 4, seed=0), line_search=line_search)
    with th.no_grad():
        model.policy.action_net.bias[0] = gap
    before = vector_of(collected(model))
    model.train()
    assert 0 < logged(model, "kl") <= (1.0 if line_search else 1.5) * 0.01
    assert not th.equal(vector_of(model), before)


def test_each_step_moves_its_own_parameters_only():
    model = collected(model_on("Pendulum-v1", policy_kwargs={"features_extractor_class": SharedTrunk}))
    fit, model._fit_critic = model._fit_critic, lambda *_: None
    rollout = model.rollout
    assert moved_parameters(model, model.train) == set(policy_parameters(model.policy))
    of_fit = moved_parameters(model, lambda: fit(rollout.observations, rollout.returns, rollout.values))
    assert of_fit == set(critic_parameters(model.policy))


def test_the_divergence_is_that_of_the_policy_as_it_acts():
    """Dropout would make two evaluations of the same policy differ."""
    model = collected(model_on(policy_kwargs={"activation_fn": lambda: th.nn.Dropout(0.5)}, step_rule="fixed",
                               step_size=1e-9))  # fmt: skip
    model.train()
    assert abs(logged(model, "kl")) < 1e-6


# --- TRPO ------------------------------------------------------------------------------------------------------------


def test_the_configurations_of_trpo_are_valid():
    """Each argument has the same name; only the defaults of NPG are its own."""
    assert inspect.signature(TRPO.__init__).parameters.keys() <= inspect.signature(NPG.__init__).parameters.keys()


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_first_step_has_the_direction_of_trpo(env):
    """The same rollout, ĝ, F and damping, by other code; TRPO counts the damping as part of the divergence."""
    steps, values = [], []
    for cls, options in ((TRPO, {}), (NPG, {"line_search": True})):
        model = model_on(make_vec_env(env, 2, seed=0), cls=cls, n_steps=256, **options)
        before = vector_of(model)
        model.learn(512)
        steps.append(vector_of(model) - before)
        values.append(float(model.policy.predict_values(th.zeros(1, *model.observation_space.shape))))
    assert th.cosine_similarity(*steps, dim=0) > 0.999
    assert 1.0 <= float(steps[1].norm() / steps[0].norm()) < 1.5
    assert values[0] == pytest.approx(values[1], rel=0.2, abs=0.5)


# --- SB3's promises --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
def test_action_spaces_with_the_empirical_fisher_matrix(action, device):
    env = DummyVecEnv([lambda: AnySpaces(VECTOR, ACTIONS[action])] * 2)
    model = model_on(env, fisher="empirical", critic_target="td", n_steps=32, device=device)
    before = vector_of(model)
    model.learn(64)
    assert not th.equal(vector_of(model), before)
    actions, _ = model.predict(env.reset())
    assert actions.shape == (2, *ACTIONS[action].shape)


@pytest.mark.parametrize(
    ("policy", "observation"),
    [("CnnPolicy", IMAGE), ("MultiInputPolicy", DICT), (ActorCriticPolicy, VECTOR)],
)
def test_observations_of_a_sub_sample(policy, observation, device):
    env = DummyVecEnv([lambda: AnySpaces(observation, ACTIONS["discrete"])] * 2)
    model = model_on(env, policy, n_steps=8, batch_size=8, cg_max_steps=3, sub_sampling_factor=2, device=device)
    model.learn(16).predict(env.reset())
    assert logged(model, "cg_iterations") == 3


@pytest.mark.parametrize("squash_output", [False, True])
def test_gsde(squash_output, device):
    env = DummyVecEnv([lambda: AnySpaces(VECTOR, ACTIONS["box"])] * 2)
    kwargs = {"squash_output": squash_output}
    model = model_on(env, use_sde=True, sde_sample_freq=2, policy_kwargs=kwargs, device=device).learn(256)
    assert np.isfinite(logged(model, "std"))
    assert logged(model, "kl") == pytest.approx(0.01, rel=0.5)


@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped")
def test_it_learns():
    model = model_on(DummyVecEnv([ActionIsReward] * 16), n_steps=32, gamma=1.0).learn(5120)
    assert evaluate_policy(model, ActionIsReward(), 5)[0] == 5


def test_logged_keys():
    model = model_on("Pendulum-v1", line_search=True).learn(256)
    expected = (
        "learning_rate n_updates entropy_loss policy_gradient_loss grad_norm value_loss explained_variance std kl "
    )
    expected += "kl_quadratic cg_iterations cg_residual step_norm is_line_search_success"
    assert {f"train/{key}" for key in expected.split()} <= set(model.logger.name_to_value)


# --- options ---------------------------------------------------------------------------------------------------------

BASES = {}
"""The parameters after a training with the options that stay as they are: each is compared with several changes."""


@pytest.mark.parametrize(
    ("change", "base"),
    [
        ({"learning_rate": 2e-3}, {}),
        ({"n_steps": 40}, {}),
        ({"batch_size": 16}, {}),
        ({"gamma": 0.9}, {}),
        ({"gae_lambda": 0.5}, {}),
        ({"target_kl": 0.02}, {}),
        ({"step_size": 0.2}, {"step_rule": "fixed"}),
        ({"step_rule": "fixed"}, {}),
        ({"fisher": "empirical"}, {}),
        ({"cg_max_steps": 2}, {}),
        ({"cg_damping": 0.2}, {}),
        ({"cg_tolerance": 1e-3}, {"policy_kwargs": {"ortho_init": False}}),
        ({"line_search_shrinking_factor": 0.5}, {"line_search": True, "step_rule": "fixed", "step_size": 5.0}),
        ({"line_search_max_iter": 1}, {"line_search": True, "step_rule": "fixed", "step_size": 5.0}),
        ({"line_search": True}, {"step_rule": "fixed", "step_size": 5.0}),
        ({"n_critic_updates": 3}, {}),
        ({"critic_target": "mc"}, {}),
        ({"critic_target": "td"}, {}),
        ({"normalize_advantage": False}, {"step_rule": "fixed", "step_size": 1e-3}),
        ({"sub_sampling_factor": 2}, {}),
        ({"ent_coef": 0.1}, {}),
    ],
)
def test_every_option_changes_the_run(change, base):
    if repr(base) not in BASES:
        BASES[repr(base)] = parameters_after(**base)
    assert not th.equal(parameters_after(**{**base, **change}), BASES[repr(base)])


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"step_rule": "adaptive"}, "step_rule='adaptive'.*'trust_region', 'fixed'"),
        ({"fisher": "diagonal"}, "fisher='diagonal'.*'exact', 'empirical'"),
        ({"critic_target": "gae"}, "critic_target='gae'"),
        ({"target_kl": 0}, "target_kl=0"),
        ({"target_kl": None}, "target_kl=None"),
        ({"step_rule": "fixed", "step_size": -1}, "step_size=-1"),
        ({"cg_max_steps": 0}, "cg_max_steps=0"),
        ({"cg_damping": -0.1}, "cg_damping=-0.1"),
        ({"cg_tolerance": float("nan")}, "cg_tolerance=nan"),
        ({"line_search": "yes"}, "line_search='yes'"),
        ({"line_search": True, "line_search_shrinking_factor": 1.0}, "line_search_shrinking_factor=1.0"),
        ({"line_search": True, "line_search_max_iter": 0}, "line_search_max_iter=0"),
        ({"n_critic_updates": 0}, "n_critic_updates=0"),
        ({"sub_sampling_factor": 128}, "sub_sampling_factor=128.*at least 2 steps"),
        ({"sub_sampling_factor": 0}, "sub_sampling_factor=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"normalize_advantage": 1}, "normalize_advantage=1"),
        ({"n_steps": 1}, "n_steps=1.*at least 2 steps"),
        ({"gamma": 1.1}, "gamma=1.1"),
    ],
)
def test_bad_values(parameters, named):
    with pytest.raises(ValueError, match=named):
        model_on(**parameters)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"step_size": 0.2}, "step_size=0.2.*trust_region"),
        ({"step_rule": "fixed", "target_kl": 0.2}, "target_kl=0.2.*line_search=False"),
        ({"line_search_shrinking_factor": 0.5}, "line_search_shrinking_factor=0.5.*line_search=True"),
        ({"line_search_max_iter": 5}, "line_search_max_iter=5.*line_search=True"),
        (
            {"line_search": True, "line_search_max_iter": 1, "line_search_shrinking_factor": 0.1},
            "line_search_shrinking_factor=0.1.*line_search_max_iter=1",
        ),
    ],
)
def test_arguments_without_effect(parameters, named):
    with pytest.raises(ValueError, match=named):
        model_on(**parameters)

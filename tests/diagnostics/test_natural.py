"""Claim: NPG's steps are the natural gradient of the policies that SB3 has, and exponential weights in the tables."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.func import functional_call, hessian

from sb3_pgext import NPG, ClippedCriticPPO, ExponentialWeights
from sb3_pgext.algorithms.distributions import distribution_parameters, fisher_metric, kl_divergence
from sb3_pgext.algorithms.ew import TabularPolicy
from sb3_pgext.algorithms.npg import Objective, Steps
from sb3_pgext.algorithms.parameters import policy_parameters
from sb3_pgext.diagnostics import action_probabilities, exact_fisher, exact_policy_gradient
from sb3_pgext.envs import Bandit, random_mdp
from sb3_pgext.estimators.natural import dense_matrix, fisher_vector_product
from tests.environments import AnySpaces

SMALL = {"net_arch": {"pi": [4], "vf": [4]}, "ortho_init": False}
POLICIES = {
    "Categorical": (spaces.Discrete(3), {}),
    "MultiCategorical": (spaces.MultiDiscrete([2, 3]), {}),
    "Bernoulli": (spaces.MultiBinary(3), {}),
    "DiagGaussian": (spaces.Box(-1, 1, (2,), np.float32), {}),
    "gSDE": (spaces.Box(-1, 1, (2,), np.float32), {"use_sde": True}),
    "squashed gSDE": (
        spaces.Box(-1, 1, (2,), np.float32),
        {"use_sde": True, "policy_kwargs": {**SMALL, "squash_output": True}},
    ),
}


def in_float64(model):
    """SB3's observations stay float32: they are turned where they enter the network."""
    model.policy.double()
    model.policy.features_extractor.register_forward_pre_hook(lambda module, x: tuple(t.double() for t in x))
    return model


ALL_ACTIONS = {
    "Categorical": th.arange(3),
    "MultiCategorical": th.cartesian_prod(th.arange(2), th.arange(3)),
    "Bernoulli": th.cartesian_prod(*[th.arange(2.0)] * 3),
}


def matrix_by_enumeration(policy, observations, parameters, name):
    """Σ_a π(a|s) ∇log π ∇log πᵀ, the mean over states, from SB3's log-probabilities alone."""
    F = 0.0
    for action in ALL_ACTIONS[name]:
        log_prob = policy.get_distribution(observations).log_prob(action.expand(len(observations), *action.shape))
        rows = th.autograd.grad(log_prob, parameters, th.eye(len(log_prob)).double(), is_grads_batched=True)
        scores = th.cat([row.flatten(1) for row in rows], dim=1)
        F = F + scores.T @ (log_prob.detach().exp().unsqueeze(1) * scores) / len(observations)
    return F


@pytest.mark.parametrize("name", POLICIES)
def test_products_are_those_with_the_hessian_of_the_divergence(name):
    action_space, parameters = POLICIES[name]
    env = DummyVecEnv([lambda: AnySpaces(spaces.Box(-1, 1, (2,), np.float32), action_space)])
    settings = {"policy_kwargs": SMALL, "seed": 0, "device": "cpu", **parameters}
    policy = in_float64(NPG("MlpPolicy", env, **settings)).policy
    observations = th.randn(6, 2, generator=th.Generator().manual_seed(0))
    named = policy_parameters(policy)
    distribution = policy.get_distribution(observations)
    outputs = distribution_parameters(distribution)
    product = fisher_vector_product(outputs, fisher_metric(distribution), list(named.values()))

    class Divergence(th.nn.Module):
        def __init__(self):
            super().__init__()
            self.policy = policy

        def forward(self):
            old = tuple(z.detach() for z in outputs)
            new = self.policy.get_distribution(observations)
            return kl_divergence(old, distribution_parameters(new), new, "old_new").mean()

    sizes = [p.numel() for p in named.values()]

    def mean_kl(flat):
        parts = [part.view_as(p) for part, p in zip(flat.split(sizes), named.values(), strict=True)]
        return functional_call(Divergence(), {f"policy.{k}": v for k, v in zip(named, parts, strict=True)}, ())

    flat = th.cat([p.detach().flatten() for p in named.values()])
    F = dense_matrix(product, len(flat), flat)
    wanted = hessian(mean_kl)(flat)
    if name in ALL_ACTIONS:
        th.testing.assert_close(wanted, matrix_by_enumeration(policy, observations, list(named.values()), name))
    assert wanted.abs().max() > 1e-3
    assert (F - wanted).norm() < 1e-5 * wanted.norm()


def visits_of(probabilities, mdp, gamma):
    """Σ_t γ^t P(s_t = s), ``(S,)``."""
    transitions = th.einsum("sa,sap->sp", probabilities, th.as_tensor(mdp.transitions))
    return th.linalg.solve(th.eye(len(transitions)).double() - gamma * transitions.T, th.as_tensor(mdp.initial))


def advantages_of(probabilities, mdp, gamma):
    """A = Q - V, ``(S, A)``."""
    P, R = th.as_tensor(mdp.transitions), th.as_tensor(mdp.expected_rewards)
    transitions, rewards = th.einsum("sa,sap->sp", probabilities, P), (probabilities * R).sum(1)
    values = th.linalg.solve(th.eye(len(rewards)).double() - gamma * transitions, rewards)
    return R + gamma * P @ values - values.unsqueeze(1)


def tabular_model(algorithm, mdp, **parameters):
    """One logit per state and action."""
    model = algorithm(TabularPolicy, mdp, gamma=0.9, device="cpu", seed=0, **parameters)
    model.set_logger(Logger(None, []))
    return in_float64(model)


def tabular_npg(mdp, **parameters):
    settings = {"cg_damping": 0.0, "cg_max_steps": 500, "cg_tolerance": 1e-28, "step_rule": "fixed"}
    return tabular_model(NPG, mdp, **settings | parameters)


def exact_expectations(model, mdp):
    """What NPG estimates from samples, in closed form: Σ_s d(s) Σ_a π(a|s) A(s,a), and F with the same d."""
    states = th.arange(mdp.observation_space.n)
    probabilities = action_probabilities(model.policy, mdp)
    visits, advantages = (f(probabilities, mdp, model.gamma) for f in (visits_of, advantages_of))

    def objective_and_fisher(steps, parameters):
        distribution = model.policy.get_distribution(states)
        outputs, metric = distribution_parameters(distribution), fisher_metric(distribution)
        weights = (len(states) * visits).unsqueeze(1)
        fisher = fisher_vector_product(outputs, lambda u: (weights * metric(u)[0],), parameters)
        log_prob = distribution_parameters(model.policy.get_distribution(states))[0]
        total = (visits.unsqueeze(1) * log_prob.exp() * advantages).sum()
        return Objective(total, total, total), fisher

    return objective_and_fisher


@pytest.mark.parametrize(("make", "step_size"), [(Bandit, 0.1), (lambda: random_mdp(0), 0.02)])
def test_the_natural_step_is_exponential_weights(make, step_size):
    """Lecture 004: π_{k+1}(a|s) ∝ π_k(a|s) exp(η A(s,a)), over 100 steps, by NPG, ExponentialWeights and hand."""
    mdp = make()
    model = tabular_npg(mdp, step_size=step_size)
    other = tabular_model(ExponentialWeights, mdp, learning_rate=step_size, feedback="full")
    parameters = list(policy_parameters(model.policy).values())
    assert [p.numel() for p in parameters] == [mdp.observation_space.n * mdp.action_space.n]
    zeros = th.zeros(mdp.observation_space.n)
    steps = Steps(zeros.long(), zeros, zeros, zeros)
    weights = start = action_probabilities(model.policy, mdp)
    for _ in range(100):
        model._objective_and_fisher = exact_expectations(model, mdp)
        model._natural_step(steps, parameters)
        other.train()
        weights = weights * (step_size * advantages_of(weights, mdp, model.gamma)).exp()
        weights = weights / weights.sum(1, keepdim=True)
        assert (action_probabilities(model.policy, mdp) - weights).abs().max() < 1e-6
        assert (action_probabilities(model.policy, mdp) - action_probabilities(other.policy, mdp)).abs().max() < 1e-6
    assert (weights - start).abs().max() > 0.2


@pytest.mark.parametrize("eta", [0.05, 0.1])
def test_the_regularised_form_with_one_draw_is_exp3(eta):
    """Lecture 004: argmax <π - π_k, R̂> - KL(π, π_k) / η, R̂ of one draw, in 15 rounds of the same draws."""
    surrogate = {"surrogate": "kl", "kl_direction": "new_old", "kl_coef": 1 / eta, "vf_coef": 0.0}
    to_convergence = {"n_epochs": 100, "learning_rate": 3 * eta, "max_grad_norm": None, "normalize_advantage": False}
    one_draw = {"n_steps": 1, "batch_size": 1, "policy_kwargs": {"optimizer_class": th.optim.SGD}}
    seen = []
    for algorithm, options in (
        (ClippedCriticPPO, surrogate | to_convergence | one_draw),
        (ExponentialWeights, {"learning_rate": eta}),
    ):
        mdp, policies = Bandit([0.6, 0.4, 0.5]), []
        model = tabular_model(algorithm, mdp, **options)
        for _ in range(15):
            model.learn(1, reset_num_timesteps=False)
            policies.append(action_probabilities(model.policy, mdp))
        seen.append(th.stack(policies))
    assert (seen[0] - seen[1]).abs().max() < 1e-6
    assert (seen[0][-1] - seen[0][0]).abs().max() > 0.02


def test_exact_expectations_are_those_of_the_laboratory():
    mdp = random_mdp(1)
    model = tabular_npg(mdp)
    parameters = list(policy_parameters(model.policy).values())
    objective, fisher = exact_expectations(model, mdp)(None, parameters)
    (gradient,) = th.autograd.grad(objective.total, parameters, retain_graph=True)
    th.testing.assert_close(gradient.flatten(), exact_policy_gradient(model.policy, mdp, model.gamma))
    probabilities = action_probabilities(model.policy, mdp)
    F = exact_fisher(model.policy, mdp, model.gamma) * visits_of(probabilities, mdp, model.gamma).sum()
    found = dense_matrix(fisher, gradient.numel(), gradient)
    assert (found - F).norm() < 1e-5 * F.norm()


class TimesMatrix(th.nn.Module):
    """The last layer's parameters W are those of the layer's matrix A W."""

    def __init__(self, layer, matrix):
        super().__init__()
        self.layer, self.matrix = layer, matrix
        inverse = th.linalg.inv(matrix)
        layer.weight.data, layer.bias.data = inverse @ layer.weight.data, inverse @ layer.bias.data

    def forward(self, x):
        return self.layer(x) @ self.matrix.T


@pytest.mark.parametrize("rule", ["natural", "vanilla"])
def test_the_natural_step_does_not_depend_on_the_parameters_of_the_last_layer(rule):
    matrix = th.tensor([[3.0, 1.0], [0.0, 0.2]], dtype=th.float64)
    probabilities = []
    for reparametrised in (False, True):
        settings = {"cg_damping": 0.0, "cg_max_steps": 1000, "cg_tolerance": 1e-24, "target_kl": 1e-4}
        model = NPG("MlpPolicy", "CartPole-v1", policy_kwargs=SMALL, seed=0, device="cpu", **settings)
        _, callback = model._setup_learn(10**9)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 256)
        in_float64(model)
        if reparametrised:
            model.policy.action_net = TimesMatrix(model.policy.action_net, matrix)
        parameters = list(policy_parameters(model.policy).values())
        steps = model._sampled_steps(model.rollout)
        before = model.policy.get_distribution(steps.observations).distribution.probs.detach()
        if rule == "natural":
            model._natural_step(steps, parameters)
        else:
            objective, _ = model._objective_and_fisher(steps, parameters)
            for p, gradient in zip(parameters, th.autograd.grad(objective.total, parameters), strict=True):
                p.data += 0.3 * gradient
        probabilities.append(model.policy.get_distribution(steps.observations).distribution.probs.detach())
    moved = (probabilities[0] - before).abs().max()
    assert moved > 5e-3
    difference = (probabilities[1] - probabilities[0]).abs().max()
    assert difference < 1e-4 if rule == "natural" else difference > 0.2 * moved

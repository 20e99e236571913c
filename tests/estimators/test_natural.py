"""Claim: products with the Fisher matrix are those with the matrix itself, and conjugate gradients solve with it."""

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence
from torch.func import hessian, jacrev

from sb3_pgext.estimators.natural import (
    bernoulli_metric,
    categorical_metric,
    conjugate_gradients,
    dense_matrix,
    euclidean_metric,
    fisher_vector_product,
    normal_metric,
    trust_region_scale,
)

M, D = 7, 3


def randn(*shape, seed=0):
    return th.randn(*shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)


def normal_kl(old, new):
    return kl_divergence(Normal(*old), Normal(*new)).sum()


KINDS = {
    "categorical": (
        lambda z: categorical_metric(z[0]),
        lambda old, new: kl_divergence(Categorical(logits=old[0]), Categorical(logits=new[0])).sum(),
        lambda: (randn(M, D),),
    ),
    "bernoulli": (
        lambda z: bernoulli_metric(z[0]),
        lambda old, new: kl_divergence(Bernoulli(logits=old[0]), Bernoulli(logits=new[0])).sum(),
        lambda: (randn(M, D),),
    ),
    "normal": (lambda z: normal_metric(z[1]), normal_kl, lambda: (randn(M, D), randn(M, D, seed=1).exp())),
}


@pytest.mark.parametrize("name", KINDS)
def test_metrics_are_the_hessian_of_the_divergence(name):
    metric, kl, make = KINDS[name]
    outputs = make()
    tangents = tuple(randn(*z.shape, seed=i + 5) for i, z in enumerate(outputs))
    sizes = [z.numel() for z in outputs]

    def of_flat(z):
        return kl(outputs, [part.view(M, D) for part in z.split(sizes)])

    flat = th.cat([z.flatten() for z in outputs])
    wanted = hessian(of_flat)(flat) @ th.cat([u.flatten() for u in tangents])
    found = th.cat([image.flatten() for image in metric(outputs)(tangents)])
    th.testing.assert_close(found, wanted)


def two_outputs(parameters, x):
    hidden = (x @ parameters[0]).tanh()
    return hidden @ parameters[1], (hidden @ parameters[2]).exp()


def test_product_is_that_with_the_matrix():
    """1/M Jᵀ M J with the Jacobian written out; also where one of the outputs depends on no parameter."""
    parameters = [th.nn.Parameter(randn(*shape, seed=i)) for i, shape in enumerate(((4, 5), (5, D), (5, D)))]
    x = randn(M, 4, seed=9)
    sizes = [p.numel() for p in parameters]

    def flat_outputs(flat, std=None):
        parts = [part.view_as(p) for part, p in zip(flat.split(sizes), parameters, strict=True)]
        mean, of_net = two_outputs(parts, x)
        return th.cat([mean.flatten(), (of_net if std is None else std).flatten()])

    flat = th.cat([p.detach().flatten() for p in parameters])
    for std in (None, randn(M, D, seed=3).exp()):
        mean, of_net = two_outputs(parameters, x)
        outputs = (mean, of_net if std is None else std)
        product = fisher_vector_product(outputs, normal_metric(outputs[1]), parameters)
        J = jacrev(flat_outputs)(flat, std)
        precision = outputs[1].detach().pow(-2).flatten()
        F = J.T @ th.diag(th.cat([precision, 2 * precision])) @ J / M
        th.testing.assert_close(dense_matrix(product, len(flat), flat), F)
        v = randn(len(flat), seed=4)
        th.testing.assert_close(product(v), F @ v)


def test_the_empirical_natural_gradient_is_the_least_squares_fit_of_the_advantages():
    """Lecture 004: argmin_w Σ (∇log π_tᵀ w - Ψ_t)²."""
    W, x, n = th.nn.Parameter(randn(3, 4)), randn(40, 3, seed=1), 40
    actions, advantages = th.arange(n) % 4, randn(n, seed=2)
    log_prob = Categorical(logits=x @ W).log_prob(actions)
    product = fisher_vector_product((log_prob,), euclidean_metric, [W])
    (gradient,) = th.autograd.grad((log_prob * advantages).mean(), W, retain_graph=True)
    direction, residual, _ = conjugate_gradients(product, gradient.flatten(), 50, 1e-24)
    rows = [th.autograd.grad(log_prob[t], W, retain_graph=True)[0].flatten() for t in range(n)]
    # Adding a constant to all logits changes nothing: of all solutions both give the shortest.
    solution = th.linalg.lstsq(th.stack(rows), advantages.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    th.testing.assert_close(direction, solution, rtol=1e-8, atol=1e-10)
    assert residual < 1e-11


def positive_definite(size, seed):
    root = randn(size, size, seed=seed)
    return root @ root.T + 0.1 * th.eye(size, dtype=th.float64)


@given(size=st.integers(1, 12), seed=st.integers(0, 100))
def test_conjugate_gradients_solve(size, seed):
    A, b = positive_definite(size, seed), randn(size, seed=seed + 1)
    x, residual, n_steps = conjugate_gradients(lambda v: A @ v, b, 10 * size, 1e-20)
    th.testing.assert_close(x, th.linalg.solve(A, b), rtol=1e-6, atol=1e-8)
    assert residual <= 1e-10 * b.norm()
    assert 1 <= n_steps <= 10 * size


def test_conjugate_gradients_stop():
    A, b = positive_definite(20, 0), randn(20, seed=1)
    products = []

    def product(v):
        products.append(v)
        return A @ v

    for max_steps, tolerance in ((3, 1e-20), (100, 1e-2), (100, 1e-6)):
        products.clear()
        x, residual, n_steps = conjugate_gradients(product, b, max_steps, tolerance)
        assert n_steps == len(products)
        assert residual == pytest.approx(float((A @ x - b).norm()), rel=1e-5)
        assert n_steps == 3 if max_steps == 3 else residual**2 <= tolerance * (b @ b)
    # The fewest: one step for one eigenvalue, none where there is nothing to solve.
    assert conjugate_gradients(lambda v: 2 * v, b, 9, 1e-20)[2] == 1
    assert conjugate_gradients(product, 0 * b, 9, 1e-20)[2] == 0


def test_conjugate_gradients_without_curvature():
    """Not a number anywhere, and what was found so far."""
    A = th.diag(th.tensor([1.0, 0.5, -1.0], dtype=th.float64))
    x, residual, n_steps = conjugate_gradients(lambda v: A @ v, th.tensor([1.0, 1.0, 1.0], dtype=th.float64), 9, 1e-20)
    b = th.ones(3, dtype=th.float64)
    assert residual == pytest.approx(float((A @ x - b).norm()))
    assert x.norm() > 0
    assert n_steps < 9


def test_trust_region_scale():
    F, x = positive_definite(5, 0), randn(5)
    step = trust_region_scale(x @ F @ x, 0.01) * x
    assert 0.5 * step @ F @ step == pytest.approx(0.01)

"""Variance, signal and bias of a gradient estimator, from samples of it."""

from dataclasses import dataclass, replace

import numpy as np
import torch as th

__all__ = ["GradientStatistics", "Interval", "gradient_statistics"]


@dataclass(frozen=True)
class Interval:
    """
    An estimate with its 95 % interval.

    :param value: the estimate
    :param low: lower end
    :param high: upper end
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class GradientStatistics:
    r"""
    Variance, signal and bias of an estimator ĝ, as K samples show them.

    :param n_batches: K
    :param trace: :math:`\mathrm{tr}\,\mathrm{Cov}(\hat g)`, the summed variance of the coordinates
    :param signal_to_noise: :math:`\|E\hat g\| / \sqrt{\mathrm{tr}\,\mathrm{Cov}}`; 0 where the mean cannot be told
        from 0
    :param cosine: mean cosine of a single ĝ with the mean of the others
    :param bias: :math:`(E\hat g - g) \cdot g / \|g\|^2`, the relative error of the step along the gradient g: 0 if
        unbiased, -1 if nothing is left of it. None where g is not known, or cannot be told from 0
    :param bias_error: its standard error
    :param bias_norm: :math:`\|E\hat g - g\| / \|g\|` in all directions, with the share of the noise taken off; 0 where
        it cannot be told from 0. None as for ``bias``
    """

    n_batches: int
    trace: Interval
    signal_to_noise: Interval
    cosine: Interval
    bias: float | None = None
    bias_error: float | None = None
    bias_norm: Interval | None = None


def gradient_statistics(samples: th.Tensor, reference: th.Tensor | None = None) -> GradientStatistics:
    """
    Statistics of an estimator with jackknife intervals over its batches.

    Not the bootstrap: a batch that is drawn twice agrees with itself, which is taken for signal.

    :param samples: ĝ of K batches, ``(K, P)``
    :param reference: the gradient g that the bias is measured against: exact, ``(P,)``, or as the mean of another
        estimator, of its samples from the same batches, ``(K, P)``: what both have from the batch then cancels
    :return: the statistics
    :raises ValueError: fewer than three samples
    """
    n_batches = len(samples)
    if n_batches < 3:
        raise ValueError(f"samples of shape {tuple(samples.shape)}: allowed are at least 3 batches")
    samples = samples.detach().double().cpu()
    gram = (samples @ samples.T).numpy()
    everything, without_one = np.ones((1, n_batches)), np.ones((n_batches, n_batches)) - np.eye(n_batches)
    values, jackknife = _moments(gram, everything)[:, 0], _moments(gram, without_one)
    errors = np.sqrt((n_batches - 1) * jackknife.var(axis=1))
    low, high = np.maximum(values - 1.96 * errors, [0, 0, -1]), np.minimum(values + 1.96 * errors, [np.inf, np.inf, 1])
    trace, signal_to_noise, cosine = (
        Interval(float(v), float(a), float(b)) for v, a, b in zip(values, low, high, strict=True)
    )
    statistics = GradientStatistics(n_batches, trace, signal_to_noise, cosine)
    if reference is None:
        return statistics
    reference = reference.double().cpu().expand_as(samples)
    difference = samples - reference
    pairs = (difference, reference), (difference, difference), (reference, reference)
    products = np.stack([(x @ y.T).numpy() for x, y in pairs])
    (along, square, of_reference), jackknife = _products_of_means(products)
    # Where the reference cannot be told from 0, neither can what it would be divided by.
    if of_reference <= 1.96 * np.sqrt((n_batches - 1) * jackknife[2].var()):
        return statistics
    along, square = along / of_reference, square / of_reference
    errors = np.sqrt((n_batches - 1) * (jackknife[:2] / jackknife[2]).var(axis=1))
    norm = np.sqrt(np.maximum([square, square - 1.96 * errors[1], square + 1.96 * errors[1]], 0))
    return replace(statistics, bias=float(along), bias_error=float(errors[0]), bias_norm=Interval(*norm.tolist()))


def _products_of_means(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Inner products of means of samples, without those within a batch, in which its noise has a share.

    :param products: inner products of the samples of two quantities, of C such pairs, ``(C, K, K)``
    :return: of the means of all batches, ``(C,)``, and of those of all but one, ``(C, K)``
    """
    n = products.shape[-1]
    products = products * (1 - np.eye(n))
    total = products.sum((1, 2))
    without_one = total[:, None] - products.sum(1) - products.sum(2)
    return total / (n * (n - 1)), without_one / ((n - 1) * (n - 2))


def _moments(gram: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """
    Trace, signal-to-noise and cosine, of samples known by their inner products alone.

    :param gram: inner products of the samples, ``(K, K)``
    :param chosen: which of them to take, 0 or 1, ``(B, K)``
    :return: ``(3, B)``
    """
    n = chosen.sum(1)
    own = np.diag(gram)
    with_sum = chosen @ gram  # of each sample with the sum of those chosen, (B, K)
    sum_square = (chosen * with_sum).sum(1)
    trace = (chosen @ own - sum_square / n) / (n - 1)
    # The mean of n samples has a squared length that is too large by an n-th of the variance.
    signal = np.sqrt(np.maximum(sum_square / n**2 - trace / n, 0))
    # Of each sample with the sum of the others: its own share would make any noise look like signal.
    others_square = sum_square[:, None] - 2 * with_sum + own
    tiny = np.finfo(float).tiny
    cosine = (chosen * (with_sum - own) / np.sqrt(np.maximum(own * others_square, tiny))).sum(1) / n
    return np.stack([trace, signal / np.sqrt(np.maximum(trace, tiny)), cosine])

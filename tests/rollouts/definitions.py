"""Advantages as the lecture defines them: episode by episode, step by step, in double precision."""

import torch as th
from stable_baselines3.common.utils import obs_as_tensor


def advantages_by_definition(model, estimator="gae", lookahead=5, values=None, rewards=None):
    """
    Ψ_t of the last rollout: sums that end where an episode does, and go on with V where the rollout does.

    :param model: after a rollout
    :param estimator: "mc", "td", "n_step" or "gae"
    :param lookahead: the n of "n_step"
    :param values: V(s_t) of another critic, ``(T, E)``; None for the buffer's
    :param rewards: others than the buffer's, ``(T, E)``
    :return: Ψ, ``(M,)``, sorted by sub-environment, then time
    """
    buffer, gamma, Psi = model.rollout_buffer, model.gamma, []
    values = buffer.values if values is None else values
    rewards = buffer.rewards if rewards is None else rewards
    with th.no_grad():
        last_values = model.policy.predict_values(obs_as_tensor(model._last_obs, model.device)).flatten().tolist()
    for e in range(buffer.n_envs):
        starts = [t for t in range(buffer.buffer_size) if t == 0 or buffer.episode_starts[t, e]]
        for start, stop in zip(starts, [*starts[1:], buffer.buffer_size], strict=True):
            goes_on = stop == buffer.buffer_size and not model._last_episode_starts[e]
            r = rewards[start:stop, e].tolist()
            V = [*values[start:stop, e].tolist(), last_values[e] if goes_on else 0.0]
            T = len(r)

            def of_n_steps(t, n, r=r, V=V, T=T):
                end = min(t + n, T)
                return sum(gamma ** (k - t) * r[k] for k in range(t, end)) + gamma ** (end - t) * V[end] - V[t]

            for t in range(T):
                if estimator == "gae":
                    decay = gamma * model.gae_lambda
                    Psi.append(sum(decay ** (k - t) * of_n_steps(k, 1) for k in range(t, T)))
                else:
                    Psi.append(of_n_steps(t, {"mc": T, "td": 1, "n_step": lookahead}[estimator]))
    return th.tensor(Psi)

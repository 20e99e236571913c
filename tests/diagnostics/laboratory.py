"""Models on finite MDPs, batches of their episodes, and what the estimators make of the same batch."""

import torch as th

from sb3_pgext import REINFORCE

HIDDEN_LAYER = {"net_arch": {"pi": [8], "vf": [8]}, "ortho_init": False}
"""SB3's default initialisation makes the policy nearly uniform; this one does not."""


BATCH = {"n_episodes": "episodes", "n_steps": "rollout"}
"""Where a model has its batch, by what it collects."""


def model_on(env, cls=REINFORCE, **parameters):
    return cls("MlpPolicy", env, **{"policy_kwargs": HIDDEN_LAYER, "seed": 0, "device": "cpu", **parameters})


def collect_batches(model, n_batches):
    """Batches of the policy as it is."""
    _, callback = model._setup_learn(10**9)
    batches = []
    for _ in range(n_batches):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, getattr(model, model.batch_argument))
        batches.append(getattr(model, BATCH[model.batch_argument]))
    return batches


def estimates(model, batches, **options):
    """ĝ of each batch under these options, which do not influence how it is collected."""
    for name, value in options.items():
        setattr(model, name, value)
    model._check_arguments()
    samples = []
    for batch in batches:
        setattr(model, BATCH[model.batch_argument], batch)
        samples.append(model.estimate_gradient())
    return th.stack(samples)

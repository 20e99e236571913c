"""Random flat batches for the estimators' tests."""

import torch as th
from hypothesis import strategies as st


def flat_batch(lengths, seed=0, device="cpu", dtype=th.float64):
    """Episode and time indices of episodes of these lengths, and random rewards."""
    lengths = th.tensor(lengths)
    episode = th.repeat_interleave(th.arange(len(lengths)), lengths)
    time = th.cat([th.arange(int(n)) for n in lengths])
    rewards = th.randn(len(time), generator=th.Generator().manual_seed(seed), dtype=dtype)
    return episode.to(device), time.to(device), rewards.to(device)


episode_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=6)

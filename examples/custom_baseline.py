"""A baseline of your own for REINFORCE: the running mean of the returns at each time, over all batches so far.

usage: python examples/custom_baseline.py [--timesteps 30000]   (the progress bar needs tqdm and rich: the extra zoo)
"""

import argparse

import torch as th
from stable_baselines3.common.utils import safe_mean

from sb3_pgext import REINFORCE
from sb3_pgext.rollouts import EpisodeBatch


class RunningTimeBaseline:
    """
    b_t: the mean of G_t over all earlier batches. It knows nothing of the batch at hand, so the gradient is unbiased.

    :param horizon: later steps share the last mean
    """

    def __init__(self, horizon: int = 500):
        self.sums, self.counts = th.zeros(horizon), th.zeros(horizon)

    def __call__(self, episodes: EpisodeBatch, returns: th.Tensor) -> th.Tensor:
        """
        :param episodes: the batch, M steps
        :param returns: G_t, ``(M,)``
        :return: b_t, ``(M,)``
        """
        means = self.sums / self.counts.clamp(min=1)
        return means.to(returns.device)[self._time(episodes)]

    def fit(self, episodes: EpisodeBatch, returns: th.Tensor) -> None:
        """Called after the policy's step, with the same batch."""
        time = self._time(episodes).cpu()
        self.sums.index_add_(0, time, returns.cpu())
        self.counts.index_add_(0, time, th.ones(len(time)))

    def _time(self, episodes: EpisodeBatch) -> th.Tensor:
        return episodes.time.clamp(max=len(self.sums) - 1)


def main() -> None:
    """Train on CartPole-v1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=30_000)
    arguments = parser.parse_args()
    model = REINFORCE("MlpPolicy", "CartPole-v1", learning_rate=5e-3, baseline=RunningTimeBaseline(), seed=0)
    model.learn(arguments.timesteps, progress_bar=True)
    print(f"mean return of the last episodes: {safe_mean([e['r'] for e in model.ep_info_buffer]):.1f}")


if __name__ == "__main__":
    main()

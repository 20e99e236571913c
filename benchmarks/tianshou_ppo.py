"""Tianshou's PPO behind the few names that ``throughput.py`` uses of SB3's, as a peer.

Tianshou's own vector environment, collector, buffer and update; networks, hyperparameters and optimizer as SB3's. The
collector resets sub-environments itself, outside their ``step``: that counts as collection, not as environment.
"""

from typing import Any

import numpy as np
import torch as th
from gymnasium.wrappers import ClipAction
from stable_baselines3.common.vec_env import DummyVecEnv
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
from tianshou.utils.torch_utils import policy_within_training_step, torch_train_mode
from torch.distributions import Categorical, Independent, Normal


class TianshouPPO:
    """
    :param policy: ignored: networks of tanh layers
    :param env: with a Box of one dimension as observations, and Discrete or Box actions
    :param n_steps: of each sub-environment per update
    :param batch_size: of a minibatch
    :param n_epochs: passes over the rollout
    :param seed: of the networks and the actions
    :param device: where the networks are
    :param policy_kwargs: ``net_arch`` with the widths of the layers of ``pi`` and ``vf``
    """

    def __init__(
        self,
        policy: str,
        env: DummyVecEnv,
        n_steps: int,
        batch_size: int,
        n_epochs: int,
        seed: int,
        device: str,
        policy_kwargs: dict[str, Any],
    ):
        th.manual_seed(seed)
        self.n_steps, self.batch_size, self.n_epochs = n_steps, batch_size, n_epochs
        discrete = hasattr(env.action_space, "n")
        limits = (lambda e: e) if discrete else ClipAction  # Tianshou's own clips to ±1
        self.env = DummyVectorEnv([lambda e=e: limits(e) for e in env.envs])  # type: ignore[misc]
        self.env.seed(seed)
        widths = policy_kwargs["net_arch"]

        def features(name: str) -> Net:
            shape = int(np.prod(env.observation_space.shape))  # type: ignore[arg-type]
            return Net(state_shape=shape, hidden_sizes=widths[name], activation=th.nn.Tanh)

        if discrete:
            actor: Any = DiscreteActor(
                preprocess_net=features("pi"), action_shape=env.action_space.n, softmax_output=False
            )
            critic: Any = DiscreteCritic(preprocess_net=features("vf"))
        else:
            actor = ContinuousActorProbabilistic(
                preprocess_net=features("pi"), action_shape=env.action_space.shape, unbounded=True
            )
            critic = ContinuousCritic(preprocess_net=features("vf"))
        for module, last in ((actor, actor.last if discrete else actor.mu), (critic, critic.last)):
            for layer in (m for m in module.modules() if isinstance(m, th.nn.Linear)):
                of_last = layer in set(last.modules())
                th.nn.init.orthogonal_(layer.weight, (0.01 if module is actor else 1.0) if of_last else 2**0.5)
                th.nn.init.zeros_(layer.bias)
        self.algorithm = PPO(
            policy=ProbabilisticActorPolicy(
                actor=actor.to(device),
                dist_fn=(lambda logits: Categorical(logits=logits))
                if discrete
                else (lambda mean_and_std: Independent(Normal(*mean_and_std), 1)),
                observation_space=env.observation_space,
                action_space=env.action_space,
                action_scaling=False,
                action_bound_method=None,
            ),
            critic=critic.to(device),
            optim=AdamOptimizerFactory(lr=3e-4, eps=1e-5),
            ent_coef=0.0,
            max_grad_norm=0.5,
            max_batchsize=n_steps * env.num_envs,
        )
        buffer = VectorReplayBuffer(n_steps * env.num_envs, env.num_envs)
        self.collector: Collector = Collector(self.algorithm, self.env, buffer)
        self.num_timesteps = 0
        self.rollout_buffer = None

    def _setup_learn(self, total_timesteps: int) -> tuple[int, None]:
        self.collector.reset()
        return total_timesteps, None

    def collect_rollouts(self, env: DummyVectorEnv, callback: None, rollout_buffer: None, n_rollout_steps: int) -> None:
        """A rollout."""
        self.collector.reset_buffer(keep_statistics=True)
        n = n_rollout_steps * self.env.env_num
        with policy_within_training_step(self.algorithm.policy), torch_train_mode(self.algorithm.policy, False):
            self.collector.collect(n_step=n)
        self.num_timesteps += n

    def train(self) -> None:
        """Epochs of minibatch steps."""
        with policy_within_training_step(self.algorithm.policy), torch_train_mode(self.algorithm.policy):
            self.algorithm.update(self.collector.buffer, batch_size=self.batch_size, repeat=self.n_epochs)

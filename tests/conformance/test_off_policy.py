"""
Claim: OffPolicyActorCritic and DiscreteSAC learn, count, log and call back as SB3's SAC does, which goes through the
same tests where it can: what it does not pass is not asked of them.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_pgext import DiscreteSAC, OffPolicyActorCritic
from tests.algorithms.off_policy import on_actions, small, vector_of
from tests.conformance.models import error_of, make_env, sampled
from tests.conformance.test_learning import Bar, Kept
from tests.environments import ACTIONS, DICT, IMAGE, IMAGE_LAST, VECTOR, AnySpaces

OURS = (OffPolicyActorCritic, DiscreteSAC)
ALL = (*OURS, SAC)


def name_of(algorithm):
    return algorithm.__name__


every_algorithm = pytest.mark.parametrize("algorithm", ALL, ids=name_of)
each_of_ours = pytest.mark.parametrize("algorithm", OURS, ids=name_of)


def action_of(algorithm):
    return "discrete" if algorithm is DiscreteSAC else "box"


def made(algorithm, n_envs=2, **arguments):
    return on_actions(action_of(algorithm), n_envs, algorithm=algorithm, **{"train_freq": 5, **arguments})


# --- counting, schedules, seeds --------------------------------------------------------------------------------------


@every_algorithm
@pytest.mark.parametrize(("total", "expected"), [(0, 0), (1, 10), (20, 20), (21, 30), (50, 50)])
def test_the_number_of_steps_is_a_lower_bound(algorithm, total, expected):
    """Of 5 vector steps of two sub-environments each; updates begin after the 20 steps of exploration."""
    model = made(algorithm)
    before = vector_of(model)
    assert model.learn(total) is model
    assert model.num_timesteps == expected
    assert model._n_updates == max(0, (expected - 20) // 10)
    assert th.equal(vector_of(model), before) == (expected <= 20)


GRADIENT_STEPS = {
    "as many as steps": ({"gradient_steps": -1}, 3 * 10),
    "none": ({"gradient_steps": 0}, 0),
    "three": ({"gradient_steps": 3}, 9),
    "at once": ({"gradient_steps": 1, "learning_starts": 0}, 5),
    "episodes": ({"gradient_steps": 2, "train_freq": (2, "episode"), "n_envs": 1}, 6),
    "a step": ({"train_freq": (1, "step"), "n_envs": 1}, 30),
}


@every_algorithm
@pytest.mark.parametrize("case", GRADIENT_STEPS)
def test_gradient_steps(algorithm, case):
    arguments, expected = GRADIENT_STEPS[case]
    assert made(algorithm, **arguments).learn(50)._n_updates == expected


@every_algorithm
def test_several_environments_play_no_whole_episodes(algorithm):
    with pytest.raises(AssertionError, match="one env when doing episodic training"):
        made(algorithm, train_freq=(1, "episode")).learn(10)


@every_algorithm
@pytest.mark.parametrize("reset_num_timesteps", [True, False])
def test_steps_are_counted_on_or_anew(algorithm, reset_num_timesteps):
    model = made(algorithm).learn(50)
    n_updates, size = model._n_updates, model.replay_buffer.size()
    model.learn(50, reset_num_timesteps=reset_num_timesteps)
    assert model.num_timesteps == (50 if reset_num_timesteps else 100)
    assert model._n_updates == n_updates + (3 if reset_num_timesteps else 5)
    assert model.replay_buffer.size() == size + 25


@every_algorithm
def test_the_learning_rate_of_all_optimizers_follows_its_schedule(algorithm):
    model = made(algorithm, learning_rate=lambda progress: 0.1 * progress).learn(50)
    optimizers = model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer
    assert [o.param_groups[0]["lr"] for o in optimizers] == [pytest.approx(0.0, abs=1e-9)] * 3
    model.learn(100)
    rates = [o.param_groups[0]["lr"] for o in optimizers]
    model.learn(50, reset_num_timesteps=False)
    assert rates[0] == rates[1] == rates[2] == pytest.approx(0.0, abs=1e-9)


@every_algorithm
def test_a_seed_fixes_the_run_to_the_bit(algorithm):
    def run(seed):
        model = made(algorithm, seed=seed).learn(60)
        return vector_of(model), model.predict(sampled(VECTOR, 30))[0], model.replay_buffer.actions

    first, again, other = run(3), run(3), run(4)
    for ours, same, different in zip(first, again, other, strict=True):
        assert np.array_equal(ours, same)
        assert not np.array_equal(ours, different)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_sub_environments_in_other_processes():
    here = make_env(VECTOR, ACTIONS["box"], seed=0)
    options = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}
    there = make_env(VECTOR, ACTIONS["box"], seed=0, **options)
    found, expected = (vector_of(small(OffPolicyActorCritic, env).learn(60)) for env in (there, here))
    there.close()
    assert th.equal(found, expected)


# --- what is observed and done ---------------------------------------------------------------------------------------


def assert_learns_and_predicts(model):
    """All parameters move, the targets' too; predictions are actions, the same alone as together."""
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(40)
    still = [name for name, p in model.policy.named_parameters() if th.equal(p, before[name])]
    shared = model.policy.share_features_extractor
    # SB3's targets have an extractor of their own, which follows; a shared one is the actor's.
    assert still == [] or (shared and all("features_extractor" in name for name in still))
    space, observations = model.action_space, sampled(model.observation_space, 3)
    actions, _ = model.predict(observations, deterministic=True)
    assert all(space.contains(np.int64(a) if space.shape == () else a) for a in actions)


OBSERVATIONS = {
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(4),
    "box_2d": spaces.Box(-1, 1, (2, 3), np.float32),
    "float64": spaces.Box(-1, 1, (3,), np.float64),
    "integers": spaces.Box(-5, 5, (3,), np.int64),
    "unbounded": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "image": IMAGE,
    "image_channels_last": IMAGE_LAST,
    "dict": DICT,
    "dict_channels_last": spaces.Dict({"image": IMAGE_LAST, "vector": VECTOR}),
}


def policy_for(kind):
    return "MultiInputPolicy" if "dict" in kind else "CnnPolicy" if "image" in kind else "MlpPolicy"


@pytest.mark.parametrize(
    ("kind", "action"),
    [(kind, list(ACTIONS)[(i + j) % 5]) for i, kind in enumerate(OBSERVATIONS) for j in (0, 2)],
)
def test_observations_and_actions(kind, action):
    """Each kind of observation with two of the action spaces."""
    of_images = {"buffer_size": 60, "batch_size": 4, "train_freq": 10} if "image" in kind or "dict" in kind else {}
    network = {"features_extractor_kwargs": {"features_dim": 16}} if policy_for(kind) == "CnnPolicy" else {}
    arguments = {"policy": policy_for(kind), "policy_kwargs": network, "observation": OBSERVATIONS[kind], **of_images}
    algorithm = OffPolicyActorCritic if action.startswith("box") else DiscreteSAC
    assert_learns_and_predicts(on_actions(action, 2, algorithm=algorithm, **arguments))


@pytest.mark.parametrize("action", ["discrete", "box"])
def test_a_shared_features_extractor_is_the_actors(action):
    """It learns from the actor's loss alone, as in SAC."""
    arguments = {"policy": "MultiInputPolicy", "observation": spaces.Dict(vector=VECTOR, kind=spaces.Discrete(3))}
    kwargs = {"share_features_extractor": True, "features_extractor_class": Parts}
    model = on_actions(action, 2, policy_kwargs=kwargs, **arguments)
    assert model.actor.features_extractor is model.critic.features_extractor
    of_critic = {id(p) for group in model.critic.optimizer.param_groups for p in group["params"]}
    assert all(id(p) not in of_critic for p in model.critic.features_extractor.parameters())
    before = [p.detach().clone() for p in model.actor.features_extractor.parameters()]
    model.learn(40)
    assert not all(th.equal(p, q) for p, q in zip(model.actor.features_extractor.parameters(), before, strict=True))


class Parts(FlattenExtractor):
    """Of Dict observations, with something to learn."""

    def __init__(self, observation_space):
        super(FlattenExtractor, self).__init__(observation_space, 6)
        self.layer = th.nn.Linear(6, 6)

    def forward(self, observations):
        return self.layer(th.cat([observations["vector"], observations["kind"].flatten(1)], dim=1))


def test_stacked_observations():
    env = VecFrameStack(make_env(IMAGE_LAST), 2)
    model = small(DiscreteSAC, env, "CnnPolicy", buffer_size=60, batch_size=4, train_freq=10)
    assert model.observation_space.shape == (6, 36, 36)
    assert_learns_and_predicts(model)


@pytest.mark.parametrize("net_arch", [[], [8, 4], {"pi": [8], "qf": [4, 4]}, {"pi": [], "qf": [4]}], ids=str)
@pytest.mark.parametrize("action", ["discrete", "box"])
def test_net_arch(net_arch, action):
    kwargs = {"net_arch": net_arch, "activation_fn": th.nn.Tanh, "n_critics": 3}
    model = on_actions(action, policy_kwargs=kwargs)
    widths = net_arch if isinstance(net_arch, dict) else {"pi": net_arch, "qf": net_arch}
    layers = [m for m in model.actor.latent_pi if isinstance(m, th.nn.Linear)]
    assert [layer.out_features for layer in layers] == widths["pi"]
    networks = list(model.critic.q_networks)
    assert len(networks) == len(model.critic_target.q_networks) == 3
    hidden = [m.out_features for m in networks[0] if isinstance(m, th.nn.Linear)][:-1]
    assert hidden == widths["qf"]
    assert_learns_and_predicts(model)


@each_of_ours
def test_an_optimizer_of_the_users_own(algorithm):
    kwargs = {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}}
    model = made(algorithm, policy_kwargs=kwargs, learning_rate=1e-2)
    assert_learns_and_predicts(model)
    for network in (model.actor, model.critic):
        assert isinstance(network.optimizer, th.optim.AdamW)
        assert (network.optimizer.param_groups[0]["weight_decay"], len(network.optimizer.state) > 0) == (0.1, True)


UNSUITABLE = {
    "MlpPolicy for a dict": lambda cls: made(cls, observation=DICT),
    "CnnPolicy for a vector": lambda cls: made(cls, policy="CnnPolicy"),
    "unknown argument": lambda cls: made(cls, no_such_argument=1),
    "unknown argument of the policy": lambda cls: made(cls, policy_kwargs={"no_such_argument": 1}),
}


@each_of_ours
@pytest.mark.parametrize("case", UNSUITABLE)
def test_what_does_not_fit_raises_what_sb3_raises(algorithm, case):
    found, expected = (
        error_of(lambda cls=cls: UNSUITABLE[case](cls), "OffPolicyActorCriticPolicy", "SACPolicy", cls.__name__)
        for cls in (algorithm, SAC)
    )
    assert expected is not None
    assert found == expected


# --- replays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["reparameterized", "all_action"])
def test_hindsight(gradient):
    env = DummyVecEnv([lambda: BitFlippingEnv(n_bits=3, continuous=True, max_steps=5)])
    draws = {"n_action_samples": 2} if gradient == "all_action" else {}
    kwargs = {"n_sampled_goal": 2, "goal_selection_strategy": "future"}
    model = small(OffPolicyActorCritic, env, "MultiInputPolicy", gradient=gradient, replay_buffer_kwargs=kwargs,
                  replay_buffer_class=HerReplayBuffer, **draws).learn(60)  # fmt: skip
    assert model._n_updates == 40
    model = small(DiscreteSAC, DummyVecEnv([lambda: BitFlippingEnv(n_bits=3, max_steps=5)]), "MultiInputPolicy",
                  replay_buffer_class=HerReplayBuffer, train_freq=1).learn(60)  # fmt: skip
    assert model._n_updates == 40


@each_of_ours
@pytest.mark.parametrize("n_envs", [1, 2])
def test_little_memory(algorithm, n_envs):
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = made(algorithm, n_envs, buffer_size=30, **kwargs).learn(100)
    assert model.replay_buffer.full
    assert not hasattr(model.replay_buffer, "next_observations")
    with pytest.raises(ValueError, match="optimize_memory_usage"):
        made(algorithm, optimize_memory_usage=True)


@pytest.mark.parametrize("algorithm", [*OURS, SAC], ids=name_of)
def test_several_steps(algorithm):
    model = made(algorithm, n_steps=3, gamma=0.5).learn(60)
    samples = model.replay_buffer.sample(30)
    assert set(samples.discounts.flatten().tolist()) == {0.5, 0.25, 0.125}
    assert model.n_steps == 3


@each_of_ours
def test_time_limits_are_no_ends(algorithm):
    """Every second episode is truncated."""
    model = made(algorithm, gamma=0.9).learn(60)
    buffer = model.replay_buffer
    assert buffer.timeouts.sum() > 0
    assert buffer.dones.sum() == pytest.approx(2 * buffer.timeouts.sum(), abs=2)
    np.random.seed(0)  # noqa: NPY002
    assert model.replay_buffer.sample(200).dones.mean() < buffer.dones[: buffer.pos].mean()


# --- logs and callbacks ----------------------------------------------------------------------------------------------


def logged(model, total):
    kept = Kept()
    model.set_logger(Logger(None, [kept]))
    model.learn(total)
    return kept.dumped


@each_of_ours
@pytest.mark.parametrize("ent_coef", ["auto", 0.1])
def test_logs_have_the_keys_of_sac(algorithm, ent_coef):
    ours, theirs = (logged(made(cls, ent_coef=ent_coef), 60) for cls in (algorithm, SAC))
    assert [log["step"] for log in ours] == [log["step"] for log in theirs]
    assert [set(log) for log in ours] == [set(log) for log in theirs]
    assert ("train/ent_coef_loss" in ours[-1]) == (ent_coef == "auto")
    assert ours[-1]["train/n_updates"] == theirs[-1]["train/n_updates"]


class Recorder(BaseCallback):
    """What it is told, with names and shapes."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after, self.calls, self.seen = stop_after, [], {}

    def _note(self, event):
        self.calls.append((event, self.model.num_timesteps, self.n_calls, self.model.replay_buffer.size()))
        shapes = {name: np.shape(x) for name, x in self.locals.items() if isinstance(x, (np.ndarray, bool, list))}
        self.seen.setdefault(event, (set(self.locals) - {"self", "__class__"}, shapes))

    def _on_training_start(self):
        self._note("training start")

    def _on_rollout_start(self):
        self._note("rollout start")

    def _on_step(self):
        self._note("step")
        return self.stop_after is None or self.n_calls < self.stop_after

    def _on_rollout_end(self):
        self._note("rollout end")

    def _on_training_end(self):
        self._note("training end")


@pytest.mark.parametrize("stop_after", [None, 13])
@pytest.mark.parametrize("use_sde", [False, True])
def test_callbacks_are_told_what_sac_tells_them(stop_after, use_sde):
    ours, theirs = Recorder(stop_after), Recorder(stop_after)
    for cls, recorder in ((OffPolicyActorCritic, ours), (SAC, theirs)):
        made(cls, use_sde=use_sde).learn(40, [recorder])
    assert ours.calls == theirs.calls
    for event in ("step", "rollout end"):
        if event in theirs.seen:
            assert theirs.seen[event][0] <= ours.seen[event][0]
            assert theirs.seen[event][1] == ours.seen[event][1]


@every_algorithm
def test_a_callback_that_ends_the_training(algorithm):
    model = made(algorithm).learn(60, lambda local, _: local["self"].num_timesteps < 32)
    assert model.num_timesteps == 32
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps >= 52


@each_of_ours
def test_sb3s_callbacks(algorithm, tmp_path):
    """Evaluations, checkpoints with the replay, every few steps, ends; together."""
    env = make_env(VECTOR, ACTIONS[action_of(algorithm)], n_envs=1)
    best = StopTrainingOnRewardThreshold(1e9)
    evaluation = EvalCallback(env, best, n_eval_episodes=2, eval_freq=10, best_model_save_path=str(tmp_path), verbose=0)
    saving = CheckpointCallback(10, str(tmp_path), "own", save_replay_buffer=True)
    recorder = Recorder()
    model = made(algorithm).learn(60, CallbackList([evaluation, saving, EveryNTimesteps(20, recorder)]))
    assert [n for event, n, *_ in recorder.calls if event == "step"] == [20, 40, 60]
    assert evaluation.last_mean_reward > -np.inf
    loaded = algorithm.load(tmp_path / "own_40_steps", env=model.env)
    loaded.load_replay_buffer(tmp_path / "own_replay_buffer_40_steps")
    assert (loaded.num_timesteps, loaded.replay_buffer.size()) == (40, 19)
    assert algorithm.load(tmp_path / "best_model").num_timesteps > 0
    assert made(algorithm).learn(200, StopTrainingOnMaxEpisodes(3)).num_timesteps <= 40


@each_of_ours
def test_an_evaluation_leaves_the_training_as_it_is(algorithm):
    expected = vector_of(made(algorithm).learn(60))
    env = make_env(VECTOR, ACTIONS[action_of(algorithm)], n_envs=1)
    model = made(algorithm).learn(60, EvalCallback(env, n_eval_episodes=2, eval_freq=7, verbose=0))
    assert th.equal(vector_of(model), expected)


@each_of_ours
def test_progress_bar_and_tensorboard(algorithm, monkeypatch, tmp_path):
    from stable_baselines3.common import callbacks as sb3_callbacks

    monkeypatch.setattr(sb3_callbacks, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    made(algorithm, tensorboard_log=str(tmp_path)).learn(30, progress_bar=True)
    assert [(bar.total, bar.n, bar.closed) for bar in Bar.made] == [(30, 30, True)]
    assert [path.name for path in tmp_path.iterdir()] == [f"{algorithm.__name__}_1"]


# --- training and evaluation mode ------------------------------------------------------------------------------------


class Noted(th.nn.Dropout):
    """Notes in which mode it is evaluated."""

    def __init__(self):
        super().__init__(0.5)
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        return super().forward(x)


class NoisyTrunk(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.norm, self.dropout = th.nn.BatchNorm1d(self.features_dim), Noted()

    def forward(self, observations):
        return self.dropout(self.norm(super().forward(observations)))


@every_algorithm
def test_modes_of_the_networks(algorithm):
    """Actor and critics train in updates only, the targets never; acting and predicting are evaluation."""
    model = made(algorithm, train_freq=30, policy_kwargs={"features_extractor_class": NoisyTrunk})
    of = {name: getattr(model, name).features_extractor for name in ("actor", "critic", "critic_target")}
    statistics = {name: extractor.norm.running_mean.clone() for name, extractor in of.items()}
    seen = {}

    class Look(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            seen.update({name: list(extractor.dropout.modes) for name, extractor in of.items()})
            assert all(th.equal(of[name].norm.running_mean, statistics[name]) for name in of)

    model.learn(60, Look())
    assert True not in seen["actor"]
    assert seen["critic"] == seen["critic_target"] == []
    assert set(of["actor"].dropout.modes) == {True} | set(seen["actor"])
    assert set(of["critic"].dropout.modes) == {True}
    assert set(of["critic_target"].dropout.modes) == {False}
    assert all(not th.equal(of[name].norm.running_mean, statistics[name]) for name in of), "the targets' are copied"
    after = of["actor"].norm.running_mean.clone()
    observations = sampled(VECTOR, 50)
    actions = [model.predict(observations, deterministic=True)[0] for _ in range(2)]
    np.testing.assert_array_equal(*actions)
    assert th.equal(of["actor"].norm.running_mean, after)


# --- environments ----------------------------------------------------------------------------------------------------


@every_algorithm
def test_another_environment_is_learnt_from(algorithm):
    model, env = made(algorithm).learn(40), make_env(VECTOR, ACTIONS[action_of(algorithm)])
    model.set_env(env)
    assert model.get_env() is env
    model.learn(40, reset_num_timesteps=False)
    assert env.get_attr("episodes") != [0, 0]


@every_algorithm
def test_normalization_is_that_of_the_present_environment(algorithm):
    env = VecNormalize(make_env(VECTOR, ACTIONS[action_of(algorithm)]))
    model = small(algorithm, env).learn(40)
    assert env.obs_rms.count > 40
    assert model.replay_buffer.sample(10, env=env).rewards.std() != model.replay_buffer.sample(10).rewards.std()
    model.set_env(make_env(VECTOR, ACTIONS[action_of(algorithm)]))
    assert model.get_vec_normalize_env() is None
    model.learn(40)


@every_algorithm
def test_episodes_are_counted_once(algorithm):
    model = made(algorithm).learn(50)
    assert [info["l"] for info in model.ep_info_buffer] == [5] * 10
    assert model._episode_num == 10
    bare = small(algorithm, AnySpaces(VECTOR, deepcopy(ACTIONS[action_of(algorithm)])))
    assert bare.get_env().env_is_wrapped(Monitor) == [True]


def test_pixels_and_atari_networks():
    """CnnPolicy is NatureCNN unless another extractor is given."""
    model = on_actions("discrete", observation=IMAGE, policy="CnnPolicy", buffer_size=20, algorithm=DiscreteSAC,
                       learning_starts=10)  # fmt: skip
    assert isinstance(model.actor.features_extractor, NatureCNN)
    assert model.actor.features_extractor is not model.critic.features_extractor
    assert make_vec_env(lambda: AnySpaces(IMAGE, ACTIONS["discrete"]), 1).observation_space == model.observation_space

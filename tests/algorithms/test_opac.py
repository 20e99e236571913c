"""
Claim: OffPolicyActorCritic is SB3's SAC to the bit where it has SAC's settings; its other gradients are what MATH.md
says, and each learns; the replay keeps the log-probability of each action; what changes has its effect at once.
"""

from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pgext import OffPolicyActorCritic
from sb3_pgext.algorithms.q_policies import action_distribution
from sb3_pgext.engine import graphs
from sb3_pgext.rollouts.transitions import Transitions
from tests.algorithms.off_policy import as_sac, numbers_of, on_actions, small, vector_of
from tests.environments import ACTIONS, VECTOR, RewardsAndLimits
from tests.tracing import traced_only

GRADIENTS = [
    *((gradient, action) for gradient in ("all_action", "sampled") for action in ACTIONS),
    *(("reparameterized", action) for action in ("box", "box_2d")),
]
each_gradient = pytest.mark.parametrize(("gradient", "action"), GRADIENTS)


def options_of(gradient, action):
    draws = {"n_action_samples": 4} if gradient != "reparameterized" and action.startswith("box") else {}
    return {"gradient": gradient, **draws}


# --- SB3's SAC -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ent_coef", ["auto", 0.2])
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "HalfCheetah-v5"])
def test_500_gradient_steps_are_sacs(env_id, ent_coef):
    as_sac_on(env_id, 521, ent_coef=ent_coef)


@pytest.mark.prove
@pytest.mark.parametrize("ent_coef", ["auto", 0.2])
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "HalfCheetah-v5"])
def test_500_gradient_steps_are_sacs_with_its_networks_and_batches(env_id, ent_coef):
    network = {"net_arch": [256, 256]}
    as_sac_on(env_id, 601, ent_coef=ent_coef, batch_size=256, learning_starts=100, policy_kwargs=network)


def as_sac_on(env_id, total, **arguments):
    if env_id == "HalfCheetah-v5":
        pytest.importorskip("mujoco")
    model, _ = as_sac(lambda: make_vec_env(env_id, 1, seed=0), total, buffer_size=1000, **arguments)
    assert model._n_updates >= 500


def pendulum(n_envs=1, wrapper=lambda env: env):
    """Episodes of 30 steps, so that some end in each training."""
    return wrapper(make_vec_env("Pendulum-v1", n_envs, seed=0, env_kwargs={"max_episode_steps": 30}))


def several_parts():
    space = spaces.Dict(vector=VECTOR, kind=spaces.Discrete(3))
    return make_vec_env(lambda: RewardsAndLimits(deepcopy(space), deepcopy(ACTIONS["box"])), 2, seed=0)


def goals():
    return DummyVecEnv([lambda: BitFlippingEnv(n_bits=3, continuous=True, max_steps=5)])


MEMORY = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
OU = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1))
VARIANTS = {
    "auto_0.1": (pendulum, {"ent_coef": "auto_0.1"}),
    "target entropy": (pendulum, {"target_entropy": -0.3}),
    "two environments": (lambda: pendulum(2), {"train_freq": 2, "gradient_steps": 3}),
    "gSDE": (pendulum, {"use_sde": True}),
    "gSDE, often": (
        lambda: pendulum(2),
        {"use_sde": True, "sde_sample_freq": 4, "use_sde_at_warmup": True, "train_freq": 8, "gradient_steps": 4},
    ),
    "VecNormalize": (lambda: pendulum(2, VecNormalize), {}),
    "noise": (pendulum, {"action_noise": NormalActionNoise(np.zeros(1), np.full(1, 0.2))}),
    "noise of two": (lambda: pendulum(2), {"action_noise": OU}),
    "n_steps": (pendulum, {"n_steps": 3}),
    "Dict": (several_parts, {"policy": "MultiInputPolicy"}),
    "shared": (several_parts, {"policy": "MultiInputPolicy", "policy_kwargs": {"share_features_extractor": True}}),
    "episodes": (pendulum, {"train_freq": (1, "episode"), "gradient_steps": -1}),
    "little memory": (pendulum, MEMORY),
    "hindsight": (goals, {"policy": "MultiInputPolicy", "replay_buffer_class": HerReplayBuffer}),
    "targets": (pendulum, {"target_update_interval": 2, "gradient_steps": 3, "tau": 0.5, "train_freq": 4}),
    "three critics": (pendulum, {"policy_kwargs": {"n_critics": 3}}),
    "one critic": (pendulum, {"policy_kwargs": {"n_critics": 1}}),
    "another optimizer": (pendulum, {"policy_kwargs": {"optimizer_class": th.optim.RMSprop}}),
    "schedule": (pendulum, {"learning_rate": lambda progress: 1e-3 * progress}),
    "at once": (pendulum, {"learning_starts": 0}),
    "full": (pendulum, {"buffer_size": 40}),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_other_settings_are_sacs_too(case):
    env, arguments = VARIANTS[case]
    as_sac(env, 70, **arguments)


class Normalized(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.norm = th.nn.BatchNorm1d(self.features_dim)

    def forward(self, observations):
        return self.norm(super().forward(observations))


@pytest.mark.parametrize("share", [True, False])
def test_batch_norm_is_sacs_but_for_the_order_of_the_actors_statistics(share):
    """SAC's actor sees the states before the next states, ours after them. Nobody acts by them here."""
    kwargs = {"features_extractor_class": Normalized, "share_features_extractor": share}
    models = []
    for cls in (OffPolicyActorCritic, SAC):
        model = small(cls, pendulum(), policy_kwargs=kwargs)
        model._sample_action = lambda *_, model=model: type(model)._sample_action(model, 10**9)
        models.append(model.learn(30))
    ours, theirs = map(numbers_of, models)
    of_actor = "features_extractor" if share else "actor.features_extractor"
    for name in ours:
        if not ("running_" in name and of_actor in name) and not (share and "critic" in name):
            th.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)
    moved = ours["critic_target.features_extractor.norm.running_mean"]
    assert (moved != 0).any(), "the targets' statistics are the critics'"


# --- compile ---------------------------------------------------------------------------------------------------------


def after_updates(n_updates, compile, gradient, action, **arguments):
    model = on_actions(action, 2, compile=compile, **options_of(gradient, action), **arguments)
    model.learn(30)
    for _ in range(n_updates - 1):
        model.train(1, 16)
    return model


@pytest.mark.parametrize(
    ("gradient", "action"),
    [("all_action", "discrete"), ("all_action", "box"), ("sampled", "multi_discrete"), ("sampled", "multi_binary"),
     ("sampled", "box_2d"), ("reparameterized", "box")],
)  # fmt: skip
def test_traced_updates_are_the_eager_ones(gradient, action, monkeypatch):
    monkeypatch.setattr(graphs, "_compile", traced_only)
    eager, traced = (after_updates(4, compile, gradient, action) for compile in (False, True))
    assert None not in graphs._graphs[traced.policy].values(), "all of it is compiled"
    assert len(graphs._graphs[traced.policy]) == 3, "acting, the critics' step and the actor's"
    ours, theirs = map(numbers_of, (traced, eager))
    for name in ours:
        th.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.compiler
@pytest.mark.parametrize(("gradient", "action"), [("reparameterized", "box"), ("sampled", "box")])
def test_compiled_updates_are_the_eager_ones(gradient, action):
    """To rounding after one update; close after several."""
    for n_updates, tolerance in ((1, 1e-6), (5, 1e-4)):
        eager, compiled = (after_updates(n_updates, compile, gradient, action) for compile in (False, True))
        th.testing.assert_close(vector_of(compiled), vector_of(eager), rtol=tolerance, atol=tolerance)


# --- the gradients ---------------------------------------------------------------------------------------------------


def joint_actions(space):
    """All of them, as the policy draws them, by loops."""
    if isinstance(space, spaces.Discrete):
        return [th.tensor([a]) for a in range(space.n)]
    sizes = [2] * space.n if isinstance(space, spaces.MultiBinary) else list(space.nvec)
    return [th.tensor([float(a) for a in index])[None] for index in np.ndindex(*sizes)]


def filled(model, n_steps=40):
    """With a replay and weights that are not nearly 0, and the current policy another than the one that acted."""
    model.learning_rate = 0.0
    model._setup_lr_schedule()
    model.learn(n_steps)
    generator = th.Generator().manual_seed(1)
    for p in model.policy.parameters():
        p.data += 0.3 * th.randn(p.shape, generator=generator)
    return model


@pytest.mark.parametrize("gradient", ["all_action", "sampled"])
@pytest.mark.parametrize("action", ["discrete", "multi_discrete", "multi_binary"])
def test_enumerated_losses_by_loops(gradient, action):
    """Of the critic and the actor, state by state and action by action."""
    model = filled(on_actions(action, 2, gradient=gradient, ent_coef=0.3, gamma=0.9))
    batch = Transitions.of(model.replay_buffer.sample(16), model.gamma, model.action_space)
    alpha, actions = th.tensor(0.3), joint_actions(model.action_space)

    def of_state(critic, s):
        log_pi = th.stack([model.actor.get_distribution(s).log_prob(a) for a in actions]).flatten()
        return log_pi, th.stack([q[0] for q in critic(s)])

    targets, surrogates, errors = [], [], []
    for i in range(16):
        log_pi, q = of_state(model.critic_target, batch.next_observations[i : i + 1])
        soft = log_pi.exp() @ (q.min(0).values - alpha * log_pi)
        targets.append(batch.rewards[i] + (1 - batch.terminated[i]) * 0.9 * soft)
        log_pi, q = of_state(model.critic, batch.observations[i : i + 1])
        taken = next(k for k, a in enumerate(actions) if th.equal(a.flatten().float(), batch.actions[i].flatten()))
        errors.append(0.5 * ((q[:, taken] - targets[-1].detach()) ** 2).sum())
        soft_q = (q.min(0).values - alpha * log_pi).detach()
        if gradient == "all_action":
            surrogates.append(log_pi.exp() @ soft_q)  # -α Σ ∇π has the mean 0, so soft Q may be a constant
        else:
            rho = (log_pi[taken].detach() - batch.log_prob[0][i]).exp()
            surrogates.append(rho * log_pi[taken] * (soft_q[taken] - log_pi.exp().detach() @ soft_q))
    parameters = list(model.actor.parameters())
    loss, (_, log_prob) = model._actor_loss(batch, (), alpha)
    found, expected = (th.autograd.grad(x, parameters) for x in (loss, -th.stack(surrogates).mean()))
    for ours, theirs in zip(found, expected, strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(model._critic_loss(batch, (), alpha)[1], th.stack(errors).mean())
    states = [of_state(model.critic, batch.observations[i : i + 1])[0] for i in range(16)]
    th.testing.assert_close(log_prob, th.stack([log_pi.exp() @ log_pi for log_pi in states]))


class NearTarget(gym.Env):
    """One step an episode, whose reward is larger the nearer the action is to a target."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, action_space):
        self.action_space = deepcopy(action_space)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        target = 0.5 if isinstance(self.action_space, spaces.Box) else 1.0
        return np.ones(1, np.float32), -float(np.abs(np.asarray(action) - target).sum()), True, False, {}


def mean_reward(model):
    env = NearTarget(model.action_space)
    env.reset()
    actions, _ = model.predict(np.ones((500, 1), np.float32))
    return np.mean([env.step(action)[1] for action in actions])


@each_gradient
def test_each_gradient_learns(gradient, action):
    env = DummyVecEnv([lambda: NearTarget(ACTIONS[action])])
    of_sampled = {"weight_clip": 2.0} if gradient == "sampled" else {}
    model = small(
        OffPolicyActorCritic, env, learning_rate=1e-2, ent_coef=0.01, **options_of(gradient, action), **of_sampled
    )
    before = mean_reward(model)
    model.learn(350)
    assert mean_reward(model) > 0.5 * before, (before, mean_reward(model))


@pytest.mark.parametrize("gradient", ["all_action", "sampled"])
@pytest.mark.parametrize(
    "space", [spaces.MultiBinary(9), spaces.MultiDiscrete([7, 7, 7]), spaces.Discrete(300)], ids=str
)
def test_many_joint_actions(gradient, space):
    """More than are enumerated: draws in the place of the sum, and critics of state and action."""
    env = DummyVecEnv([lambda: NearTarget(space)])
    arguments = {"gradient": gradient, "n_action_samples": 8, "learning_rate": 1e-2, "ent_coef": 0.01}
    model = small(OffPolicyActorCritic, env, **arguments)
    before = mean_reward(model)
    model.learn(250)
    assert mean_reward(model) > 0.7 * before, (before, mean_reward(model))


# --- log-probabilities in the replay ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(
    ("action", "log_prob"),
    [("discrete", -np.log(3)), ("box", -2 * np.log(2)), ("multi_discrete", -np.log(6)), ("multi_binary", -np.log(8))],
)
def test_uniform_actions_have_the_log_probability_of_uniform_ones(action, log_prob, n_envs):
    model = on_actions(action, n_envs, gradient="sampled", learning_starts=30).learn(60)
    of_warm_up = -(-30 // n_envs)
    log_probs = model.replay_buffer.log_probs
    np.testing.assert_allclose(log_probs[:of_warm_up], log_prob, rtol=1e-6)
    assert (np.abs(log_probs[of_warm_up : model.replay_buffer.pos] - log_prob) > 1e-6).all()


class Counted(RewardsAndLimits):
    """Each observation is one of its own."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.offset = self.np_random.random()
        return self._seen({}), {}

    def _seen(self, _):
        vector = np.array([self.t / 5, self.offset, self.episodes / 50], np.float32)
        return {"vector": vector} if isinstance(self.observation_space, spaces.Dict) else vector

    def step(self, action):
        observation, *rest = super().step(action)
        return self._seen(observation), *rest


KINDS = {
    "LogProbReplayBuffer": (VECTOR, {}),
    "DictLogProbReplayBuffer": (spaces.Dict(vector=VECTOR), {"policy": "MultiInputPolicy"}),
    "NStepLogProbReplayBuffer": (VECTOR, {"n_steps": 3}),
}


@pytest.mark.parametrize("action", ["discrete", "box"])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_transition_has_its_own_log_probability(kind, full, n_envs, action):
    """That of the policy, which stays as it is, for its state and action; VecNormalize or not."""
    space, arguments = KINDS[kind]
    env = make_vec_env(lambda: Counted(deepcopy(space), deepcopy(ACTIONS[action])), n_envs, seed=0)
    arguments = {"buffer_size": 31 if full else 500, "learning_starts": 0, "learning_rate": 0.0, **arguments}
    draws = {"n_action_samples": 2} if action == "box" else {}
    model = small(OffPolicyActorCritic, env, gradient="sampled", **arguments, **draws).learn(100)
    assert type(model.replay_buffer).__name__ == kind
    assert model.replay_buffer.full == full
    samples = model.replay_buffer.sample(200)
    distribution = action_distribution(model.actor, samples.observations)
    actions = samples.actions.flatten() if action == "discrete" else samples.actions
    expected = distribution.log_prob(actions).detach()
    th.testing.assert_close(samples.log_prob, expected, rtol=1e-3, atol=1e-3)
    assert samples.log_prob.unique().numel() > 20
    batch = Transitions.of(samples, model.gamma, model.action_space)
    assert (batch.rewards.shape, batch.terminated.shape, batch.log_prob[0].shape) == ((200,),) * 3
    if kind.startswith("NStep"):
        assert set(np.round(batch.discounts.tolist(), 4)) == {0.99, 0.9801, 0.9703}


def test_samples_are_those_of_sb3s_buffer():
    """The same transitions from the same random numbers, and as many of these."""
    model = on_actions("discrete", 3, gradient="sampled").learn(60)
    ours = model.replay_buffer
    theirs = deepcopy(ours)
    theirs.__class__ = type(ours).__mro__[2]
    drawn = []
    for buffer in (ours, theirs):
        np.random.seed(0)  # noqa: NPY002
        drawn.append((*buffer.sample(50)[:5], np.random.rand()))  # noqa: NPY002
    assert all(th.equal(th.as_tensor(a), th.as_tensor(b)) for a, b in zip(*drawn, strict=True))


def test_saturated_actions_have_the_weight_one():
    """Far out, where tanh is 1 in single precision, an action's own policy has not another density for it."""
    model = on_actions("box", gradient="sampled", n_action_samples=2, learning_starts=0, learning_rate=0.0)
    model.actor.mu.bias.data[:] = th.tensor([12.0, -30.0])
    samples = model.learn(100).replay_buffer.sample(50)
    log_prob = action_distribution(model.actor, samples.observations).log_prob(samples.actions)
    th.testing.assert_close(samples.log_prob, log_prob.detach(), rtol=1e-3, atol=1e-3)


# --- temperature -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "expected"),
    [("discrete", 0.98 * np.log(3)), ("box", -2.0), ("box_2d", -4.0), ("multi_discrete", 0.98 * np.log(6)),
     ("multi_binary", 0.98 * np.log(8))],
)  # fmt: skip
def test_target_entropies(action, expected):
    assert on_actions(action, ent_coef="auto").target_entropy == pytest.approx(expected)
    assert on_actions(action, ent_coef=0.1).target_entropy == "auto"
    given = on_actions(action, target_entropy=-1.5 if action.startswith("box") else 0.5)
    assert given.target_entropy in (-1.5, 0.5)


@pytest.mark.parametrize("action", ["discrete", "box", "multi_binary"])
def test_the_temperature_keeps_the_entropy_at_its_target(action):
    """It goes up while there is less entropy, and down while there is more."""
    for target, goes_up in ((1.0, True), (0.1, False)) if action != "box" else ((1.3, True), (-9.0, False)):
        model = on_actions(action, target_entropy=target, learning_rate=1e-2, ent_coef="auto_0.1")
        if action == "discrete" and goes_up:
            model.actor.action_net.bias.data[0] = 4.0
        elif goes_up:
            layer = model.actor.log_std if action == "box" else model.actor.action_net
            layer.bias.data[:] = -3.0 if action == "box" else 5.0
        model.learn(25)
        assert (model.log_ent_coef.exp().item() > 0.1) == goes_up
        assert "train/ent_coef_loss" in model.logger.name_to_value


# --- what changes ----------------------------------------------------------------------------------------------------


CHANGES = {
    "ent_coef": (0.9, {"ent_coef": 0.1}),
    "tau": (0.9, {}),
    "gamma": (0.1, {}),
    "learning_rate": (0.1, {}),
    "batch_size": (8, {}),
    "gradient_steps": (3, {}),
    "target_update_interval": (2, {"gradient_steps": 2}),
    "weight_clip": (0.5, {"gradient": "sampled"}),
    "n_action_samples": (8, {"gradient": "sampled", "n_action_samples": 2}),
    "target_entropy": (-5.0, {}),
    "gradient": ("reparameterized", {"gradient": "sampled", "n_action_samples": None}),
}

TRACED = ("ent_coef", "tau", "gamma", "weight_clip", "gradient")


@pytest.mark.parametrize(
    ("argument", "compile"),
    [*((argument, False) for argument in CHANGES), *((argument, True) for argument in TRACED)],
)
def test_what_changes_between_two_trainings_has_its_effect(argument, compile, monkeypatch):
    monkeypatch.setattr(graphs, "_compile", traced_only)
    value, options = CHANGES[argument]
    after = []
    for changed in (False, True):
        model = on_actions("box", compile=compile, **options).learn(30)
        if changed:
            setattr(model, argument, value)
            if argument == "learning_rate":
                model._setup_lr_schedule()
        model.learn(10, reset_num_timesteps=False)
        alpha = model.log_ent_coef if model.log_ent_coef is not None else th.zeros(1)
        after.append(th.cat([vector_of(model), alpha.detach()]))
    assert not th.allclose(*after, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("ent_coef", "auto"), ("ent_coef", -1.0), ("tau", 2.0), ("gamma", None), ("learning_rate", -1.0),
     ("batch_size", 0), ("gradient", "all"), ("learning_starts", 10**6), ("target_update_interval", 0)],
)  # fmt: skip
def test_what_cannot_be_changed_is_named(argument, value):
    model = on_actions("box", ent_coef=0.1).learn(25)
    before = vector_of(model)
    setattr(model, argument, value)
    with pytest.raises(ValueError, match=rf"{argument}={value!r}"):
        model.learn(10, reset_num_timesteps=False)
    assert th.equal(vector_of(model), before)


def test_a_learnt_temperature_is_not_fixed_later():
    model = on_actions("box").learn(25)
    model.ent_coef = 0.1
    with pytest.raises(ValueError, match=r"ent_coef=0\.1: allowed is 'auto', as when the model was made"):
        model.learn(1)


class Schedules(BaseCallback):
    """Changes in the middle of a training."""

    def __init__(self, **values):
        super().__init__()
        self.values = values

    def _on_step(self):
        if self.n_calls == 25:
            for name, value in self.values.items():
                setattr(self.model, name, value)
        return True


@pytest.mark.parametrize(("name", "value"), [("ent_coef", 0.9), ("tau", 0.9), ("gamma", 0.1)])
def test_callbacks_change_numbers(name, value):
    plain, changed = (
        on_actions("box", ent_coef=0.1).learn(30, callback) for callback in (None, Schedules(**{name: value}))
    )
    assert not th.equal(vector_of(plain), vector_of(changed))
    if name == "ent_coef":
        assert changed.logger.name_to_value["train/ent_coef"] == pytest.approx(0.9)


def test_callbacks_write_into_the_replay():
    class Relabels(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.model.replay_buffer.rewards[:] = 7.0

    model = on_actions("box", gamma=0.0, learning_rate=1e-2, ent_coef=0.0).learn(250, Relabels())
    samples = model.replay_buffer.sample(50)
    with th.no_grad():
        values = model.critic(samples.observations, samples.actions)[0]
    assert (values - 7).abs().mean() < 1.0


def test_a_replay_that_is_filled_by_hand():
    """Of a data set, without an environment's step in between."""
    model = on_actions("box", learning_starts=0)
    rng = np.random.default_rng(0)
    for _ in range(50):
        observation, following = rng.uniform(-1, 1, (2, 1, 3)).astype(np.float32)
        model.replay_buffer.add(observation, following, rng.uniform(-1, 1, (1, 2)), np.ones(1), np.zeros(1), [{}])
    before = vector_of(model)
    model._setup_learn(1)
    model.train(5, 16)
    assert not th.equal(vector_of(model), before)
    assert model._n_updates == 5


# --- a user's own code -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:compile=True")
@pytest.mark.parametrize("compile", [False, True])
def test_a_users_own_predict_acts(compile, monkeypatch):
    """As in SB3, which acts by it: of the model's class, or put into the policy."""
    monkeypatch.setattr(graphs, "_compile", traced_only)

    class First(OffPolicyActorCritic):
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return np.zeros(len(observation), np.int64), state

    arguments = {"learning_starts": 5, "train_freq": 5, "compile": compile}
    model = on_actions("discrete", algorithm=First, **arguments).learn(30)
    assert (model.replay_buffer.actions[5:30] == 0).all()
    model = on_actions("discrete", **arguments)
    model.policy.predict = lambda observation, *_, **__: (np.ones(len(observation), np.int64), None)
    assert (model.learn(30).replay_buffer.actions[5:30] == 1).all()


def test_a_users_own_predict_has_no_log_probabilities():
    model = on_actions("discrete", gradient="sampled", learning_starts=5)
    model.policy.predict = lambda observation, *_, **__: (np.ones(len(observation), np.int64), None)
    with pytest.raises(ValueError, match="allowed is SB3's `predict` where the replay keeps log-probabilities"):
        model.learn(30)


class DoubledLoss(OffPolicyActorCritic):
    scale = 1.0

    def _actor_loss(self, batch, noise, ent_coef):
        loss, log = super()._actor_loss(batch, noise, ent_coef)
        return self.scale * loss, log


def test_a_users_own_loss_runs_uncompiled():
    plain = on_actions("box").learn(25)
    with pytest.warns(UserWarning, match="compile=True: an update runs uncompiled.*DoubledLoss overrides _actor_loss"):
        own = on_actions("box", algorithm=DoubledLoss, compile=True).learn(25)
    assert th.equal(vector_of(own), vector_of(plain))


def test_a_users_own_train():
    class Twice(OffPolicyActorCritic):
        def train(self, gradient_steps, batch_size=64):
            super().train(gradient_steps, batch_size)
            super().train(gradient_steps, batch_size)

    assert on_actions("box", algorithm=Twice).learn(30)._n_updates == 20

"""
Claim: the rollout buffer is SB3's. A callback finds in it what it finds in SB3's PPO, to the bit, whatever is observed
and done; what it writes there is learnt from; and a buffer of the user's own, or of SB3's, takes its place.
"""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import IdentityEnv, IdentityEnvBox, IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO
from sb3_pgext.algorithms.parameters import policy_parameters
from sb3_pgext.rollouts import DictStepBuffer, StepBuffer
from tests.conformance.models import make_env, vector_of
from tests.environments import ACTIONS, DICT, IMAGE, IMAGE_LAST, VECTOR
from tests.rollouts.definitions import advantages_by_definition

SMALL_DICT = spaces.Dict({"vector": VECTOR, "kind": spaces.Discrete(3)})
SPACES = {
    "box": (VECTOR, ACTIONS["box"]),
    "box of no dimension": (VECTOR, spaces.Box(-1, 1, (), np.float32)),
    "box of two dimensions": (spaces.Box(-1, 1, (2, 3), np.float32), ACTIONS["box_2d"]),
    "double precision": (spaces.Box(-1, 1, (3,), np.float64), ACTIONS["multi_discrete"]),
    "categories": (spaces.Discrete(4), ACTIONS["discrete"]),
    "several categories": (spaces.MultiDiscrete([2, 3]), ACTIONS["multi_binary"]),
    "switches": (spaces.MultiBinary(4), ACTIONS["multi_discrete"]),
    "image": (IMAGE, ACTIONS["discrete"]),
    "image, channels last": (IMAGE_LAST, ACTIONS["box"]),
    "dict": (SMALL_DICT, ACTIONS["box"]),
    "dict with an image": (DICT, ACTIONS["multi_binary"]),
}
ARRAYS = ("observations", "actions", "rewards", "advantages", "returns", "episode_starts", "values", "log_probs")


def model_of(cls, case="box", **arguments):
    """Two sub-environments with episodes of 5 steps, of which every second one is truncated; 12 steps per rollout."""
    observation, action = SPACES[case]
    policy = "CnnPolicy" if case.startswith("image") else "MlpPolicy"
    policy = "MultiInputPolicy" if isinstance(observation, spaces.Dict) else policy
    defaults = {"n_steps": 12, "batch_size": 8, "seed": 0, "device": "cpu"}
    defaults |= {"n_epochs": 2} if issubclass(cls, PPO) else {}
    return cls(policy, make_env(observation, action), **{**defaults, **arguments})


def collected(model, callback=None):
    """The model before an update."""
    _, callback = model._setup_learn(10**9, callback)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


class AtTheEnd(BaseCallback):
    """Calls a function with the buffer when a rollout ends; the buffer is the one that was there at the beginning."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def _init_callback(self):
        self.buffer = self.model.rollout_buffer

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        assert self.locals["rollout_buffer"] is self.model.rollout_buffer is self.buffer
        self.function(self.buffer)


def assert_same(found, expected):
    """Values, shapes and dtypes of arrays, of dicts of them, and anything else."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, part in expected.items():
            assert_same(found[key], part)
    elif isinstance(expected, np.ndarray):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


# --- reading ---------------------------------------------------------------------------------------------------------


def copied(array):
    if isinstance(array, dict):
        return {key: copied(part) for key, part in array.items()}
    return (array.numpy() if isinstance(array, th.Tensor) else array).copy()


def copies(buffer):
    """All that SB3's buffer has."""
    arrays = {name: copied(getattr(buffer, name)) for name in ARRAYS}
    scalars = ("pos", "full", "generator_ready", "buffer_size", "n_envs", "gamma", "gae_lambda", "obs_shape")
    arrays |= {name: getattr(buffer, name) for name in scalars}
    return arrays | {"size": buffer.size()}


def read(cls, case, **arguments):
    """What is in the buffer at the ends of two rollouts, an update between them."""
    found = []
    model_of(cls, case, **arguments).learn(2 * 24, AtTheEnd(lambda buffer: found.append(copies(buffer))))
    return found


@pytest.mark.filterwarnings("ignore:.*Casting input x to numpy array")
@pytest.mark.parametrize("case", SPACES)
def test_a_callback_reads_what_sb3_has(case):
    options = {"n_epochs": 1} if "image" in case else {}
    found, expected = (read(cls, case, **options) for cls in (ClippedCriticPPO, PPO))
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)
    assert not np.array_equal(expected[0]["values"], expected[1]["values"]), "an update lies between them"


@pytest.mark.parametrize("squash_output", [False, True])
def test_actions_of_gsde_are_those_of_sb3(squash_output):
    options = {"use_sde": True, "sde_sample_freq": 4, "policy_kwargs": {"squash_output": squash_output}}
    found, expected = (read(cls, "box", **options) for cls in (ClippedCriticPPO, PPO))
    assert_same(found[1], expected[1])
    for cls in (VPG, NPG):
        actions = collected(model_of(cls, **options)).rollout_buffer.actions
        assert actions.shape == (12, 2, 2)
        assert (np.abs(actions).max() <= 1) >= squash_output, "squashed ones lie within [-1, 1]"
        assert_same(actions, expected[0]["actions"])


@pytest.mark.parametrize("cls", [ClippedCriticPPO, VPG, NPG])
@pytest.mark.parametrize("case", ["box", "dict"])
def test_the_kind_of_buffer(cls, case):
    """SB3's by inheritance, whose order in memory clients rely on. Its flat order is what is learnt from."""
    model = collected(model_of(cls, case))
    buffer, rollout = model.rollout_buffer, model.rollout
    assert type(buffer) is (DictStepBuffer if case == "dict" else StepBuffer)
    assert isinstance(buffer, DictRolloutBuffer if case == "dict" else RolloutBuffer)
    for column, array in (("advantages", buffer.advantages), ("values", buffer.values), ("actions", buffer.actions)):
        flat = getattr(rollout, column)
        for e in range(2):
            for t in range(12):
                assert np.array_equal(flat[12 * e + t].numpy(), array[t, e])
        assert array.flags.c_contiguous


@pytest.mark.parametrize("case", ["box", "dict"])
def test_values_and_log_probabilities_are_those_of_the_policy(case, device):
    """Also where they come from another device, once per rollout."""
    model = collected(model_of(VPG, case, device=device))
    rollout, buffer = model.rollout, model.rollout_buffer
    assert {x.device.type for x in (rollout.values, rollout.log_prob, rollout.advantages, rollout.actions)} == {device}
    with th.no_grad():
        values, log_prob, _ = model.policy.evaluate_actions(rollout.observations, rollout.actions)
    np.testing.assert_allclose(by_environment(buffer.values), values.flatten().cpu(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_environment(buffer.log_probs), log_prob.cpu(), rtol=1e-4, atol=1e-5)
    th.testing.assert_close(rollout.values, values.flatten(), rtol=1e-4, atol=1e-5)


# --- writing ---------------------------------------------------------------------------------------------------------


def bonus_of(buffer):
    """A reward of one's own for what was observed, ``(T, E)``, as float32."""
    observations = buffer.observations["vector"] if isinstance(buffer.observations, dict) else buffer.observations
    return np.abs(observations).reshape(*buffer.rewards.shape, -1).sum(-1).astype(np.float32) ** 2


def add_in_place(buffer):
    bonus = bonus_of(buffer)
    buffer.advantages += bonus
    buffer.returns += bonus


def add_by_another_array(buffer):
    bonus = bonus_of(buffer)
    buffer.advantages = buffer.advantages + bonus
    buffer.returns = buffer.returns + bonus


@pytest.mark.parametrize(
    ("case", "add"), [("box", add_in_place), ("dict", add_in_place), ("box", add_by_another_array)]
)
def test_what_is_added_to_advantages_and_returns_is_learnt_from_as_in_sb3(case, add):
    """After three updates the parameters are equal to the bit, and others than without the addition."""
    ours, theirs = (vector_of(model_of(cls, case).learn(72, AtTheEnd(add))) for cls in (ClippedCriticPPO, PPO))
    assert th.equal(ours, theirs)
    assert not th.equal(ours, vector_of(model_of(ClippedCriticPPO, case).learn(72)))


def scores_of(model):
    """∇log π(a_t|s_t) of each step, ``(M, P)``, one after the other."""
    rollout, parameters = model.rollout, list(policy_parameters(model.policy).values())
    log_prob = model.policy.get_distribution(rollout.observations).log_prob(rollout.actions)
    rows = [th.autograd.grad(x, parameters, retain_graph=True) for x in log_prob]
    return th.stack([th.cat([g.flatten() for g in row]) for row in rows])


def policy_vector(model):
    return th.cat([p.detach().flatten() for p in policy_parameters(model.policy).values()])


def by_environment(array):
    """``(T, E)`` → ``(M,)``."""
    return th.tensor([array[t, e] for e in range(array.shape[1]) for t in range(array.shape[0])])


def with_seen_targets(model):
    """The model, and a list of the targets that its critic will be fitted to."""
    targets, fit = [], model._fit_critic

    def noted(observations, y, values):
        targets.append(y.clone())
        fit(observations, y, values)

    model._fit_critic = noted
    return model, targets


@pytest.mark.parametrize("case", ["box", "dict"])
@pytest.mark.parametrize("advantage", ["gae", "mc"])
def test_vpg_learns_from_what_is_added(case, advantage):
    """Its step is η mean(∇log π (Ψ + bonus)), Ψ and the step computed from their definitions."""
    options = {"learning_rate": 0.01, "policy_kwargs": {"optimizer_class": th.optim.SGD}, "advantage": advantage}
    model, targets = with_seen_targets(collected(model_of(VPG, case, **options), AtTheEnd(add_in_place)))
    bonus = by_environment(bonus_of(model.rollout_buffer))
    gradient = ((advantages_by_definition(model, advantage) + bonus) @ scores_of(model)) / 24
    y = advantages_by_definition(model, "gae") + model.rollout.values + bonus
    before = policy_vector(model)
    model.train()
    th.testing.assert_close(policy_vector(model) - before, 0.01 * gradient, rtol=1e-3, atol=1e-6)
    th.testing.assert_close(targets[0], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["box", "dict"])
def test_npg_learns_from_what_is_added(case):
    """(F + damping) Δθ is along mean(∇log π (Ψ + bonus)), all computed from their definitions."""
    options = {"fisher": "empirical", "normalize_advantage": False, "cg_max_steps": 300, "cg_tolerance": 1e-14}
    options |= {"policy_kwargs": {"net_arch": {"pi": [3], "vf": [3]}}}
    model, targets = with_seen_targets(collected(model_of(NPG, case, **options), AtTheEnd(add_in_place)))
    bonus, scores, Psi = (
        by_environment(bonus_of(model.rollout_buffer)),
        scores_of(model),
        advantages_by_definition(model),
    )
    F, before, y = scores.T @ scores / 24, policy_vector(model), Psi + model.rollout.values + bonus
    model.train()
    image = (F + 0.1 * th.eye(len(F))) @ (policy_vector(model) - before)
    assert th.cosine_similarity(image, (Psi + bonus) @ scores, dim=0) > 0.9999
    assert th.cosine_similarity(image, Psi @ scores, dim=0) < 0.99, "without the bonus it is another direction"
    th.testing.assert_close(targets[0], y, rtol=1e-4, atol=1e-5)


def add_to_rewards(buffer):
    buffer.rewards += bonus_of(buffer)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (ClippedCriticPPO, {}),
        (NPG, {"critic_target": "td"}),
        (VPG, {"advantage": "mc", "critic_target": "mc"}),
        (VPG, {"advantage": "td"}),
        (VPG, {"advantage": "n_step", "lookahead": 3, "critic_target": "td"}),
    ],
)
def test_changed_rewards_change_advantages_and_returns(cls, options):
    """They are computed again, by the definition; with rewards as they are nothing changes."""
    unchanged = collected(model_of(cls, **options))
    model = collected(model_of(cls, **options), AtTheEnd(add_to_rewards))
    added = model.rollout_buffer.rewards - unchanged.rollout_buffer.rewards
    np.testing.assert_allclose(added, bonus_of(model.rollout_buffer), rtol=1e-4)
    for m in (unchanged, model):
        Psi = advantages_by_definition(m, options.get("advantage", "gae"), options.get("lookahead"))
        th.testing.assert_close(m.rollout.advantages, Psi, rtol=1e-4, atol=1e-4)
        target = options.get("critic_target", "lambda").replace("lambda", "gae")
        y = advantages_by_definition(m, target) + m.rollout.values
        th.testing.assert_close(m.rollout.returns, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["advantages", "returns"])
def test_who_writes_advantages_or_returns_beside_the_rewards_has_the_last_word(name):
    """As in SB3, where nothing is computed again."""

    def write(buffer):
        buffer.rewards += 1.0
        getattr(buffer, name)[:] = 7.0

    model, plain = collected(model_of(VPG), AtTheEnd(write)), collected(model_of(VPG))
    other = {"advantages": "returns", "returns": "advantages"}[name]
    assert (getattr(model.rollout, name) == 7.0).all()
    assert th.equal(getattr(model.rollout, other), getattr(plain.rollout, other))


# --- minibatches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["box", "categories", "dict"])
def test_get_hands_out_the_minibatches_of_sb3(case):
    """Also to a callback, in the same random order; training goes on from the arrays that it leaves."""

    def of(cls):
        seen = []

        def note(buffer):
            seen.extend({k: copied(x) for k, x in samples._asdict().items()} for samples in buffer.get(8))

        return seen, vector_of(model_of(cls, case).learn(48, AtTheEnd(note)))

    (found, ours), (expected, theirs) = of(ClippedCriticPPO), of(PPO)
    assert len(found) == len(expected) == 2 * 3
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert th.equal(ours, theirs)


@pytest.mark.parametrize(
    ("cls", "options"),
    [(VPG, {}), (VPG, {"advantage": "mc"}), (NPG, {}), (ClippedCriticPPO, {"recompute_advantage": True})],
)
def test_a_callback_that_takes_minibatches_does_not_change_what_is_learnt(cls, options):
    def take(buffer):
        state = np.random.get_state()  # noqa: NPY002
        assert sum(len(samples.actions) for samples in buffer.get(5)) == 24
        np.random.set_state(state)  # noqa: NPY002

    with_it, without = (vector_of(model_of(cls, **options).learn(48, c)) for c in (AtTheEnd(take), None))
    assert th.equal(with_it, without)


# --- buffers of other classes ----------------------------------------------------------------------------------------


def of_ones_own(base):
    """Subclasses that change what is recorded, and what is computed from it."""

    class ScaledRewards(base):
        def __init__(self, *arguments, scale=0.5, **options):
            self.scale = scale
            super().__init__(*arguments, **options)

        def add(self, obs, action, reward, episode_start, value, log_prob):
            super().add(obs, action, self.scale * reward, episode_start, value, log_prob)

    class ShiftedAdvantages(base):
        def compute_returns_and_advantage(self, last_values, dones):
            super().compute_returns_and_advantage(last_values, dones)
            self.advantages += np.arange(len(self.advantages), dtype=np.float32)[:, None]

    return {"as it is": base, "add": ScaledRewards, "compute_returns_and_advantage": ShiftedAdvantages}


@pytest.mark.parametrize("case", ["box", "dict"])
@pytest.mark.parametrize("kind", ["as it is", "add", "compute_returns_and_advantage"])
def test_a_buffer_of_sb3s_and_subclasses_of_it(kind, case):
    """With ClippedCriticPPO as with PPO, to the bit; in VPG and NPG as a subclass of ours would do."""
    sb3s, ours = (DictRolloutBuffer, DictStepBuffer) if case == "dict" else (RolloutBuffer, StepBuffer)
    theirs, own = ({"rollout_buffer_class": of_ones_own(base)[kind]} for base in (sb3s, ours))
    expected = vector_of(model_of(PPO, case, **theirs).learn(48))
    for options in (theirs, own):
        assert th.equal(vector_of(model_of(ClippedCriticPPO, case, **options).learn(48)), expected)
    for cls in (VPG, NPG):
        found = [vector_of(model_of(cls, case, **options).learn(48)) for options in (theirs, own)]
        assert th.equal(*found)
        assert th.equal(found[0], vector_of(model_of(cls, case).learn(48))) == (kind == "as it is")


def test_arguments_of_the_buffer():
    own = {"rollout_buffer_class": of_ones_own(RolloutBuffer)["add"]}
    one, half = (
        vector_of(model_of(ClippedCriticPPO, **own, rollout_buffer_kwargs={"scale": x}).learn(24)) for x in (1, 0.5)
    )
    assert th.equal(one, vector_of(model_of(ClippedCriticPPO).learn(24)))
    assert th.equal(half, vector_of(model_of(ClippedCriticPPO, **own).learn(24)))
    assert not th.equal(one, half)


@pytest.mark.parametrize(("case", "wrong"), [("box", dict), ("dict", RolloutBuffer), ("dict", StepBuffer)])
def test_a_buffer_that_does_not_fit_is_refused(case, wrong):
    with pytest.raises(ValueError, match=r"rollout_buffer_class=.*subclass of (Dict)?RolloutBuffer"):
        model_of(VPG, case, rollout_buffer_class=wrong)


# --- whole episodes --------------------------------------------------------------------------------------------------


def whole_episodes(cls, case="box", **arguments):
    observation, action = SPACES[case]
    policy = "MultiInputPolicy" if isinstance(observation, spaces.Dict) else "MlpPolicy"
    defaults = {"n_episodes": 4, "seed": 0, "device": "cpu", "gamma": 0.9}
    return cls(policy, make_env(observation, action), **{**defaults, **arguments})


@pytest.mark.parametrize("cls", [REINFORCE, ISPG])
@pytest.mark.parametrize("case", ["box", "dict", "categories"])
def test_buffers_of_whole_episodes_have_the_names_of_sb3(cls, case):
    """Flat arrays of the M steps, sorted by sub-environment, then time: here 2 episodes of 5 steps of each."""
    played = []

    def note(local, _):
        played.append([np.copy(local[name]) for name in ("actions", "rewards")])
        return True

    model = collected(whole_episodes(cls, case), note)
    buffer = model.rollout_buffer
    actions, rewards = (np.stack(column, axis=1).reshape(20, -1) for column in zip(*played, strict=True))
    np.testing.assert_array_equal(buffer.actions.reshape(20, -1), actions)
    np.testing.assert_array_equal(buffer.rewards, rewards[:, 0].astype(np.float32))
    assert buffer.episode_starts.tolist() == 4 * [1, 0, 0, 0, 0]
    assert buffer.episode_starts.dtype == np.float32
    observations = buffer.observations if case != "dict" else buffer.observations["vector"]
    assert len(observations) == 20
    with th.no_grad():
        values = model.policy.predict_values(model.policy.obs_to_tensor(buffer.observations)[0]).flatten()
    np.testing.assert_allclose(buffer.values, values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [REINFORCE, ISPG])
@pytest.mark.parametrize("case", ["box", "dict"])
def test_rewards_that_are_written_into_whole_episodes_are_learnt_from(cls, case):
    """ĝ = 1/N Σ_i Σ_t ∇log π G_t, summed step by step from the rewards written."""

    def write(buffer):
        buffer.rewards += np.arange(20, dtype=np.float32) % 3

    model = collected(whole_episodes(cls, case, baseline="none"), AtTheEnd(write))
    plain = collected(whole_episodes(cls, case, baseline="none"))
    rewards = plain.episodes.rewards + th.arange(20) % 3
    parameters = list(policy_parameters(model.policy).values())
    log_prob = model.policy.get_distribution(plain.episodes.observations).log_prob(plain.episodes.actions)
    expected = 0.0
    for step in range(20):
        score = th.autograd.grad(log_prob[step], parameters, retain_graph=True)
        G = sum(0.9 ** (k - step) * rewards[k] for k in range(step, 5 * (step // 5) + 5))
        expected += G / 4 * th.cat([g.flatten() for g in score])
    th.testing.assert_close(model.estimate_gradient(), expected, rtol=1e-4, atol=1e-4)
    assert not th.allclose(plain.estimate_gradient(), expected, rtol=1e-2)


# --- SB3's identity environments -------------------------------------------------------------------------------------


@pytest.mark.prove
@pytest.mark.parametrize(
    ("env", "options"),
    [
        (lambda: IdentityEnv(4), {"gamma": 0.4, "seed": 1}),
        (lambda: IdentityEnvMultiDiscrete(4), {"gamma": 0.4, "seed": 1}),
        (lambda: IdentityEnvMultiBinary(4), {"gamma": 0.4, "seed": 1}),
        (lambda: IdentityEnvBox(eps=0.5), {"gamma": 0.95, "seed": 0}),
    ],
    ids=["discrete", "multi_discrete", "multi_binary", "box"],
)
def test_identity_environments_are_learnt_with_default_arguments(env, options):
    """As SB3's own tests ask: more than 90 of 100 after 3,000 steps, which are two rollouts."""
    env = Monitor(env())
    env.action_space.seed(0)
    model = ClippedCriticPPO("MlpPolicy", env, device="cpu", **options).learn(3000)
    mean_reward, _ = evaluate_policy(model, env, n_eval_episodes=5)
    assert mean_reward > 90
    observation, _ = env.reset()
    assert np.shape(model.predict(observation)[0]) == np.shape(observation)

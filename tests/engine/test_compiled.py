"""Claim: compiled updates compute what the uncompiled ones do, and where they cannot, say so and do without."""

import functools
import warnings

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO
from sb3_pgext.algorithms.parameters import policy_parameters
from sb3_pgext.engine import compiled as compiled_module
from sb3_pgext.engine import graphs as module
from sb3_pgext.rollouts.acting import unvalidated_distributions
from tests.environments import ACTIONS, DICT, IMAGE, VECTOR, AnySpaces
from tests.tracing import traced_only


@pytest.fixture(autouse=True)
def _traced_only(request, monkeypatch):
    """Compiling takes seconds each time, and what is to be shown here is mostly about the tracing."""
    if "compiler" not in request.keywords:
        monkeypatch.setattr(module, "_compile", traced_only)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_the_gradient_of_few_inputs_is_transposed(n_outputs):
    """It takes a quarter of the time so; and all other products stay as they are."""
    network = th.nn.Sequential(th.nn.Linear(4, 64), th.nn.Linear(64, 64, bias=False), th.nn.Linear(64, n_outputs))
    names, weights = zip(*network.named_parameters(), strict=True)

    def loss(weights, x):
        return th.func.functional_call(network, dict(zip(names, weights, strict=True)), x).pow(2).sum()

    gradient, x = th.func.grad(loss), th.randn(256, 4)
    traced = module.make_fx(gradient, decomposition_table=module._decompositions(None))(weights, x)
    products = [node.meta["val"].shape for node in traced.graph.nodes if node.target is th.ops.aten.mm.default]
    assert products[0] == (256, 64)  # forwards
    assert set(products[1:-1]) == {(256, 64), (64, 64), (n_outputs, 64)}
    assert products[-1] == (4, 64)
    th.testing.assert_close(traced(weights, x), gradient(weights, x), rtol=1e-4, atol=1e-3)


SETTINGS = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}


def parameters_after(n_updates, compile, env="Pendulum-v1", policy="MlpPolicy", **parameters):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compile=True")
        model = ClippedCriticPPO(policy, env, compile=compile, **SETTINGS | parameters)
        model.learn(n_updates * model.n_steps)
    return model, th.cat([p.detach().flatten() for p in model.policy.parameters()])


def of_sb3(cls):
    """The class as if it were SB3's: what is a user's own is not compiled."""
    cls.__module__ = "stable_baselines3"
    return cls


def assert_same(n_updates=5, n_graphs=2, **parameters):
    eager, wanted = parameters_after(n_updates, False, **parameters)
    model, found = parameters_after(n_updates, True, **parameters)
    assert len(module._graphs[model.policy]) == n_graphs, "acting, the update, and maybe distributions of a batch"
    assert None not in module._graphs[model.policy].values()
    assert not th.equal(found, parameters_after(0, True, **parameters)[1])
    assert th.allclose(found, wanted, rtol=0, atol=1e-5)
    first, second = (m.policy.optimizer.state_dict()["state"] for m in (eager, model))
    for index, state in first.items():
        assert state["step"] == second[index]["step"]
        assert th.allclose(state["exp_avg_sq"], second[index]["exp_avg_sq"], rtol=1e-2, atol=1e-6)


@pytest.mark.compiler
def test_same_parameters_with_a_schedule_and_a_shorter_last_minibatch():
    assert_same(batch_size=40, learning_rate=lambda progress: 3e-4 * progress, clip_range=lambda progress: progress)


def test_numbers_that_are_equal_in_the_first_update_only():
    assert_same(clip_range=0.2, clip_range_vf=lambda progress: 0.2 if progress > 0.7 else 1e-3, learning_rate=1e-2)


def test_same_parameters_of_categorical_actions():
    assert_same(env="CartPole-v1", surrogate="adaptive_kl", n_graphs=3, ent_coef=0.01, normalize_advantage="rollout")


def test_same_parameters_with_dict_observations_and_weight_decay():
    space = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Discrete(4)})
    env = DummyVecEnv([lambda: AnySpaces(space, spaces.MultiDiscrete([2, 3]))])
    kwargs = {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}}
    assert_same(env=env, policy="MultiInputPolicy", policy_kwargs=kwargs, max_grad_norm=None)


def test_squashed_actions_keep_torchs_tanh():
    """In the first step the policy is the one that acted; its log-probabilities are sensitive to the last bit of it."""
    kwargs = {"squash_output": True, "log_std_init": 1.0}
    model, _ = parameters_after(1, True, use_sde=True, policy_kwargs=kwargs, batch_size=64, n_epochs=1)
    assert model.logger.name_to_value["train/approx_kl"] < 1e-7


def test_target_kl_ends_both_at_the_same_step():
    found = {}
    for compile in (False, True):
        model, found[compile] = parameters_after(3, compile, target_kl=1e-3, learning_rate=1e-2, n_epochs=5)
        steps = {int(state["step"]) for state in model.policy.optimizer.state.values()}
        found[compile] = (found[compile], steps)
    assert found[True][1] == found[False][1] != {30}
    assert th.allclose(found[True][0], found[False][0], rtol=0, atol=1e-5)


def test_the_critics_fit():
    found = []
    for compile in (False, True):
        model = REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=4, compile=compile, seed=0, device="cpu",
                          batch_size=64).learn(600)  # fmt: skip
        found.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
    of_acting, of_critic = module._graphs[model.policy].values()
    assert of_acting is not None
    assert of_critic is not None
    assert th.allclose(*found, rtol=0, atol=1e-5)


def collected(compile, action_space, observation_space=None, **parameters):
    observation_space = observation_space or spaces.Box(-1, 1, (3,))
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    env = DummyVecEnv([lambda: AnySpaces(observation_space, action_space)] * 3)
    env.seed(1)
    model = ClippedCriticPPO(policy, env, compile=compile, **SETTINGS | parameters)
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
    return model, model.rollout, th.get_rng_state()


@pytest.mark.parametrize(
    "action_space",
    [
        pytest.param(spaces.Discrete(3), marks=pytest.mark.compiler),
        spaces.Box(-1, 1, (2,)),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(2),
    ],
    ids=lambda space: type(space).__name__,
)
@pytest.mark.filterwarnings("error:compile=True")
def test_acting_draws_the_same_actions(action_space):
    space = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Discrete(4)})
    (_, wanted, state), (model, found, state_of_compiled) = (collected(c, action_space, space) for c in (False, True))
    (graph,) = module._graphs[model.policy].values()
    assert graph is not None
    assert th.equal(state, state_of_compiled)
    assert th.allclose(wanted.actions, found.actions, rtol=0, atol=1e-6)
    for name in ("values", "log_prob"):
        assert th.allclose(getattr(wanted, name), getattr(found, name), rtol=0, atol=1e-5)


def test_acting_sees_what_the_updates_have_changed():
    model, first, _ = collected(True, spaces.Box(-1, 1, (2,)))
    with th.no_grad():
        model.policy.action_net.bias += 5.0
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, model.n_steps)
    assert model.rollout.actions.mean() - first.actions.mean() > 4.0
    assert len(module._graphs[model.policy]) == 1


def test_observations_with_the_same_keys_in_another_order():
    """Of the same shape each, in the same rollout and in another one."""
    space = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Box(-1, 1, (3,))})
    model, _, _ = collected(True, spaces.Box(-1, 1, (2,)), space)
    x, y = th.randn(2, 3), th.randn(2, 3)
    with th.no_grad(), unvalidated_distributions():
        act = model.engine.acting()
        for function in (act, act, model.engine.acting()):
            for observations in ({"a": x, "b": y}, {"b": y, "a": x}):
                assert th.allclose(function(observations)[1], model.policy.predict_values(observations), atol=1e-6)
    assert None not in module._graphs[model.policy].values()


def test_parameters_in_another_order_in_memory_have_a_graph_of_their_own():
    model, _, _ = collected(True, spaces.Box(-1, 1, (2,)))
    weight = model.policy.mlp_extractor.policy_net[2].weight
    weight.data = weight.data.T.contiguous().T
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, model.n_steps)
    assert len(module._graphs[model.policy]) == 2


@pytest.mark.filterwarnings("error:compile=True")
def test_acting_with_gsde_is_not_compiled():
    (_, wanted, _), (model, found, _) = (
        collected(c, spaces.Box(-1, 1, (2,)), use_sde=True, sde_sample_freq=4) for c in (False, True)
    )
    assert model.policy not in module._graphs
    assert th.equal(wanted.actions, found.actions)


@of_sb3
class Learnable(FlattenExtractor):
    """SB3's policies share it between actor and critic, under three names."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.linear = th.nn.Linear(self.features_dim, self.features_dim)

    def forward(self, observations):
        return self.linear(super().forward(observations))


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (ClippedCriticPPO, {"n_steps": 64, "batch_size": 32, "n_epochs": 2}),
        (VPG, {"n_steps": 64, "batch_size": 32}),
        (NPG, {"n_steps": 64, "batch_size": 32}),
        (REINFORCE, {"n_episodes": 2, "batch_size": 16}),
        (ISPG, {"n_episodes": 2, "batch_size": 16}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
@pytest.mark.filterwarnings("error:compile=True")
def test_a_features_extractor_that_learns_and_is_shared(algorithm, options):
    found = []
    for compile in (False, True):
        kwargs = {"features_extractor_class": Learnable}
        model = algorithm(
            "MlpPolicy", "CartPole-v1", compile=compile, seed=0, device="cpu", policy_kwargs=kwargs, **options
        )
        parameters, start = list(model.policy.parameters()), model.policy.features_extractor.linear.weight.clone()
        model.learn(192)
        assert list(map(id, model.policy.parameters())) == list(map(id, parameters))
        assert not th.equal(model.policy.features_extractor.linear.weight, start)
        found.append(th.cat([p.detach().flatten() for p in parameters]))
    assert th.allclose(*found, rtol=0, atol=1e-5)


class MoreNoise(BaseCallback):
    def _on_rollout_start(self):
        with th.no_grad():
            self.model.policy.log_std += 0.5

    def _on_step(self):
        return True


@pytest.mark.filterwarnings("error:compile=True")
def test_what_is_frozen_may_change_all_the_same():
    found = []
    for compile in (False, True):
        model = ClippedCriticPPO("MlpPolicy", "Pendulum-v1", compile=compile, **SETTINGS)
        model.policy.log_std.requires_grad_(False)
        model.learn(3 * 64, callback=MoreNoise())
        found.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
    assert th.allclose(*found, rtol=0, atol=1e-5)


def test_parameters_that_modules_share_are_not_compiled():
    model = ClippedCriticPPO("MlpPolicy", "Pendulum-v1", compile=True, **SETTINGS)
    extractor = model.policy.mlp_extractor
    extractor.value_net[2].weight = extractor.policy_net[2].weight
    with pytest.warns(UserWarning, match="two modules of the policy share a parameter"):
        model.learn(64)


@of_sb3
class Looking(th.nn.Tanh):
    scale = [th.tensor(2.0)]  # noqa: RUF012  out of sight of whoever looks at the attributes of the modules

    def forward(self, x):
        return super().forward(self.scale[0] * x)


def test_tensors_from_elsewhere_are_no_constants():
    kwargs = {"activation_fn": Looking}
    with pytest.warns(UserWarning, match="tensors that are no parameters of the policy"):
        ClippedCriticPPO("MlpPolicy", "Pendulum-v1", compile=True, policy_kwargs=kwargs, **SETTINGS).learn(64)


def test_another_network_has_a_graph_of_its_own():
    model, _, _ = collected(True, spaces.Box(-9, 9, (2,)))
    with th.no_grad():
        model.policy.action_net.bias += 5.0
    model.policy.action_net = th.nn.Sequential(model.policy.action_net, th.nn.Hardtanh())
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, model.n_steps)
    assert abs(model.rollout.actions.mean() - 1.0) < 0.5, "the network without the Hardtanh has 5"


def test_whole_episodes_are_acted_compiled():
    batches = []
    for compile in (False, True):
        model = REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=3, compile=compile, seed=0, device="cpu")
        _, callback = model._setup_learn(1000)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 3)
        batches.append(model.episodes)
    assert len(module._graphs[model.policy]) == 1
    assert th.equal(batches[0].actions, batches[1].actions)
    assert th.equal(batches[0].observations, batches[1].observations)


def test_saved_loaded_and_continued_uncompiled(tmp_path):
    model, _ = parameters_after(2, True)
    model.save(tmp_path / "model")
    loaded = ClippedCriticPPO.load(tmp_path / "model", env=model.env, compile=False)
    for p, q in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert th.equal(p, q)
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.policy not in module._graphs
    loaded.compile = True
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.policy in module._graphs


def test_what_changes_between_updates_is_no_constant_of_the_graph():
    model, _ = parameters_after(1, True)
    model.ent_coef = 0.5
    model.learn(64)
    assert len(module._graphs[model.policy]) == 3, "acting, and two updates"


def test_other_parameters_and_another_optimizer_have_a_graph_of_their_own():
    """Of the same shapes and the same numbers."""
    found = []
    for compile in (False, True):
        model = ClippedCriticPPO("MlpPolicy", "Pendulum-v1", compile=compile, **SETTINGS)
        extractor = model.policy.mlp_extractor
        for frozen, optimizer_class in ((extractor.policy_net, th.optim.Adam), (extractor.value_net, th.optim.AdamW)):
            for p in model.policy.parameters():
                p.requires_grad_(True)
            for p in frozen.parameters():
                p.requires_grad_(False)
            model.policy.optimizer = optimizer_class(model.policy.parameters(), lr=3e-3, weight_decay=0.5)
            model.learn(64)
        found.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
    assert len(module._graphs[model.policy]) == 3, "acting, and two updates"
    assert th.allclose(*found, rtol=0, atol=1e-5)


def test_an_optimizer_that_is_not_compiled_says_so():
    kwargs = {"optimizer_class": th.optim.SGD}
    with pytest.warns(UserWarning, match="compile=True: an update runs uncompiled.*not this optimizer"):
        ClippedCriticPPO("MlpPolicy", "Pendulum-v1", compile=True, policy_kwargs=kwargs, **SETTINGS).learn(64)


class RunningMean(th.nn.Tanh):
    """Keeps statistics without registering them."""

    def __init__(self):
        super().__init__()
        self.mean = th.zeros(())

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean().detach()
        return super().forward(x - self.mean)


@pytest.mark.parametrize("cause", ["dropout", "buffers", "attributes", "tracing", "compiler"])
def test_a_warning_says_why_it_runs_uncompiled(cause, monkeypatch):
    modules = {"dropout": th.nn.Dropout, "attributes": RunningMean, "buffers": lambda: th.nn.BatchNorm1d(64)}
    kwargs = {"activation_fn": modules[cause]} if cause in modules else {}
    if cause == "compiler":

        def no_compiler(*args, **kwargs):
            raise RuntimeError("no C++ compiler\nlong explanation")

        monkeypatch.setattr(module, "_compile", no_compiler)

    @of_sb3
    class DataDependent(th.nn.Tanh):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    if cause == "tracing":
        kwargs = {"activation_fn": DataDependent}
    kept = "keeps tensors that are no parameters"
    messages = {
        "dropout": "random numbers",
        "buffers": kept,
        "attributes": kept,
        "tracing": "uncompiled",
        "compiler": "RuntimeError: no C\\+\\+ compiler$",
    }
    found = []
    for compile in (False, True):
        model = ClippedCriticPPO("MlpPolicy", "Pendulum-v1", compile=compile, policy_kwargs=kwargs, **SETTINGS)
        if compile:
            with pytest.warns(UserWarning, match=messages[cause]) as caught:
                model.learn(128)
            assert len([w for w in caught if "compile=True" in str(w.message)]) == 1
        else:
            model.learn(128)
        found.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
    assert th.equal(*found)


# --- NPG's products with the Fisher matrix ---------------------------------------------------------------------------


def npg(compile, action="box", observation=VECTOR, policy="MlpPolicy", **options):
    env = DummyVecEnv([lambda: AnySpaces(observation, ACTIONS[action])] * 2)
    env.seed(1)
    settings = {"n_steps": 32, "batch_size": 32, "n_critic_updates": 1, "sub_sampling_factor": 3}
    return NPG(policy, env, compile=compile, seed=0, device="cpu", **settings | options)


def with_rollout(model):
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def assert_same_products(model):
    """With the eager ones, also after the policy has moved, for other steps, and each time that one is asked for."""
    generator = th.Generator().manual_seed(0)
    for _ in range(2):
        steps, parameters = model._sampled_steps(model.rollout), list(policy_parameters(model.policy).values())
        products = []
        for model.compile in (False, True):
            with unvalidated_distributions():
                batch = (steps.observations, steps.actions)
                fisher = model.engine.fisher(parameters, model._geometry, batch, model.fisher)
            products.append(fisher)
        for _ in range(2):
            v = th.randn(sum(p.numel() for p in parameters), generator=generator)
            wanted, found = (product(v) for product in products)
            assert not found.requires_grad
            assert (found - wanted).norm() < 1e-5 * wanted.norm()
        with th.no_grad():
            for p in model.policy.parameters():
                p += 0.1 * th.randn(p.shape, generator=generator)
    of_fisher = [graph for (what, _), graph in module._graphs[model.policy].items() if "Fisher" in what]
    assert len(of_fisher) == 1
    assert None not in of_fisher


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize(
    "options",
    [
        *({"action": action} for action in ACTIONS),
        {"use_sde": True},
        {"use_sde": True, "policy_kwargs": {"squash_output": True, "full_std": False}},
        {"policy": "MultiInputPolicy", "observation": DICT, "action": "discrete", "n_steps": 4, "batch_size": 4},
        {"policy": "CnnPolicy", "observation": IMAGE, "n_steps": 4, "batch_size": 4},
        {"policy_kwargs": {"features_extractor_class": Learnable}},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values() if isinstance(value, str | bool)) or "shared",
)
@pytest.mark.filterwarnings("error:compile=True")
def test_the_same_products_with_the_fisher_matrix(options, fisher):
    assert_same_products(with_rollout(npg(False, fisher=fisher, **options)))


@pytest.mark.compiler
@pytest.mark.filterwarnings("error:compile=True")
def test_the_same_products_compiled():
    assert_same_products(with_rollout(npg(False)))


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize(("at_most", "rows"), [(21, 11), (8, 8), (7, 6), (5, 5)])  # of 22 steps; 0 to 6 are left over
@pytest.mark.filterwarnings("error:compile=True")
def test_the_same_products_in_parts(fisher, at_most, rows, monkeypatch):
    monkeypatch.setattr(compiled_module, "FISHER_ROWS", at_most)
    model = with_rollout(npg(False, fisher=fisher))
    assert len(model._sampled_steps(model.rollout).advantages) == 22
    assert_same_products(model)
    ((_, _, *forms),) = (key for what, key in module._graphs[model.policy] if "Fisher" in what)
    assert any(shape == (rows, *VECTOR.shape) for shape, *_ in forms), "the graph is of a part"


@pytest.mark.filterwarnings("error:compile=True")
def test_products_of_a_policy_that_looks_at_other_rows(monkeypatch):
    """Batch norm over the minibatch: parts would have means of their own."""
    norm = functools.partial(th.nn.BatchNorm1d, 64, track_running_stats=False)
    monkeypatch.setattr(compiled_module, "FISHER_ROWS", 11)
    assert_same_products(with_rollout(npg(False, policy_kwargs={"activation_fn": norm})))


@pytest.mark.filterwarnings("error:compile=True")
def test_products_with_the_fisher_matrix_of_what_is_not_frozen():
    model = with_rollout(npg(False))
    model.policy.mlp_extractor.policy_net[0].requires_grad_(False)
    assert_same_products(model)
    model.policy.mlp_extractor.policy_net[0].requires_grad_(True)
    model.policy.log_std.requires_grad_(False)
    parameters = list(policy_parameters(model.policy).values())
    steps = model._sampled_steps(model.rollout)
    with unvalidated_distributions():
        fisher = model.engine.fisher(parameters, model._geometry, (steps.observations, steps.actions), "exact")
    assert fisher(th.ones(sum(p.numel() for p in parameters))).isfinite().all()


@pytest.mark.filterwarnings("error:compile=True")
def test_the_same_natural_steps():
    found = []
    for compile in (False, True):
        model = npg(compile).learn(4 * 64)
        found.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
    assert len(module._graphs[model.policy]) == 4, "acting, the products, what a step leads to, and the critic"
    assert not th.equal(found[0], th.cat([p.detach().flatten() for p in npg(True).policy.parameters()]))
    assert th.allclose(*found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_products_that_cannot_be_compiled(fisher):
    """Dropout; the critic's fit has it too, and the warning is about the products, which come first."""
    found = []
    for compile in (False, True):
        kwargs = {"activation_fn": th.nn.Dropout}
        model = npg(compile, fisher=fisher, policy_kwargs=kwargs)
        if compile:
            with pytest.warns(
                UserWarning, match="compile=True: the product with the Fisher .* random numbers"
            ) as caught:
                model.learn(2 * 64)
            assert len([w for w in caught if "compile=True" in str(w.message)]) == 1
        else:
            model.learn(2 * 64)
        found.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
    assert th.equal(*found)


def test_what_is_computed_once_is_not_changed_by_what_follows():
    """A sum that grows in place would be another one at the second call."""

    def function(x, y):
        total = th.zeros(3) + x
        total += y
        return total * x.exp()

    x, y = th.arange(3.0), th.ones(3)
    graph = module.graph_of(th.nn.Identity(), "sum", function, [x, y], "a sum", n_first=1)([x])
    for _ in range(2):
        assert th.allclose(graph([y]), (x + y) * x.exp())
    assert th.allclose(graph([2 * y]), (x + 2 * y) * x.exp())

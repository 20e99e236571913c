"""Claim: ``sb3-pgext variance`` measures each value of an option on the same frozen policies, and writes it down."""

import contextlib
from dataclasses import replace
from unittest import mock

import pandas as pd
import pytest
import torch as th
from rich.console import Console
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_pgext import REINFORCE, VPG
from sb3_pgext.cli import main
from sb3_pgext.diagnostics import set_options
from sb3_pgext.variance.command import variance
from sb3_pgext.variance.report import statistics_table
from sb3_pgext.variance.sampling import sample, sample_all, save_snapshots
from sb3_pgext.variance.study import parse_study

MDP = "sb3_pgext/RandomMDP-v0"


def measure(tmp_path, algo="reinforce", env=MDP, figure=False, **arguments):
    """The table of a study; its figure takes longer than most studies."""
    size = {"n_episodes": 4} if algo == "reinforce" else {"n_steps": 32}
    study = parse_study(algo, env, **{"n_batches": 3, **size, **arguments})
    with contextlib.nullcontext() if figure else mock.patch("sb3_pgext.variance.command.plot_variances"):
        variance(study, tmp_path / "out", jobs=1)
    return pd.read_csv(tmp_path / "out" / "variance.csv", keep_default_na=False)


def test_worker_processes_know_environments_of_another_package(tmp_path):
    study = {"vary": "gamma=1", "n_batches": 21, "n_episodes": 2, "gym_packages": ["tests.environments"]}
    samples, _ = sample_all(parse_study("reinforce", "tests/PaysLater-v0", **study), jobs=2, console=Console())
    assert samples[0, 0].shape[0] == 21


def test_table_and_figure(tmp_path):
    table = measure(tmp_path, vary="baseline=none,constant,optimal", at_steps="300,0", figure=True)
    assert list(zip(table["steps"], table["value"], strict=True)) == [
        (steps, value) for steps in (0, 300) for value in ("none", "constant", "optimal")
    ]
    assert (table["batches"] == 3).all()
    assert (table["trace"] > 0).all()
    assert table["trace"].nunique() == 6
    assert (table["bias_error"].astype(float) > 0).all()
    assert (tmp_path / "out" / "variance.png").stat().st_size > 10_000
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"variance.{end}" for end in ("csv", "png", "svg")}


def test_the_same_study_gives_the_same_numbers(tmp_path):
    first, second = (measure(tmp_path / name, vary="credit=reward_to_go,trajectory") for name in "ab")
    pd.testing.assert_frame_equal(first, second)


def test_values_differ_in_the_option_alone(tmp_path, capsys):
    """The optimal baseline cannot be combined with normalized advantages: then nothing is normalized."""
    conf = tmp_path / "conf.yml"
    conf.write_text("default: {n_envs: 1, n_timesteps: 100, policy: MlpPolicy, normalize_advantage: true}")
    table = measure(tmp_path, vary="baseline=none,optimal", conf_file=str(conf))
    plain = measure(tmp_path, vary="baseline=none", conf_file=str(conf), params={"normalize_advantage": None})
    assert table["trace"][0] == plain["trace"][0]
    printed = capsys.readouterr().out
    assert "normalize_advantage=False for all values of baseline" in printed
    assert "note: reinforce on " in printed
    assert ": no tuned configuration; using the default" in printed


def test_normalized_advantages_are_pointed_out(tmp_path, capsys):
    measure(tmp_path, vary="gamma=0.9")
    assert "--params normalize_advantage=false" in capsys.readouterr().out
    measure(tmp_path, vary="gamma=0.9", params={"normalize_advantage": False})
    assert "normalize_advantage" not in capsys.readouterr().out


def test_all_values_treat_a_time_limit_alike(capsys, tmp_path):
    """By default only a critic bootstraps: then none does."""
    measure(tmp_path, vary="baseline=none,state")
    assert "truncation='terminal' for all values of baseline" in capsys.readouterr().out


def test_no_two_batches_share_random_numbers(tmp_path):
    """Neither within a task nor between tasks, whose sub-environments have seeds in a row."""
    study = parse_study("reinforce", MDP, "gamma=0.9", n_batches=60, n_episodes=4)
    save_snapshots(study, tmp_path)
    batches = th.cat([sample(study, tmp_path, 0, 0, first)[0] for first in (0, 20, 40)])
    assert len(batches) == 60
    correlation = th.corrcoef(batches - batches.mean(0)) - th.eye(60)
    assert correlation.abs().max() < 0.999
    first, second, third = batches.split(20)
    for one, other in ((first, second), (second, third)):
        assert abs(th.corrcoef(th.stack([one.norm(dim=1), other.norm(dim=1)]))[0, 1]) < 0.7


def test_steps_at_the_end_of_the_training(tmp_path):
    """The last snapshot may fall into the last batch."""
    conf = tmp_path / "conf.yml"
    conf.write_text("default: {n_envs: 2, n_timesteps: 100, policy: MlpPolicy, n_episodes: 50}")
    table = measure(tmp_path, vary="gamma=0.9", at_steps="300", conf_file=str(conf))
    assert list(table["steps"]) == [300]


def test_normalized_rewards_have_no_exact_gradient(tmp_path):
    conf = tmp_path / "conf.yml"
    conf.write_text("default: {n_envs: 2, n_timesteps: 100, policy: MlpPolicy, normalize: {norm_obs: false}}")
    table = measure(tmp_path, vary="gamma=0.9", conf_file=str(conf))
    assert list(table["bias"]) == [""]
    assert table["trace"][0] > 0


def test_numbers_in_scientific_notation(tmp_path):
    assert list(measure(tmp_path, vary="ent_coef=0,1e-3")["value"].astype(float)) == [0.0, 0.001]


def test_a_bias_is_reported(tmp_path):
    """Two episodes whose mean return is the baseline of both: half of the gradient is gone. 300 batches detect 0.4."""
    study = {"vary": "leave_one_out=true,false", "n_batches": 300, "n_episodes": 2}
    conf = tmp_path / "conf.yml"
    conf.write_text("default: {n_envs: 2, n_timesteps: 100, policy: MlpPolicy, baseline: constant, credit: trajectory}")
    table = measure(tmp_path, conf_file=str(conf), **study).astype({"bias": float, "bias_error": float})
    left_out, included = table.to_dict("records")
    assert abs(left_out["bias"]) < 4 * left_out["bias_error"]
    assert included["bias"] == pytest.approx(-0.5, abs=4 * included["bias_error"])
    assert included["bias"] < -4 * included["bias_error"]
    assert float(included["bias_norm"]) == pytest.approx(0.5, abs=0.15)
    assert float(left_out["bias_norm"]) < 0.2


def test_no_bias_column_where_the_truth_is_not_known(tmp_path, capsys):
    arguments = ["--vary", "baseline=none,time", "--batches", "3", "--episodes", "2", "--jobs", "1"]
    assert main(["variance", *arguments, "--out", str(tmp_path)]) == 0
    assert set(pd.read_csv(tmp_path / "variance.csv")["bias"].isna()) == {True}
    assert "exact gradient" not in capsys.readouterr().out


def test_algorithms_that_collect_steps(tmp_path, capsys):
    """Batches of so many steps; episodes that a rollout cuts leave no exact gradient."""
    table = measure(tmp_path, "vpg", vary="advantage=mc,td,n_step,gae", at_steps="0,300")
    assert (table["trace"] > 0).all()
    assert table["trace"].nunique() == 8
    assert set(table["bias"]) == {""}
    assert "for all values" not in capsys.readouterr().out, "n_step and gae_lambda are each one value's own"
    longer = measure(tmp_path, "vpg", vary="advantage=mc", n_steps=640)
    assert longer["trace"][0] < 0.3 * table["trace"][0]


def test_rollouts_of_whole_episodes_have_an_exact_gradient(tmp_path):
    """
    Monte-Carlo advantages have its mean; one-step ones of a critic that has learnt nothing see no reward that the
    first action is to be credited with. Against the samples of mc it is the same.
    """
    options = {"vary": "advantage=mc,td", "params": {"n_envs": 2, "normalize_advantage": False}}
    study = parse_study("vpg", "tests/PaysLater-v0", n_batches=60, n_steps=16, **options)
    samples = sample_all(study, jobs=1, console=Console())
    tables = [statistics_table(replace(study, reference=reference), *samples) for reference in (None, "mc")]
    (mc, td), (itself, relative) = (table.to_dict("records") for table in tables)
    assert abs(mc["bias"]) < 4 * mc["bias_error"] < 1
    assert td["bias"] == pytest.approx(-1, abs=0.2)
    assert relative["bias"] == pytest.approx(-1, abs=0.2)
    assert (itself["bias"], itself["bias_norm"]) == (0, 0)
    assert [row["trace"] for row in (itself, relative)] == [row["trace"] for row in (mc, td)]
    cut = measure(tmp_path, "vpg", "tests/PaysLater-v0", n_batches=3, n_steps=17, **options)
    assert set(cut["bias"]) == {""}


def test_values_are_compared_on_the_same_rollouts(tmp_path):
    """A value compared with itself under another name has no bias, batch by batch; tasks may end in any order."""
    study = {"vary": "advantage=td,gae,mc", "reference": "mc", "params": {"gae_lambda": 1}, "n_batches": 21}
    table = measure(tmp_path, "vpg", **study)
    assert table["bias"].abs()[1:].max() < 1e-4
    assert table["bias_error"][1:].max() < 1e-4
    assert table["bias_error"][0] > 1e-3


def test_the_reference_is_named(tmp_path, capsys):
    arguments = ["--algo", "vpg", "--vary", "advantage=mc,td", "--reference", "mc", "--batches", "3", "--steps", "40"]
    assert main(["variance", *arguments, "--jobs", "1", "--out", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Bias: along the mean gradient of advantage=mc" in printed
    assert "mean gradient of advantage=mc" in (tmp_path / "variance.svg").read_text()


def test_suboptions_of_a_value_are_its_own(tmp_path, capsys):
    """What n_step is measured with is what was asked for, although mc has none."""
    params = {"advantage": "n_step", "lookahead": 1}
    table = measure(tmp_path, "vpg", vary="advantage=mc,td,n_step", params=params)
    assert table["trace"][2] == pytest.approx(table["trace"][1], rel=1e-4)
    assert "for all values" not in capsys.readouterr().out


def test_critics_are_compared_at_the_same_policy_on_the_same_steps(tmp_path, monkeypatch):
    """Each is its own, fitted to as many steps of the frozen policy as that was trained for."""
    study = parse_study("vpg", MDP, "critic=v,q", at_steps="0,300", n_batches=3, n_steps=32)
    fitted, seen = [], []
    fit, estimate = VPG._fit_critic, VPG.estimate_gradient
    monkeypatch.setattr(
        VPG, "_fit_critic", lambda self, x, *rest: fitted.append((self.critic, x)) or fit(self, x, *rest)
    )
    save_snapshots(study, tmp_path)
    of_q = [x for critic, x in fitted if critic == "q"]
    of_v = [x for critic, x in fitted if critic == "v"][-len(of_q) :]
    assert sum(map(len, of_q)) >= 300
    assert all(th.equal(a, b) for a, b in zip(of_v, of_q, strict=True))
    for steps in study.at_steps:
        trained, v, q = (load_from_zip_file(tmp_path / f"{steps}{end}")[1]["policy"] for end in ("", "-0", "-1"))
        assert v["value_net.weight"].shape != q["value_net.weight"].shape
        policy = [name for name in trained if "value" not in name]
        assert all(th.equal(trained[name], v[name]) and th.equal(v[name], q[name]) for name in policy)

    monkeypatch.setattr(VPG, "estimate_gradient", lambda self: seen.append(self.rollout) or estimate(self))
    samples = [sample(study, tmp_path, 300, index, 0)[0] for index in (0, 1)]
    assert not th.equal(*samples)
    assert all(th.equal(a.actions, b.actions) for a, b in zip(seen[:3], seen[3:], strict=True))


def test_the_gradient_over_all_actions_is_compared_with_the_same_critic(tmp_path, capsys):
    """Whatever the configuration says; the advantage is that of the sampled gradient alone."""
    table = measure(tmp_path, "vpg", vary="gradient=sampled,all_action", at_steps="0,300")
    assert table["trace"].nunique() == 4
    assert "critic='q' for all values of gradient" in capsys.readouterr().out
    params = {"critic": "q", "advantage": "q"}
    table = measure(tmp_path, "vpg", vary="gradient=sampled,all_action", at_steps="300", n_batches=20, params=params)
    assert "\nadvantage=" not in capsys.readouterr().out
    assert table["trace"][1] < table["trace"][0]


def test_set_options_resets_what_becomes_ineffective():
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_critic_updates=3, critic_target="td", n_episodes=2, device="cpu")
    set_options(model, baseline="constant")
    assert (model.n_critic_updates, model.critic_target, model.leave_one_out) == (5, "mc", True)
    with pytest.raises(ValueError, match="discount_weighting=True"):
        set_options(model, credit="trajectory", discount_weighting=True)
    assert (model.credit, model.discount_weighting) == ("reward_to_go", False)
    set_options(model, n_episodes=3)
    assert model.learn(1).episodes.n_episodes == 3
    model = VPG("MlpPolicy", "CartPole-v1", advantage="n_step", lookahead=7, critic_target="mc", device="cpu")
    assert set_options(model, advantage="mc") == {"lookahead": 5}
    assert (model.advantage, model.lookahead) == ("mc", 5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--vary", "baseline"], "--vary 'baseline'"),
        (["--vary", "baseline=none,best"], "baseline='best'"),
        (["--vary", "bseline=none"], "'bseline', did you mean 'baseline'"),
        (["--vary", "learning_rate=0.1"], "unknown option to vary 'learning_rate'"),
        (["--vary", "gamma=2"], "gamma=2"),
        (["--vary", "gamma=1", "--at-steps", "-1"], "--at-steps '-1'"),
        (["--vary", "gamma=1", "--batches", "1"], "--batches 1"),
        (["--vary", "gamma=1", "--params", "gama=1"], "--params: unknown key 'gama', did you mean 'gamma'"),
        (["--vary", "gamma=1", "--algo", "ppo"], "unknown algorithm 'ppo'"),
        (["--vary", "gamma=1", "--algo", "ppo_cc"], "--algo='ppo_cc': allowed is reinforce, vpg, ispg, "),
        (["--vary", "gamma=1", "--steps", "64"], "--steps 64: allowed is --episodes for reinforce"),
        (["--vary", "gamma=1", "--algo", "vpg", "--episodes", "8"], "--episodes 8: allowed is --steps for vpg"),
        (["--vary", "gamma=1", "--algo", "vpg", "--steps", "0"], "n_steps=0"),
        (["--vary", "gamma=1,0.9", "--reference", "0.8"], "--reference 0.8: allowed is one of the values of gamma"),
        (["--vary", "advantage=best", "--algo", "vpg"], "advantage='best'"),
        (["--vary", "gamma=1", "--env", "CartPole"], "unknown environment 'CartPole'"),
    ],
)
def test_mistakes(arguments, named, capsys):
    assert main(["variance", *arguments]) == 2
    assert named in capsys.readouterr().err

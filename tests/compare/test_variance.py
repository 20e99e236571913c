"""Claim: ``sb3-pgext variance`` measures each value of an option on the same frozen policies, and writes it down."""

import pandas as pd
import pytest

from sb3_pgext import REINFORCE
from sb3_pgext.cli import main
from sb3_pgext.compare.variance import parse_study, variance
from sb3_pgext.diagnostics import set_options

MDP = "sb3_pgext/RandomMDP-v0"


def measure(tmp_path, **arguments):
    study = parse_study("reinforce", MDP, **{"n_batches": 3, "n_episodes": 4, **arguments})
    variance(study, tmp_path / "out", jobs=1)
    return pd.read_csv(tmp_path / "out" / "variance.csv", keep_default_na=False)


def test_table_and_figure(tmp_path):
    table = measure(tmp_path, vary="baseline=none,constant,optimal", at_steps="300,0")
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
    assert "normalize_advantage=False for all values of baseline" in capsys.readouterr().out


def test_a_bias_is_reported(tmp_path):
    """Two episodes whose mean return is the baseline of both: half of the gradient is gone."""
    study = {"vary": "leave_one_out=true,false", "n_batches": 600, "n_episodes": 2}
    conf = tmp_path / "conf.yml"
    conf.write_text("default: {n_envs: 2, n_timesteps: 100, policy: MlpPolicy, baseline: constant, credit: trajectory}")
    table = measure(tmp_path, conf_file=str(conf), **study).astype({"bias": float, "bias_error": float})
    left_out, included = table.to_dict("records")
    assert abs(left_out["bias"]) < 4 * left_out["bias_error"]
    assert included["bias"] == pytest.approx(-0.5, abs=4 * included["bias_error"])
    assert included["bias"] < -4 * included["bias_error"]


def test_no_bias_column_where_the_truth_is_not_known(tmp_path, capsys):
    arguments = ["--vary", "baseline=none,time", "--batches", "3", "--episodes", "2", "--jobs", "1"]
    assert main(["variance", *arguments, "--out", str(tmp_path)]) == 0
    assert set(pd.read_csv(tmp_path / "variance.csv")["bias"].isna()) == {True}
    assert "exact gradient" not in capsys.readouterr().out


def test_set_options_resets_what_becomes_ineffective():
    model = REINFORCE("MlpPolicy", "CartPole-v1", critic_epochs=3, critic_target="td", n_episodes=2, device="cpu")
    set_options(model, baseline="constant")
    assert (model.critic_epochs, model.critic_target, model.leave_one_out) == (None, "mc", True)
    with pytest.raises(ValueError, match="discount_weighting=True"):
        set_options(model, credit="trajectory", discount_weighting=True)


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
        (["--vary", "gamma=1", "--params", "gama=1"], "'gama', did you mean 'gamma'"),
        (["--vary", "gamma=1", "--algo", "ppo"], "unknown algorithm 'ppo'"),
        (["--vary", "gamma=1", "--env", "CartPole"], "unknown environment 'CartPole'"),
    ],
)
def test_mistakes(arguments, named, capsys):
    assert main(["variance", *arguments]) == 2
    assert named in capsys.readouterr().err

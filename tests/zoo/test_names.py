"""Claim: a misspelt name is refused with the nearest known one; a right one passes."""

import pytest

from sb3_pgext.zoo.names import check_environment, check_name, import_environments, nearest


def test_a_known_name_passes_unchanged() -> None:
    assert check_name("algorithm", "ppo", {"ppo", "a2c"}) == "ppo"
    assert check_environment("CartPole-v1") == "CartPole-v1"


def test_an_unknown_name_is_refused_with_the_nearest_and_all_known() -> None:
    with pytest.raises(ValueError, match=r"unknown algorithm 'pp0', did you mean 'ppo'\? \(known: a2c, ppo\)"):
        check_name("algorithm", "pp0", {"ppo", "a2c"})


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("Cartpole-v1", "CartPole-v1"), ("CARTPOLE-V1", "CartPole-v1"), ("LunarLander", "LunarLander-v3")],
)
def test_an_unknown_environment_is_refused_with_the_nearest(misspelt: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown environment '{misspelt}', did you mean '{meant}'"):
        check_environment(misspelt)


def test_nothing_is_suggested_where_nothing_is_close() -> None:
    assert nearest("xyzzy", ["reinforce", "ppo"]) == ""


@pytest.mark.parametrize("value", [None, 3, ["ppo"]])
def test_what_is_no_text_is_no_name(value: object) -> None:
    with pytest.raises(ValueError, match="unknown algorithm"):
        check_name("algorithm", value, {"ppo"})


def test_a_missing_package_of_environments_is_named() -> None:
    with pytest.raises(ValueError, match="gym_packages: unknown package of environments 'no_such_envs'"):
        import_environments(["no_such_envs"])


def test_a_package_that_fails_inside_is_not_called_missing(tmp_path, monkeypatch) -> None:
    (tmp_path / "envs_with_a_hole.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        import_environments(["envs_with_a_hole"])

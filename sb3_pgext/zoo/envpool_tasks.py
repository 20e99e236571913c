"""Environments that only envpool has, by an id that gymnasium and rl_zoo3 know too."""

from typing import Any, NoReturn

import gymnasium as gym

from sb3_pgext.vec_envs.envpool_vec_env import import_envpool

__all__ = ["register_envpool_task"]


def register_envpool_task(env_id: str) -> bool:
    """
    Make gymnasium know an environment of envpool; only ``vec_env: envpool`` can make it.

    :param env_id: an id that gymnasium does not know
    :return: whether envpool, if it is installed, has a task of this name
    """
    try:
        envpool = import_envpool()
    except ModuleNotFoundError:
        return False
    if env_id not in envpool.list_all_envs():
        return False
    is_atari = envpool.registration.registry.specs[env_id][0] == "envpool.atari"
    gym.register(env_id, f"{__name__}:{'AtariEnvOfEnvpool' if is_atari else 'EnvOfEnvpool'}")
    return True


class EnvOfEnvpool(gym.Env):
    """
    Stands for an environment that envpool alone can make.

    :param settings: any
    :raises ValueError: always
    """

    def __init__(self, **settings: Any) -> NoReturn:
        raise ValueError("vec_env: allowed is 'envpool' only for an environment that gymnasium does not have")


class AtariEnvOfEnvpool(EnvOfEnvpool):
    """Stands for an Atari game: rl_zoo3 looks at the name of this class."""

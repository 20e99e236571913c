"""The algorithms of sb3-pgext in rl_zoo3: importing this package registers them."""

from sb3_pgext.zoo.commands import enjoy, record_video, train
from sb3_pgext.zoo.configs import check_config, config_path, configs_folder, read_config
from sb3_pgext.zoo.names import check_environment, check_name
from sb3_pgext.zoo.overview import check_zoo, list_zoo
from sb3_pgext.zoo.registration import ALGORITHMS, register

register()

__all__ = [
    "ALGORITHMS",
    "check_config",
    "check_environment",
    "check_name",
    "check_zoo",
    "config_path",
    "configs_folder",
    "enjoy",
    "list_zoo",
    "read_config",
    "record_video",
    "register",
    "train",
]

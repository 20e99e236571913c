"""The algorithms of sb3-pgext in rl_zoo3: importing this package registers them."""

from sb3_pgext.zoo.commands import enjoy, record_video, train
from sb3_pgext.zoo.overview import check_zoo, list_zoo
from sb3_pgext.zoo.registration import ALGORITHMS, register

register()

__all__ = ["ALGORITHMS", "check_zoo", "enjoy", "list_zoo", "record_video", "register", "train"]

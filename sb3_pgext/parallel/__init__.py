"""One run on many processes: ranks that torchrun starts, and means over all of them."""

from sb3_pgext.parallel.group import init, present
from sb3_pgext.parallel.ranks import Ranks

__all__ = ["Ranks", "init", "present"]

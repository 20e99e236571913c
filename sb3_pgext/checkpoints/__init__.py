"""Training that can be stopped at any moment, and files that can be opened without trusting whoever wrote them."""

from sb3_pgext.checkpoints.callback import CheckpointCallback
from sb3_pgext.checkpoints.files import has_checkpoint
from sb3_pgext.checkpoints.saving import load, resume, save

__all__ = ["CheckpointCallback", "has_checkpoint", "load", "resume", "save"]

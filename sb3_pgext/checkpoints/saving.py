"""A model, its environment and all random generators, written to the disk and read from it."""

import json
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import safetensors.torch
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_pgext.arguments import require
from sb3_pgext.checkpoints import files
from sb3_pgext.checkpoints.encoding import NEEDS_TRUST, Decoder, Encoder
from sb3_pgext.checkpoints.environments import adopt, pickled
from sb3_pgext.checkpoints.files import Damaged, Stored
from sb3_pgext.checkpoints.state import model_of, restore_generators, restore_normalization, state_of
from sb3_pgext.parallel import present

__all__ = ["contents", "load", "resume", "save"]


def save(model: BaseAlgorithm, path: str | Path) -> None:
    """
    Save a model that is not learning, with all that :func:`resume` needs, as a folder that :func:`load` opens safely.
    All ranks call it, and rank 0 writes.

    :param model: of any SB3 algorithm; a class that is not known by name is kept as a pickle
    :param path: the folder, where nothing may be yet
    :raises ValueError: the model has a parameter that is NaN or infinite or something that cannot be pickled where that
        is needed, or something is there already
    """
    of_ranks = present().at_first(contents(model))
    if of_ranks:
        files.write(Path(path), files.together(of_ranks))


def load(
    path: str | Path, env: GymEnv | None = None, device: th.device | str = "auto", trust: bool = False
) -> BaseAlgorithm:
    """
    Load a model to predict with, or to learn on from. Unless it is trusted, nothing in the file is run, and
    ``tensorboard_log``, where it says that logs are to be written, is left out.

    :param path: a checkpoint, or a folder of checkpoints, of which the last good one is loaded
    :param env: the environment that the model is to have, if any. Its VecNormalize gets the statistics that the model
        was trained with
    :param device: where its tensors are to be
    :param trust: whether whoever wrote the file may run code here: custom classes and functions need that
    :return: the model
    :raises ValueError: there is no good checkpoint, it needs pickle and is not trusted (the message names the entry),
        or the environment does not fit
    """
    stored = _last_good(Path(path))
    with _naming(stored):
        state, decoder = _opened(stored, trust)
        model = model_of(state, decoder, env, device)
        if env is not None:
            restore_normalization(model, decoder.decode(state["normalization"]))
            model._last_obs = None
    return model


def resume(
    path: str | Path, env: GymEnv | None = None, device: th.device | str | None = None, trust: bool | None = None
) -> BaseAlgorithm:
    """
    Load a model to learn on with, as if its training had not stopped:
    ``model.learn(total_timesteps - model.num_timesteps, reset_num_timesteps=False)``.

    The environment is in the checkpoint too, as a pickle, where it can be pickled. Where it cannot, or is not trusted,
    a warning says so, and the episodes restart in ``env``.

    Of several ranks each goes on with its own environments and generators. At another number of ranks, those of the
    ranks that are new begin anew, as a warning says.

    :param path: a folder of checkpoints, of which the last good one is taken, or a single checkpoint
    :param env: the environment; None for the one in the checkpoint. One of the same make gets the state of that one
    :param device: where its tensors are to be; None for a device of the kind where they were
    :param trust: whether what is pickled in the file may be opened, which runs code of whoever wrote it: True, False,
        or None for files that this user wrote on this machine
    :return: the model, with its environment; the random generators of the process are as they were
    :raises ValueError: there is no good checkpoint, it needs pickle and is not trusted (the message names the entry),
        or an environment is needed, or does not fit
    """
    stored, ranks = _last_good(Path(path)), present()
    trusted = stored.own if trust is None else trust
    with _naming(stored):
        is_new = ranks.rank >= stored.n_ranks
        if ranks.rank == 0 and ranks.size != stored.n_ranks:
            _warn_of_other_ranks(stored, ranks.size)
        stored = stored.of_rank(0 if is_new else ranks.rank)
        state, decoder = _opened(stored, trusted)
        saved_env, reason = _saved_env(stored, trusted)
        if env is None and saved_env is None:
            raise ValueError(f"env=None: allowed is an environment, for the saved one {reason}")
        env_of_model = saved_env if env is None else env
        model = model_of(state, decoder, env_of_model, state["device"] if device is None else device)
        assert model.env is not None
        # Not that of the first episodes, which would be played again.
        later_seed = None if model.seed is None else (model.seed + model.num_timesteps) % 2**32
        if is_new:
            restore_normalization(model, decoder.decode(state["normalization"]))
            model._last_obs = None
            model.set_random_seed(later_seed)
            return model
        if saved_env is not None and env is not None and not adopt(model.env, saved_env):
            saved_env, reason = None, "is of another make than the one given"
        if saved_env is None:
            restore_normalization(model, decoder.decode(state["normalization"]))
            model._last_obs = None
            if later_seed is not None:
                model.env.seed(ranks.seed(later_seed))
            why = f"the environment in {stored.path} {reason}"
            warnings.warn(f"the episodes restart, and this will not be the uninterrupted run: {why}", stacklevel=2)
        elif model.action_noise is not None:
            _keep_through_next_reset(model.action_noise)
        restore_generators(model, decoder.decode(state["generators"]))
    return model


def _warn_of_other_ranks(stored: Stored, size: int) -> None:
    before, kept = stored.n_ranks, min(stored.n_ranks, size)
    changed, fate = range(kept, max(before, size)), "are new" if size > before else "are dropped"
    message = (
        f"{stored.path} is of {before} ranks, and there are {size} now: parameters, optimizers, statistics and the "
        f"environments of ranks {[*range(kept)]} go on, the environments of ranks {[*changed]} {fate}"
    )
    warnings.warn(message, stacklevel=4)


def contents(model: BaseAlgorithm) -> dict[str, bytes]:
    """
    The files of a checkpoint. A warning says so if the environment is not among them.

    :param model: between two updates
    :return: their contents, by name
    :raises ValueError: see :func:`save`
    """
    encoder, written = Encoder(), {}
    state = state_of(model, encoder)
    if model.env is not None:
        try:
            written[files.ENVIRONMENT] = pickled(model.env)
        except TypeError as error:
            why = f"this environment cannot be pickled ({error})"
            warnings.warn(f"a resumed training will restart its episodes: {why}", stacklevel=2)
    if encoder.custom:
        try:
            written[files.CUSTOM] = cloudpickle.dumps(encoder.custom)
        except Exception as error:  # whatever a class of the user may raise
            raise ValueError(f"one of {sorted(encoder.custom)} cannot be pickled: {error}") from error
    written[files.MODEL] = json.dumps(state).encode()
    written[files.TENSORS] = safetensors.torch.save(encoder.tensors)
    return written


def _last_good(path: Path) -> Stored:
    candidates = files.found(path)
    if not candidates:
        require(path.is_dir(), "path", str(path), "a checkpoint, or a folder of checkpoints")
        return files.read(path)
    for candidate in candidates:
        try:
            return files.read(candidate)
        except (Damaged, OSError) as error:
            warnings.warn(f"{error}: the checkpoint before it is taken", stacklevel=3)
    raise Damaged(f"path={str(path)!r}: none of its {len(candidates)} checkpoints is good")


@contextmanager
def _naming(stored: Stored) -> Iterator[None]:
    """Name the checkpoint in errors, also in those that files raise which are intact but of no model."""
    try:
        yield
    except Exception as error:  # whatever a constructor may raise that is given something else
        what = error if type(error) is ValueError else f"{files.MODEL} is not of a known schema ({error!r})"
        raise ValueError(f"{stored.path}: {what}") from error


def _opened(stored: Stored, trusted: bool) -> tuple[dict[str, Any], Decoder]:
    """The state as JSON, and what makes values of it."""
    state, tensors = json.loads(stored.files[files.MODEL]), safetensors.torch.load(stored.files[files.TENSORS])
    if trusted:
        return state, Decoder(tensors, pickle.loads(stored.files.get(files.CUSTOM, pickle.dumps({}))))
    state["attributes"]["tensorboard_log"] = None  # a stranger does not say where logs are written
    return state, Decoder(tensors, None)


def _saved_env(stored: Stored, trusted: bool) -> tuple[VecEnv | None, str]:
    """The environment in the checkpoint, or None and the reason."""
    if files.ENVIRONMENT not in stored.files:
        return None, "is not there: there was none, or it cannot be pickled"
    if not trusted:
        return None, NEEDS_TRUST
    try:
        return pickle.loads(stored.files[files.ENVIRONMENT]), ""
    except Exception as error:  # whatever an environment may raise
        return None, f"cannot be opened ({error!r})"


def _keep_through_next_reset(noise: ActionNoise) -> None:
    """``learn`` resets the noise when it starts, which it does not do in the midst of the uninterrupted training."""

    def once() -> None:
        del vars(noise)["reset"]

    vars(noise)["reset"] = once

"""How a training process ends: exit status and one line for what can be foreseen, a traceback for the rest."""

import logging
from typing import NoReturn

from checkpoints.checkpoint import CheckpointError
from checkpoints.writer import SaveError
from config.schema import ConfigError
from dataset.store import DatasetError
from learning.guards import NonFiniteError
from training.events import Preempted
from utils.distributed import SAID_BY_FIRST_RANK
from utils.faults import of_machine
from utils.launch import is_one_of_several, rank_of_environment
from utils.run_status import EXIT_STATUS, USER_ERROR
from utils.together import end_process, leave

log = logging.getLogger(__name__)
USER_FAULTS = (ConfigError, DatasetError, CheckpointError)
OF_ALL_RANKS = {Preempted: EXIT_STATUS["preempted"], NonFiniteError: EXIT_STATUS["non-finite"]}


def leave_for(error: Exception) -> None:
    """End the process for an error, as one of several ranks without waiting for the others; returns where nothing can
    be said of the error and there is no other rank."""
    if isinstance(error, USER_FAULTS):
        leave(USER_ERROR, error)
    for kind, status in OF_ALL_RANKS.items():
        if isinstance(error, kind):
            leave_as_one(status, error)
    if isinstance(error, SaveError):
        leave(EXIT_STATUS["failed"], error)
    if (said := of_machine(error)) is not None:
        leave(EXIT_STATUS["failed"], RuntimeError(said))
    if is_one_of_several():
        log.error("rank %d failed", rank_of_environment(), exc_info=error)
        end_process(EXIT_STATUS["failed"])


def leave_as_one(status: int, error: Exception) -> NoReturn:
    """End the process for an error that every rank has; rank 0 says it."""
    if rank_of_environment():
        error.add_note(SAID_BY_FIRST_RANK)
    leave(status, error, "stopped" if isinstance(error, Preempted) else "error")

"""A job's data: what is known of it before anything is rented, and how nodes come by it."""

from __future__ import annotations

import functools

from runtime.control.data_set import DataFile, DataSet
from runtime.control.fleet.delivery import Delivery, WithData
from runtime.control.fleet.deploy import AgentStart
from runtime.control.job.job import LaunchRequest
from runtime.control.job.objects import links_to
from runtime.control.job.recorder import Recorder
from runtime.planning.errors import InputError

# The rest of a rented disk is the system's, the driver's and torch's.
_SHARE_OF_DISK = 0.5


def data_of(request: LaunchRequest, here: bool) -> DataSet | None:
    """What nodes must be brought; None where they have it: files of this machine where they are `here`, too.

    Raises:
        InputError: a file cannot be read any more, or rented disks are too small for the data.
    """
    if request.objects:
        data = DataSet(tuple(DataFile(**row) for row in request.objects))
    elif request.corpus and not here:
        try:
            data = DataSet.of_paths(request.corpus)
        except OSError as error:
            raise InputError(f"--data: {error.filename}: cannot be read: {error.strerror}") from error
    else:
        return None
    disk_gb = request.fleet.get("disk_gb")
    if disk_gb is not None and data.size_bytes > _SHARE_OF_DISK * disk_gb * 1e9:
        raise InputError(
            f"--data: {data.size_bytes / 1e9:.1f} GB are more than half of a node's disk: set disk_gb in the "
            f"fleet's file to {int(data.size_bytes / _SHARE_OF_DISK / 1e9) + 1} or more, not {disk_gb}"
        )
    return data


def sent_before(start: AgentStart | None, data: DataSet | None, recorder: Recorder) -> AgentStart | None:
    """How agents start on nodes that have been brought the data."""
    if data is None:
        return start
    tell = functools.partial(recorder.event, "data")
    return WithData(Delivery(data, tell, lambda: recorder.training, lambda: links_to(data)), start)

"""A worker's own part, without a process: what it says of errors, and that one image's trouble stays its own."""

import errno
import pickle
import tempfile

import pytest

from dipengine.errors import DeviceFailed, FitError, FormatError, InputError, OutOfMemory, OutputError
from dipengine.images import check_target
from dipengine.scheduling.jobs import Request
from dipengine.scheduling.messages import Failed, Start, Stop, Threads
from dipengine.scheduling.work import TimeLimit
from dipengine.scheduling.worker import Worker, WorkerOptions, failure_of

START = Start(3, 2, "/in/a.png", Request(), None, None, None, None)


class Strange(Exception):
    """Of a library, and with an argument that pickling would not give back."""

    def __init__(self, one, two):
        super().__init__("odd")


def disk_full():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise OutputError("It cannot be written.") from error
    except OutputError as error:
        return error


def name_too_long():
    try:
        check_target("/tmp/" + "a" * 300)
    except OutputError as error:
        return error


def hidden_disk_full():
    """As safetensors says it, through the writing of a file."""
    from safetensors import SafetensorError

    from dipengine.images import atomic_path

    with tempfile.TemporaryDirectory() as folder:
        try:
            with atomic_path(f"{folder}/a.safetensors"):
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        except OutputError as error:
            return error


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (InputError("It is no image."), "final", "It is no image."),
        (FitError("It diverges."), "final", "It diverges."),
        (TimeLimit("Too slow."), "time", "Too slow."),
        (OutOfMemory("It needs 5 TB."), "memory", "It needs 5 TB."),
        (MemoryError(), "memory", "The memory is used up."),
        (OutputError("Not there."), "accident", "Not there."),
        (disk_full(), "disk", "It cannot be written."),
        (hidden_disk_full(), "disk", None),
        (name_too_long(), "final", None),
        (FormatError("It has an alpha channel."), "final", "It has an alpha channel."),
        (DeviceFailed("An iteration failed: misaligned address."), "accident", "An iteration failed: misaligned address."),
        (Strange(1, 2), "accident", "Strange: odd"),
    ],
)
def test_what_is_said_of_an_error(error, kind, said):
    failed = failure_of(START, error)
    assert (failed.job, failed.attempt, failed.kind, failed.error) == (3, 2, kind, said or str(error))
    assert pickle.loads(pickle.dumps(failed)).error == failed.error  # whatever it was, it reaches the driver
    assert (failed.cause is error) == isinstance(error, (InputError, FitError, OutOfMemory, OutputError, DeviceFailed))


class Connection:
    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)


class Fitting:
    """Work of which every step can be made to fail."""

    def __init__(self, job, failing=None):
        self.start = Start(job, 1, "/in/a.png", Request(), None, None, None, None)
        self.failing, self.saved, self.threads, self.closed = failing, 0, 1, False

    def close(self):
        self.closed = True

    def save(self):
        if self.failing == "save":
            raise OutputError("No checkpoint can be put there.")
        self.saved += 1

    def set_threads(self, count):
        if isinstance(self.failing, Exception):
            raise self.failing
        if self.failing == "threads":
            raise OutOfMemory("There is no room for the larger plan.")
        self.threads = count


def worker_with(*works):
    worker = Worker(Connection(), WorkerOptions())
    worker._running = {work.start.job: work for work in works}
    return worker


def test_a_checkpoint_that_cannot_be_written_does_not_keep_the_others_from_theirs():
    first, second = Fitting(1, "save"), Fitting(2)
    worker = worker_with(first, second)
    worker._inbox.put(Stop())
    worker._listen = lambda: None
    worker.run()
    assert second.saved == 1
    assert [message.job for message in worker._connection.sent if isinstance(message, Failed)] == [1]


def test_a_fit_that_has_no_room_for_more_threads_fails_alone():
    first, second = Fitting(1, "threads"), Fitting(2)
    worker = worker_with(first, second)
    worker._take(Threads(4))
    assert second.threads == 4 and list(worker._running) == [2] and first.closed
    assert [(message.job, message.kind) for message in worker._connection.sent] == [(1, "memory")]


@pytest.mark.parametrize("error", [DeviceFailed("An iteration failed: misaligned address."), RuntimeError("CUDA error: unknown error")])
def test_a_worker_whose_device_failed_leaves_without_touching_it_again(error):
    first, second = Fitting(1, error), Fitting(2)
    worker = worker_with(first, second)
    worker._inbox.put(Threads(4))
    worker._listen = lambda: None
    worker.run()  # ends by itself
    assert worker.spent and second.saved == 0
    failed = [message for message in worker._connection.sent if isinstance(message, Failed)]
    assert [(message.job, message.kind) for message in failed] == [(1, "accident")]

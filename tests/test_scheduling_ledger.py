"""The ledger: what is committed is there, whoever dies; one engine at a time; changes of what is asked are noticed."""

import multiprocessing
import os
import sqlite3
import subprocess
import sys

import pytest

from dipengine.errors import InputError, OutputError
from dipengine.fitting.settings import Settings
from dipengine.scheduling import ledger as ledger_module
from dipengine.scheduling.facts import FileFacts
from dipengine.scheduling.jobs import Job, Request
from dipengine.scheduling.ledger import FRAME_BEFORE, INPUT, REQUEST, Ledger

BLIND = Request()


def jobs(count, request=BLIND):
    return [Job(f"/in/{i}.png", f"{i}.png", request) for i in range(count)]


def entered(ledger, given):
    with ledger.transaction():
        return list(ledger.enter(given))


def test_jobs_keep_their_rows(tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite")
    rows = [row for row, _ in entered(ledger, jobs(3))]
    assert [row.id for row in rows] == [1, 2, 3]
    with ledger.transaction():
        rows[0].attempts = 1
        ledger.started(rows[0], "{}", None)
        ledger.done(rows[0], [FileFacts("/in/0.png", 3, 4, "ab")], {"seconds": 2.0, "psnr": 30.0})
        rows[1].attempts = 1
        ledger.started(rows[1], "{}", None)
        ledger.failed(rows[1], "It is empty.")
    ledger.close()
    ledger = Ledger(tmp_path / "l.sqlite")
    again = entered(ledger, jobs(4))
    assert [(row.id, row.state, row.attempts, changed) for row, changed in again] == [
        (1, "done", 1, ""), (2, "failed", 1, ""), (3, "queued", 0, ""), (4, "queued", 0, ""),
    ]
    assert again[0][0].files == '[["/in/0.png", 3, 4, "ab"]]'
    assert ledger.error(again[1][0]) == "It is empty."
    assert ledger.counts() == {"done": 1, "failed": 1, "queued": 2}
    assert [row["output"] for row in ledger.rows()] == ["0.png", "1.png", "2.png", "3.png"]


@pytest.mark.parametrize(
    ("request_", "changed"),
    [
        (Request(), False),
        (Request(settings=Settings(threads=7, device="cpu")), False),  # where it runs is not what is asked
        (Request(settings=Settings(seed=1)), True),
        (Request(options={"sigma": 25.0}), True),
        (Request(options={"sigma": None}), False),
        (Request("dejpeg"), True),
        (Request(tile="256"), True),
        (Request(max_pixels=5), False),
    ],
)
def test_what_is_asked_otherwise_is_noticed(tmp_path, request_, changed):
    ledger = Ledger(tmp_path / "l.sqlite")
    entered(ledger, jobs(1))
    assert [found for _, found in entered(ledger, jobs(1, request_))] == [REQUEST if changed else ""]


def test_another_input_and_another_frame_before_are_told_apart(tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite")
    entered(ledger, jobs(2))
    others = [Job("/other/0.png", "0.png", BLIND), Job("/in/1.png", "1.png", BLIND, after="0.png")]
    assert [found for _, found in entered(ledger, others)] == [INPUT, FRAME_BEFORE]


def test_what_the_first_start_has_fixed_stays_unless_it_is_another_job(tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite")
    (row, _), = entered(ledger, jobs(1))
    with ledger.transaction():
        row.attempts = 1
        ledger.started(row, '{"device": "cpu"}', None)
        ledger.failed(row, "It took too long.")
        ledger.requeue(row, "once", anew=False)
        ledger.requeue(row, "and again", anew=False)
    line = next(ledger.rows())
    assert (line["state"], line["environment"], line["note"]) == ("queued", '{"device": "cpu"}', "once; and again")
    assert row.environment == '{"device": "cpu"}'
    with ledger.transaction():
        ledger.requeue(row, REQUEST)
    line = next(ledger.rows())
    assert (line["environment"], line["note"], row.environment) == (None, REQUEST, None)


def test_a_ledger_that_is_damaged_behind_its_first_pages(tmp_path):
    path = tmp_path / "l.sqlite"
    ledger = Ledger(path)
    entered(ledger, [Job(f"/in/{i}.png", f"{i}.png", BLIND) for i in range(2000)])
    ledger.close()
    bytes_ = bytearray(path.read_bytes())
    middle = len(bytes_) // 2
    bytes_[middle : middle + 9000] = b"\xa5" * 9000
    path.write_bytes(bytes_)
    with pytest.raises(InputError, match="damaged") as caught:
        Ledger(path)
    assert "\n" not in str(caught.value)


def test_a_ledger_that_another_program_has_locked(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger._db.execute("PRAGMA busy_timeout=10")
    other = sqlite3.connect(tmp_path / "l.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(InputError, match="locked by another program"):
        entered(ledger, jobs(1))


def test_requests_survive_json():
    request = Request(
        "superres", {"factor": 4}, Settings(channels=(16, 32), upsample=("nearest",), value_range=(0.0, 2.5), iterations=7),
        truth="/t.png", keep_generator=True,
    )
    assert Request.from_dict(__import__("json").loads(request.json)) == request
    assert Request.from_dict(__import__("json").loads(request.json)).digest == request.digest


def test_a_transaction_is_all_or_nothing(tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite")
    rows = [row for row, _ in entered(ledger, jobs(2))]
    with pytest.raises(KeyboardInterrupt), ledger.transaction():
        ledger.failed(rows[0], "x")
        raise KeyboardInterrupt
    assert ledger.counts() == {"queued": 2}


def test_committed_means_on_the_disk(tmp_path):
    """A process that is killed right after a commit leaves all of it."""
    script = (
        "import os, signal, sys\n"
        "from dipengine.scheduling.jobs import Job, Request\n"
        "from dipengine.scheduling.ledger import Ledger\n"
        "ledger = Ledger(sys.argv[1])\n"
        "with ledger.transaction():\n"
        "    list(ledger.enter([Job(f'/in/{i}.png', f'{i}.png', Request()) for i in range(500)]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "l.sqlite")])
    assert ended.returncode == -9
    assert Ledger(tmp_path / "l.sqlite").counts() == {"queued": 500}


def test_wal_and_full_synchronisation(tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite")
    assert ledger._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert ledger._db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_one_engine_at_a_time(tmp_path):
    first = Ledger(tmp_path / "l.sqlite")
    with pytest.raises(InputError, match=f"Another engine works on the ledger .*process {os.getpid()}"):
        Ledger(tmp_path / "l.sqlite")
    first.close()
    Ledger(tmp_path / "l.sqlite").close()


def _hold(path, ready, go_on):
    held = Ledger(path)
    ready.set()
    go_on.wait()
    held.close()


def test_another_process_is_refused_until_it_dies(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, go_on = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "l.sqlite", ready, go_on))
    other.start()
    assert ready.wait(60)
    with pytest.raises(InputError, match="Another engine"):
        Ledger(tmp_path / "l.sqlite")
    other.kill()
    other.join()
    Ledger(tmp_path / "l.sqlite").close()


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda path: path.write_bytes(b"x" * 5000), "no ledger of dipengine"),
        (lambda path: _foreign(path), "no ledger of dipengine"),
        (lambda path: _newer(path), "use the version of dipengine that wrote it"),
    ],
)
def test_files_that_are_no_ledger_of_this_version(tmp_path, prepare, said):
    path = tmp_path / "l.sqlite"
    prepare(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=said):
        Ledger(path)
    assert path.read_bytes() == before
    with pytest.raises(InputError, match=said):  # and its lock is given back
        Ledger(path)


def _foreign(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE pets (name TEXT)")
    db.close()


def _newer(path):
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another --ledger"):
        Ledger(tmp_path / "file" / "l.sqlite")


def test_network_disks_are_refused(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    opened = open
    monkeypatch.setattr(
        ledger_module, "open", lambda path, *more, **named: opened(mounts if path == "/proc/self/mounts" else path, *more, **named),
        raising=False,
    )
    with pytest.raises(InputError, match="network's disk .nfs4."):
        Ledger(tmp_path / "l.sqlite")


def test_a_disk_that_is_full(tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger._db.execute("PRAGMA max_page_count=12")
    with pytest.raises(OutputError, match="cannot be written .*full.*nothing that was done is lost"):
        entered(ledger, jobs(5000))
    assert ledger.counts() == {}

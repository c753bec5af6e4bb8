"""Batches whose engine or workers are killed, stopped, hang or are doubled: nothing is lost, and the bits are the same."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dipengine.scheduling.ledger import Ledger
from dipengine.scheduling.places import Places
from batches import LONG, OUTPUTS, alive, batch, checkpoints, everything, folder, images, picture, rows, start, wait_until, workers


@pytest.mark.slow
def test_killed_at_random_moments(folder):
    """kill -9 of the engine or of a worker, again and again: the same bits, no job lost, nothing half-written."""
    for i in range(12):
        picture(folder / "in" / f"more{i}.png", 16 + i, 40 - i, seed=i)
    fit = ["--channels", "8", "--levels", "2", "--iterations", "250", "--stop", "fixed"]
    assert start(out="reference", fit=fit).wait() == 1
    rng = np.random.default_rng(0)
    for turn in range(8):
        process = start("--checkpoint-every", 0.1, fit=fit)
        time.sleep(rng.uniform(0.3, 2.2))
        if turn % 3 == 2 and workers(process):
            os.kill(int(rng.choice(workers(process))), signal.SIGKILL)
            time.sleep(rng.uniform(0, 1))
        process.kill()
        process.communicate()
    process = start("--checkpoint-every", 0.1, fit=fit)
    assert process.wait() == 1, process.communicate()
    assert images() == images("reference") and len(images()) == 16
    assert everything() == everything("reference")
    states = [row["state"] for row in rows().values()]
    assert (states.count("done"), states.count("failed")) == (16, 2)
    assert max(row["attempts"] for row in rows().values()) > 1


def test_ctrl_c_once_checkpoints_and_stops(folder):
    fit = ["--channels", "8", "--levels", "2", "--iterations", "8000", "--stop", "fixed"]
    process = start("--checkpoint-every", 0.5, fit=fit, source="in/deep")  # two images, one a worker
    wait_until(checkpoints)
    pids = workers(process)
    sent = time.time()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "run the same command again" in said
    assert not any(map(alive, pids))
    assert any(path.stat().st_mtime > sent for path in checkpoints())  # where the fits were, not where the last one was due
    again = start(fit=fit, source="in/deep")
    again.communicate()
    assert again.returncode == 0
    assert any(json.loads(Path(f"out/{name}.json").read_text())["resumed_at"] for name in images())
    assert start(out="reference", fit=fit, source="in/deep").wait() == 0
    assert images() == images("reference") and len(images()) == 2


def test_ctrl_c_twice_stops_now(folder):
    fit = ["--channels", "128", "--iterations", "100000", "--stop", "fixed"]
    picture(folder / "big" / "a.png", 400, 400)
    process = start(fit=fit, source="big")
    wait_until(lambda: len(workers(process)) > 0)
    time.sleep(2.5)
    pids = workers(process)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "interrupted: run the same command again to go on." in said
    assert time.monotonic() - begin < 10
    wait_until(lambda: not any(map(alive, pids)), 10)
    assert rows()["a.png"]["state"] == "queued"


def test_workers_die_with_their_driver(folder):
    process = start(fit=LONG)
    wait_until(lambda: len(workers(process)) > 0)
    time.sleep(1.0)
    pids = workers(process)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(alive, pids)), 10)


def test_a_worker_that_says_nothing_any_more_is_replaced(folder, monkeypatch):
    from dipengine.scheduling import pool

    monkeypatch.setattr(pool, "_SILENCE", 7.0)
    stopped = []

    def stop_one():
        wait_until(lambda: len(checkpoints()) == 2)
        stopped.append(int(subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "scheduling.worker"], capture_output=True,
                                          text=True).stdout.split()[0]))
        os.kill(stopped[0], signal.SIGSTOP)

    thread = threading.Thread(target=stop_one)
    thread.start()
    Path("in/jobs.csv").write_text("input\na.png\nb.png\n")
    assert batch("--checkpoint-every", "0.1", source="in/jobs.csv", fit=[*LONG[:4], "--iterations", "9000", *LONG[-2:]]) == 0
    thread.join()
    assert not alive(stopped[0])
    assert sorted(row["attempts"] for row in rows().values()) == [1, 2]


def test_a_dead_worker_is_replaced_and_its_job_goes_on_from_its_checkpoint(folder):
    process = start("--checkpoint-every", 0.1, fit=LONG)
    wait_until(lambda: checkpoints())
    for pid in workers(process):
        os.kill(pid, signal.SIGKILL)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "4 of 6 images done" in said
    assert any(json.loads(Path(f"out/{name}.json").read_text())["resumed_at"] for name in OUTPUTS)


def test_python_files_beside_the_pictures_are_nobodys_modules(folder):
    Path("queue.py").write_text("raise RuntimeError('imported by a worker')\n")
    assert batch(source="in/a.png") == 0


def test_a_second_engine_is_refused(folder, capsys):
    held = Ledger("out/.dipengine/ledger.sqlite")
    assert batch() == 2
    assert "Another engine works on the ledger" in capsys.readouterr().err
    held.close()
    assert not images()


def test_a_second_engine_with_a_ledger_of_its_own_is_refused_too(folder, capsys):
    """Both would stage, publish and tidy in one folder."""
    held = Places("out")
    held.prepare()
    assert batch("--ledger", "other.sqlite") == 2
    assert "Another engine works on the folder out (process" in capsys.readouterr().err
    assert Path("out/.dipengine/staging").exists()  # what the first one works with is left alone
    held.leave()
    assert batch("--ledger", "other.sqlite") == 1  # two files are broken
    assert set(images()) == OUTPUTS


def test_a_limit_of_time_keeps_what_was_reached(folder, capsys):
    assert batch("--limit-time", "0.2", fit=LONG) == 1
    said = capsys.readouterr().err
    assert "raise --limit-time" in said and not images()
    assert checkpoints()
    assert batch("--retry-failed", fit=LONG) == 1
    assert json.loads(Path("out/a.png.json").read_text())["resumed_at"] > 0
    assert set(images()) == OUTPUTS and not checkpoints()


@pytest.mark.slow
def test_tiles_survive_kill_9(folder):
    fit = ["--channels", "8", "--levels", "2", "--iterations", "400", "--stop", "fixed"]
    more = ["--tile", "16,4", "--checkpoint-every", "0.1"]
    picture(folder / "large" / "a.png", 60, 70)
    assert start(*more, out="reference", fit=fit, source="large").wait() == 0
    for tiles in (0, 3, 7):
        process = start(*more, fit=fit, source="large")
        wait_until(lambda: len(list(Path("out").glob(".dipengine/tiles/1/tile_*.npy"))) > tiles)
        process.kill()
        process.communicate()
    process = start(*more, fit=fit, source="large")
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert images() == images("reference") and everything() == everything("reference")
    assert rows()["a.png"]["attempts"] == 4

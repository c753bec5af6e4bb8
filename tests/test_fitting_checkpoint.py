"""Checkpoint files: what is read back, what is refused in one sentence, and fits that a kill interrupts at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dipengine
from conftest import synthetic_picture
from dipengine.cli.main import main
from dipengine.errors import InputError, OutputError
from dipengine.export.generator_file import FittedGenerator
from dipengine.fitting import checkpoint
from dipengine.fitting.checkpoint import Keeper, read_checkpoint, take_up, write_checkpoint
from dipengine.fitting.device import Placement
from dipengine.fitting.run import FitRun
from dipengine.generators.architecture import Hourglass
from dipengine.images import Image, write_image
from dipengine.images.atomic import atomic_path, remove_leftovers
from dipengine.kernels import backend
from dipengine.tasks.base import Problem, Recipe

pytestmark = pytest.mark.skipif(not backend.native_available(), reason="needs the native core")

SMALL = Hourglass.regular(levels=2, channels_down=8, channels_up=8, channels_skip=4, upsample="nearest", input_depth=8)
RECIPE = Recipe(SMALL, iterations=60, average_decay=0.9, average_warm_up=True)
TARGET = synthetic_picture(24, 30).astype(np.float32)
OWNER = {"task": "denoise", "input": "abc", "pair": (1, 2)}
QUICK = ["--channels", "8", "--levels", "2", "--threads", "1", "--stop", "fixed", "--precision", "fp32", "--quiet"]


def start(seed=3) -> FitRun:
    problem = Problem("denoise", TARGET, TARGET.shape[:2], RECIPE)
    return FitRun(problem, RECIPE, stop="auto", seed=seed, placement=Placement("cpu", "fp32", "native", 1))


@pytest.fixture
def path(tmp_path):
    """A checkpoint of iteration 25."""
    run = start()
    run.advance(25)
    write_checkpoint(tmp_path / "c.safetensors", run, OWNER)
    return tmp_path / "c.safetensors"


@pytest.fixture
def noisy_file(tmp_path, noisy):
    write_image(tmp_path / "noisy.png", noisy, Image(noisy))
    return tmp_path / "noisy.png"


def test_a_checkpoint_goes_on_with_the_same_bits(path):
    whole, other = start(), start()
    take_up(path, other, OWNER)
    assert other.iteration == 25
    whole.advance(60), other.advance(60)
    assert np.array_equal(other.outcome().image, whole.outcome().image)
    assert other.outcome().history == whole.outcome().history


def test_a_checkpoint_is_plain_safetensors(path):
    saved = read_checkpoint(path)
    assert load_file(path).keys() == saved.tensors.keys()
    assert {"format", "version", "owner", "settings", "where", "iteration", "generator", "code", "canvas"} <= set(saved.about)
    run = start()
    run.advance(25)
    assert all(np.array_equal(saved.tensors["parameters/" + name], value) for name, value in run.fit.weights().items())


def test_writing_replaces_the_file_whole_or_not_at_all(path, monkeypatch):
    before = path.read_bytes()
    run = start()
    run.advance(3)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            write_checkpoint(path, run, OWNER)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]
    write_checkpoint(path, run, OWNER)
    assert read_checkpoint(path).about["iteration"] == 3


def test_writing_makes_no_file_whose_name_nobody_knows(path, monkeypatch):
    """safetensors' save_file writes by way of a temporary file of its own, which would stay behind after a kill -9."""
    for name in ("save_file", "serialize_file"):
        monkeypatch.setattr(f"safetensors.numpy.{name}", None)
    run = start()
    run.advance(3)
    write_checkpoint(path, run, OWNER)
    assert read_checkpoint(path).about["iteration"] == 3


def rewritten(path, change):
    """The file with its metadata changed, and its digest with it."""
    saved = read_checkpoint(path)
    about = dict(saved.about)
    change(about)
    about["sha256"] = checkpoint._digest(saved.tensors, about)
    save_file(saved.tensors, path, metadata={checkpoint.KEY: json.dumps(about)})


def one_sentence(error) -> bool:
    text = str(error.value)
    return text.endswith(".") and ". " not in text and "\n" not in text


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "cannot be read as a checkpoint"),
        (b"\x80\x04K\x01.", "cannot be read as a checkpoint"),
        (b"not a checkpoint at all, but longer than eight bytes", "cannot be read as a checkpoint"),
        (struct.pack("<Q", 2) + b"{}", "is no checkpoint of dipengine"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, sentence):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=sentence) as refused:
        take_up(tmp_path / "x.safetensors", start(), OWNER)
    assert one_sentence(refused)


def test_missing_and_unreadable_places_are_refused(tmp_path):
    for place in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(InputError, match="There is no checkpoint") as refused:
            read_checkpoint(place)
        assert one_sentence(refused)


def test_truncated_files_are_refused(path):
    whole = path.read_bytes()
    for length in (4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cannot be read as a checkpoint") as refused:
            take_up(path, start(), OWNER)
        assert one_sentence(refused)


def test_damaged_files_are_refused_wherever_the_damage_lies(path):
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    text = whole.index(b'\\"seconds\\": ') + 15
    for place in (text, header, header + 1000, (header + len(whole)) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] = ord("7") if damaged[place] != ord("7") and place == text else damaged[place] ^ 1
        path.write_bytes(damaged)
        run = start()
        with pytest.raises(InputError, match="damaged|cannot be read") as refused:
            take_up(path, run, OWNER)
        assert one_sentence(refused) and run.iteration == 0


def test_newer_files_are_refused(path):
    rewritten(path, lambda about: about.update(format=2, version="9.0"))
    with pytest.raises(InputError, match=r"has format 2 and this version reads 1; .*\(9.0\)") as refused:
        take_up(path, start(), OWNER)
    assert refused.value.args[0].count(". ") == 0


@pytest.mark.parametrize("owner", [{**OWNER, "input": "abd"}, {**OWNER, "task": "dejpeg"}, None, {**OWNER, "more": 1}])
def test_another_owners_file_is_refused(path, owner):
    run = start()
    with pytest.raises(InputError, match="of another image or other parameters") as refused:
        take_up(path, run, owner)
    assert one_sentence(refused) and str(path) in str(refused.value) and run.iteration == 0


def test_other_settings_and_another_build_are_refused_by_the_files_name(path):
    with pytest.raises(InputError, match="of another image or other parameters") as refused:
        take_up(path, start(seed=4), OWNER)
    assert one_sentence(refused) and str(path) in str(refused.value)
    rewritten(path, lambda about: about["where"].update(build="0.0.1+abc"))
    with pytest.raises(InputError, match=r"is of engine 0.0.1\+abc and this one is") as refused:
        take_up(path, start(), OWNER)
    assert str(path) in str(refused.value)


def test_a_keeper_writes_now_and_then_and_takes_up(tmp_path):
    path, run = tmp_path / "c.safetensors", start()
    seen = []
    keeper = Keeper(path, OWNER, every=0)
    assert not keeper.take_up(run)
    keeper.advance(run, lambda report: seen.append(report.iteration) or report.iteration == 20)
    saved = read_checkpoint(path).about["iteration"]
    assert seen == list(range(1, 21)) and saved == 19  # after each but the last, which ended the fit
    again = start()
    assert Keeper(path, OWNER).take_up(again) and again.iteration == 19
    keeper.remove()
    keeper.remove()
    assert os.listdir(tmp_path) == []


def test_a_keeper_that_is_not_due_writes_nothing_but_at_ctrl_c(tmp_path):
    path, run = tmp_path / "c.safetensors", start()

    def interrupt(report):
        if report.iteration == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Keeper(path, OWNER).advance(run, interrupt)
    assert read_checkpoint(path).about["iteration"] == run.iteration == 13


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_fit_goes_on(tmp_path):
    folder = tmp_path / "gone"
    said = []
    run = start()
    Keeper(folder / "c.safetensors", OWNER, every=0, on_problem=said.append).advance(run)
    assert run.finished and len(said) == run.iteration - 1 and "cannot be written" in said[0]
    with pytest.raises(InputError, match="0 or more"):
        Keeper(folder, OWNER, every=float("nan"))


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        with atomic_path(path) as beside:
            (tmp_path / beside.name.replace(beside.name.split(".")[2], "0123456789ab")).write_bytes(b"half")
            raise KeyboardInterrupt
    others = ["c.safetensors", ".cc.0123456789ab.safetensors", ".c.0123456789ab.png", ".c.x.safetensors"]
    for name in others:
        (tmp_path / name).write_bytes(b"")
    assert len(os.listdir(tmp_path)) == 5
    remove_leftovers(path)
    assert sorted(os.listdir(tmp_path)) == sorted(others)


# ---- Python and the command line ------------------------------------------------------------------------------------

COMMON = dict(channels=8, levels=2, threads=1, iterations=40, stop="fixed", precision="fp32")


def test_python_goes_on_from_a_checkpoint(tmp_path, noisy):
    path = tmp_path / "c.safetensors"

    def interrupt(report):
        if report.iteration == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dipengine.denoise(noisy, checkpoint=path, progress=interrupt, **COMMON)
    seen = []
    result = dipengine.denoise(noisy, checkpoint=path, progress=lambda report: seen.append(report.iteration) or False, **COMMON)
    expected = dipengine.denoise(noisy, **COMMON)
    assert np.array_equal(result.image, expected.image) and result.history == expected.history
    assert (result.record["resumed_at"], seen[0]) == (17, 18) and not path.exists()


def test_python_refuses_the_checkpoint_of_another_call(tmp_path, noisy):
    path = tmp_path / "c.safetensors"

    def interrupt(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dipengine.denoise(noisy, checkpoint=path, progress=interrupt, **COMMON)
    before = path.read_bytes()
    for image, more in ((noisy[:, ::-1], {}), (noisy, {"sigma": 20}), (noisy, {"seed": 1}), (noisy, {"truth": noisy})):
        with pytest.raises(InputError, match="of another image or other parameters"):
            dipengine.denoise(np.ascontiguousarray(image), checkpoint=path, **COMMON, **more)
    with pytest.raises(InputError, match="precision"):
        dipengine.denoise(noisy, checkpoint=path, **{**COMMON, "precision": "bf16"})
    assert path.read_bytes() == before
    with pytest.raises(OutputError, match="does not exist"):
        dipengine.denoise(noisy, checkpoint=tmp_path / "no" / "c.safetensors", **COMMON)


def test_python_warns_where_no_checkpoint_can_be_written(tmp_path, noisy, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dipengine.denoise(noisy, checkpoint=tmp_path / "c.safetensors", checkpoint_every=0, **{**COMMON, "iterations": 3})
    assert any("No space left" in str(warning.message) for warning in caught)


def test_the_command_line_refuses_a_file_that_is_no_checkpoint(tmp_path, noisy_file, capsys):
    generator = tmp_path / "g.safetensors"
    words = ["denoise", str(noisy_file), "-o", str(tmp_path / "out.png"), "--iterations", "3", *QUICK]
    assert main([*words, "--generator", str(generator)]) == 0
    FittedGenerator.load(generator)
    os.unlink(tmp_path / "out.png")
    for file, sentence in (("g.safetensors", "is no checkpoint"), ("c.png", "should end in .safetensors")):
        assert main([*words, "--checkpoint", str(tmp_path / file)]) == 2
        assert sentence in capsys.readouterr().err
    assert main([*words, "--generator", str(tmp_path / "x.safetensors"), "--checkpoint", str(tmp_path / "x.safetensors")]) == 2
    assert "named twice" in capsys.readouterr().err
    assert main([*words, "--checkpoint", str(tmp_path / "c.safetensors"), "--checkpoint-every", "-1"]) == 2
    assert not (tmp_path / "out.png").exists()


def command(noisy_file, output, iterations, *more) -> list[str]:
    return [sys.executable, "-m", "dipengine", "denoise", str(noisy_file), "-o", str(output), "--iterations", str(iterations),
            *QUICK, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_ctrl_c_keeps_the_fit_beside_the_output(tmp_path, noisy_file, kernels):
    out, path = tmp_path / "out.png", tmp_path / "c.safetensors"
    words = command(noisy_file, out, 3000 if kernels == "native" else 400, "--checkpoint", str(path), "--kernels", kernels)
    words.remove("--quiet")
    process = subprocess.Popen([*words, "--checkpoint-every", "0.05"], stderr=subprocess.PIPE, text=True, env=environment())
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate()[1]
    assert process.returncode == 130 and "the same command goes on from there" in told
    assert out.exists() and path.exists()
    out.unlink()
    done = subprocess.run([*words, "--record", str(tmp_path / "r.json")], capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and "(taken up at " in done.stderr and not path.exists()
    assert json.loads((tmp_path / "r.json").read_text())["resumed_at"] > 0
    interrupted = out.read_bytes()
    subprocess.run(command(noisy_file, out, words[words.index("--iterations") + 1], "--kernels", kernels), check=True,
                   env=environment())
    assert out.read_bytes() == interrupted


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_a_fit_ends_with_the_same_bits(tmp_path, noisy_file, seed):
    """kill -9 of a real process, over and over, until one gets through; a checkpoint after every iteration."""
    out, path = tmp_path / "out.png", tmp_path / "c.safetensors"
    words = command(noisy_file, out, 300, "--checkpoint", str(path), "--checkpoint-every", "0", "--record",
                    str(tmp_path / "r.json"))
    moments, kills, reached = random.Random(seed), 0, 0
    while not out.exists() or kills < 5:
        process = subprocess.Popen(words, env=environment())
        begin = time.monotonic()
        # From before the checkpoint is read to some way into the fit; once there is one, however slow the machine starts.
        wait = moments.uniform(0.2, 1.2) if kills < 5 else 600
        while process.poll() is None and (time.monotonic() - begin < wait or kills == 2 and not path.exists()):
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if path.exists():
            iteration = read_checkpoint(path).about["iteration"]
            assert iteration >= reached
            reached = iteration
        elif out.exists():
            break
    assert kills and json.loads((tmp_path / "r.json").read_text())["resumed_at"] == reached > 0
    assert sorted(os.listdir(tmp_path)) == ["noisy.png", "out.png", "r.json"]
    subprocess.run(command(noisy_file, tmp_path / "whole.png", 300), check=True, env=environment())
    assert out.read_bytes() == (tmp_path / "whole.png").read_bytes()

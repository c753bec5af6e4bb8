"""The command line as a user meets it: outputs, records, exit statuses, one-sentence errors, nothing half-written."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dipengine.cli import doctor
from dipengine.cli.main import main
from dipengine.images import Image, read_image, write_image
from dipengine.kernels import backend

QUICK = ["--channels", "8", "--levels", "2", "--iterations", "12", "--stop", "fixed", "--threads", "1", "--quiet"]


@pytest.fixture
def folder(tmp_path, noisy, picture):
    """noisy.png, truth.png and mask.png (white = known)."""
    mask = np.full((*noisy.shape[:2], 1), 255, np.uint8)
    mask[10:20, 10:30] = 0
    for name, pixels in (("noisy", noisy), ("truth", picture), ("mask", mask)):
        write_image(tmp_path / f"{name}.png", pixels, Image(pixels))
    return tmp_path


def run(*arguments) -> int:
    """Exit status of the command line, whether argparse or dipengine ends it."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        return leaving.code


def files(folder) -> set[str]:
    return set(os.listdir(folder))


def test_denoise_writes_image_record_and_generator(folder, capsys):
    status = run("denoise", folder / "noisy.png", "-o", folder / "out.png", "--sigma", "25", "--truth",
                 folder / "truth.png", "--record", folder / "r.json", "--generator", folder / "g.safetensors", *QUICK)
    assert status == 0
    assert read_image(folder / "out.png").pixels.shape == read_image(folder / "noisy.png").pixels.shape
    record = json.loads((folder / "r.json").read_text())
    wanted = {
        "format", "task", "preset", "parameters", "value_map", "iterations", "stop_reason", "rollbacks", "seconds",
        "seconds_per_iteration", "loss", "psnr_input", "psnr", "ssim", "device", "precision", "kernels", "seed",
        "peak_memory_bytes", "version",
    }
    assert wanted <= set(record)
    assert record["input"]["sha256"] == read_image(folder / "noisy.png").sha256
    assert record["parameters"]["sigma"] == 25
    assert (folder / "g.safetensors").stat().st_size > 1000
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "verb, extra, shape",
    [
        ("dejpeg", [], (40, 52, 3)),
        ("superres", ["--factor", "2"], (80, 104, 3)),
        ("inpaint", ["--mask", "mask.png"], (40, 52, 3)),
        ("inpaint", ["--random-missing", "0.5"], (40, 52, 3)),
        ("inpaint", ["--mask", "mask.png", "--invert-mask", "--recipe", "text"], (40, 52, 3)),
        ("denoise", ["--noise", "poisson", "--gain", "0.2", "--mask", "mask.png"], (40, 52, 3)),
        ("denoise", ["--noise", "poisson-gaussian", "--gain", "1", "--read-noise", "2", "--data-term", "likelihood"],
         (40, 52, 3)),
        ("flash", ["--guide", "truth.png"], (40, 52, 3)),
        ("deblur", ["--kernel", "kernel.png", "--sigma", "25"], (40, 52, 3)),
        ("deblur", ["--kernel", "kernel.txt", "--noise", "poisson", "--gain", "0.2", "--mask", "mask.png", "--invert-mask"],
         (40, 52, 3)),
    ],
)
def test_every_task_from_the_command_line(folder, verb, extra, shape):
    kernel = np.array([[10, 20, 30, 20], [40, 80, 40, 20]], np.uint8)
    write_image(folder / "kernel.png", kernel[:, :, None], Image(kernel[:, :, None]))
    np.savetxt(folder / "kernel.txt", kernel)
    extra = [folder / word if word.endswith((".png", ".txt")) else word for word in extra]
    assert run(verb, folder / "noisy.png", "-o", folder / "out.tif", *extra, *QUICK) == 0
    assert read_image(folder / "out.tif").pixels.shape == shape


def test_the_truth_leaves_the_bytes_of_the_output_alone(folder):
    for name, extra in (("blind", []), ("seeing", ["--truth", folder / "truth.png"])):
        assert run("denoise", folder / "noisy.png", "-o", folder / f"{name}.png", *extra, *QUICK) == 0
    assert (folder / "blind.png").read_bytes() == (folder / "seeing.png").read_bytes()


def test_sixteen_bits_come_back_with_their_low_bits_alive(folder, picture):
    deep = (picture.astype(np.uint16) << 8) + np.arange(picture.size, dtype=np.uint16).reshape(picture.shape) % 256
    write_image(folder / "deep.png", deep, Image(deep))
    assert run("denoise", folder / "deep.png", "-o", folder / "out.png", *QUICK) == 0
    out = read_image(folder / "out.png").pixels
    assert out.dtype == np.uint16
    assert len(np.unique(out & 255)) > 200


def test_transparency_survives(folder, picture):
    alpha = np.full(picture.shape[:2], 255, np.uint8)
    alpha[:5] = 7
    write_image(folder / "a.png", picture, Image(picture), alpha=alpha)
    assert run("denoise", folder / "a.png", "-o", folder / "out.png", *QUICK) == 0
    np.testing.assert_array_equal(read_image(folder / "out.png").alpha, alpha)
    assert run("superres", folder / "a.png", "-o", folder / "big.png", "--factor", "2", *QUICK) == 0
    assert read_image(folder / "big.png").alpha.shape == (80, 104)


def test_inpainting_by_transparency_gives_an_opaque_image(folder, picture):
    alpha = np.full(picture.shape[:2], 255, np.uint8)
    alpha[5:15, 5:15] = 0
    write_image(folder / "a.png", picture, Image(picture), alpha=alpha)
    assert run("inpaint", folder / "a.png", "-o", folder / "out.png", *QUICK) == 0
    assert read_image(folder / "out.png").alpha is None
    assert run("inpaint", folder / "a.png", "-o", folder / "out.jpg", *QUICK) == 0


@pytest.mark.parametrize(
    "words, message",
    [
        (["denoise", "missing.png", "-o", "out.png"], "missing.png"),
        (["denoise", "empty.png", "-o", "out.png"], "empty"),
        (["denoise", "text.png", "-o", "out.png"], "text.png"),
        (["denoise", "cut.png", "-o", "out.png"], "cut.png"),
        (["denoise", ".", "-o", "out.png"], "folder"),
        (["denoise", "noisy.png", "-o", "nowhere/out.png"], "folder"),
        (["denoise", "noisy.png", "-o", "out.xyz"], "xyz"),
        (["denoise", "noisy.png", "-o", "out.png", "--sigma", "-3"], "sigma"),
        (["denoise", "noisy.png", "-o", "out.png", "--device", "cuda:9"], "cuda:9"),
        (["denoise", "noisy.png", "-o", "out.png", "--iterations", "0"], "iterations"),
        (["denoise", "noisy.png", "-o", "noisy.png"], "named twice"),
        (["denoise", "noisy.png", "-o", "out.png", "--record", "out.txt"], ".json"),
        (["denoise", "noisy.png", "-o", "out.png", "--record", "nowhere/r.json"], "folder"),
        (["denoise", "noisy.png", "-o", "out.png", "--max-pixels", "100"], "pixels"),
        (["denoise", "noisy.png", "-o", "out.png", "--max-pixels", "-1"], "max-pixels"),
        (["denoise", "noisy.png", "-o", "out.png", "--truth", "small.png"], "truth"),
        (["denoise", "noisy.png", "-o", "out.png", "--truth", "deep.png"], "uint16"),
        (["denoise", "noisy.png", "-o", "out.png", "--range", "5,5"], "range"),
        (["denoise", "noisy.png", "-o", "out.png", "--upsample", "cubic"], "nearest"),
        (["denoise", "noisy.png"], "-o"),
        (["superres", "noisy.png", "-o", "out.png", "--factor", "0"], "factor"),
        (["superres", "noisy.png", "-o", "out.png"], "factor"),
        (["inpaint", "noisy.png", "-o", "out.png"], "missing"),
        (["inpaint", "noisy.png", "-o", "out.png", "--mask", "small.png"], "small.png"),
        (["inpaint", "noisy.png", "-o", "out.png", "--mask", "black.png"], "known"),
        (["inpaint", "noisy.png", "-o", "out.png", "--random-missing", "0.5", "--invert-mask"], "there is none"),
        (["denoise", "noisy.png", "-o", "out.png", "--noise", "poisson"], "needs gain"),
        (["denoise", "noisy.png", "-o", "out.png", "--noise", "salt", "--gain", "1"], "salt"),
        (["denoise", "noisy.png", "-o", "out.png", "--noise", "poisson", "--gain", "1", "--offset", "9000"], "black level"),
        (["denoise", "noisy.png", "-o", "out.png", "--mask", "small.png"], "small.png"),
        (["flash", "noisy.png", "-o", "out.png"], "--guide"),
        (["flash", "noisy.png", "-o", "out.png", "--guide", "small.png"], "guide is 5x5"),
        (["flash", "noisy.png", "-o", "out.png", "--guide", "missing.png"], "missing.png"),
        (["flash", "noisy.png", "-o", "truth.png", "--guide", "truth.png"], "named twice"),
        (["deblur", "noisy.png", "-o", "out.png"], "--kernel"),
        (["deblur", "noisy.png", "-o", "out.png", "--kernel", "missing.txt"], "missing.txt"),
        (["deblur", "noisy.png", "-o", "out.png", "--kernel", "words.txt"], "matrix of numbers"),
        (["deblur", "noisy.png", "-o", "out.png", "--kernel", "ragged.csv"], "different length"),
        (["deblur", "noisy.png", "-o", "out.png", "--kernel", "pickled.npy"], ".npy"),
        (["deblur", "noisy.png", "-o", "out.png", "--kernel", "black.png"], "sum"),
        (["deblur", "noisy.png", "-o", "out.png", "--kernel", "noisy.png"], "coloured"),
        (["deblur", "noisy.png", "-o", "kernel.npy", "--kernel", "kernel.npy"], "kernel.npy"),
        (["custom", "noisy.png", "-o", "out.png"], "custom"),
        (["colourise", "noisy.png"], "colourise"),
        ([], "COMMAND"),
    ],
)
def test_wrong_use_is_one_sentence_status_two_and_nothing_written(folder, words, message, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("this is not a picture")
    (folder / "cut.png").write_bytes((folder / "noisy.png").read_bytes()[:700])
    for name, value in (("small", 255), ("black", 0)):
        pixels = np.full((40, 52, 1) if name == "black" else (5, 5, 1), value, np.uint8)
        write_image(folder / f"{name}.png", pixels, Image(pixels))
    deep = np.zeros((40, 52, 3), np.uint16)
    write_image(folder / "deep.png", deep, Image(deep))
    (folder / "words.txt").write_text("one two\nthree four\n")
    (folder / "ragged.csv").write_text("1,2,3\n4,5\n")
    np.save(folder / "pickled.npy", np.array([{"a": 1}], dtype=object))
    np.save(folder / "kernel.npy", np.ones((3, 3)))
    before = files(folder)
    restores = len(words) > 1 and words[0] not in ("colourise", "custom")
    assert run(*words, *(QUICK[:-1] if restores and "--iterations" not in words else [])) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert error.strip().splitlines()[-1].startswith("dipengine")
    assert files(folder) == before


def test_not_a_number_is_filled_in(folder):
    fits = pytest.importorskip("astropy.io.fits")
    tifffile = pytest.importorskip("tifffile")
    values = np.linspace(0, 100, 40 * 52, dtype=np.float32).reshape(40, 52)
    values[3, 4] = np.nan
    tifffile.imwrite(folder / "nan.tif", values)
    fits.writeto(folder / "nan.fits", values)
    known = np.isfinite(values)
    assert run("inpaint", folder / "nan.tif", "-o", folder / "out.tif", *QUICK) == 0
    filled = tifffile.imread(folder / "out.tif")
    np.testing.assert_array_equal(filled[known], values[known])
    assert np.isfinite(filled).all()
    kernel = folder / "kernel.txt"
    np.savetxt(kernel, np.ones((3, 3)))
    sensor = ["--noise", "poisson-gaussian", "--gain", "1", "--read-noise", "2", "--offset", "5"]
    for verb, *extra in (["denoise"], ["denoise", *sensor], ["denoise", *sensor, "--data-term", "likelihood"],
                         ["deblur", "--kernel", kernel, *sensor]):
        assert run(verb, folder / "nan.fits", "-o", folder / "out.fits", *extra, *QUICK) == 0
        restored = fits.getdata(folder / "out.fits")
        assert np.isfinite(restored).all() and (restored[known] != values[known]).any()


def test_a_black_level_may_be_negative_with_an_exponent(folder):
    assert run("denoise", folder / "noisy.png", "-o", folder / "out.png", "--noise", "poisson", "--gain", "1",
               "--offset", "-1.5e1", "--record", folder / "r.json", *QUICK) == 0
    assert json.loads((folder / "r.json").read_text())["parameters"]["offset"] == -15


def test_a_range_may_begin_with_a_minus(folder):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(folder / "float.tif", np.linspace(-40, 100, 40 * 52, dtype=np.float32).reshape(40, 52))
    assert run("denoise", folder / "float.tif", "-o", folder / "out.tif", "--range", "-50,100", "--record",
               folder / "r.json", *QUICK) == 0
    assert json.loads((folder / "r.json").read_text())["value_map"] == {"low": -50.0, "high": 100.0}


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_a_fit_does_not_need_anybody_to_listen(folder, stderr):
    words = [sys.executable, "-m", "dipengine", "denoise", "noisy.png", "-o", "out.png", *QUICK[:-1]]
    done = subprocess.run(["sh", "-c", f"{shlex.join(words)} {stderr}"], cwd=folder, timeout=120)
    assert done.returncode == 0
    assert read_image(folder / "out.png").pixels.shape == (40, 52, 3)


def test_a_reader_that_goes_away_gets_no_traceback(folder):
    command = [sys.executable, "-m", "dipengine", "doctor"]
    reading, writing = os.pipe()
    os.close(reading)
    gone = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=120)
    os.close(writing)
    assert gone.returncode == 128 + signal.SIGPIPE and gone.stderr == b""
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "No space left" in done.stderr


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_the_status_says_what_is_wrong_where_nobody_listens(folder, stderr):
    words = [sys.executable, "-m", "dipengine", "denoise", "gone.png", "-o", "out.png"]
    assert subprocess.run(["sh", "-c", f"{shlex.join(words)} {stderr}"], cwd=folder, timeout=120).returncode == 2


def test_what_is_done_is_done_where_nobody_listens(folder):
    denoise = ["denoise", "noisy.png", "-o", "out.png", "--channels", "8", "--levels", "1", "--iterations", "2", "--export", "out.onnx"]
    for words in (denoise, ["render", "out.onnx", "-o", "painted.png"], ["batch", "noisy.png", "-o", "batch", *denoise[4:10]]):
        command = shlex.join([sys.executable, "-m", "dipengine", *words])
        assert subprocess.run(["sh", "-c", f"{command} 2>/dev/full"], cwd=folder, timeout=120).returncode == 0, words
    assert all((folder / name).exists() for name in ("out.png", "out.onnx", "painted.png", "batch/noisy.png"))


def test_links_that_lead_in_circles_are_one_sentence(folder, capsys):
    (folder / "loop.png").symlink_to("loop.png")
    noisy, out, loop = folder / "noisy.png", folder / "out.png", folder / "loop.png"
    for words in (["denoise", loop, "-o", out], ["denoise", noisy, "-o", out, "--mask", loop], ["render", loop, "-o", out],
                  ["batch", folder, "-o", folder / "out", "--mask", loop, "--dry-run"], ["batch", loop, "-o", folder / "out"]):
        status = run(*words)
        error = capsys.readouterr().err
        assert status == (0 if "--dry-run" in words else 2) and len(error.splitlines()) == status // 2


def test_ctrl_c_while_modules_are_loaded_is_one_sentence(monkeypatch, capsys):
    light = subprocess.run([sys.executable, "-c", "import sys, dipengine.cli.main; print('numpy' in sys.modules)"],
                           capture_output=True, text=True, check=True)
    assert light.stdout.strip() == "False"  # what takes time is loaded where Ctrl-C is answered

    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("dipengine.cli.main.build_parser", interrupted)
    assert run("doctor") == 130
    assert "interrupted" in capsys.readouterr().err


def test_memory_that_runs_out_is_one_sentence(folder, capsys):
    status = run("denoise", folder / "noisy.png", "-o", folder / "out.png", "--channels", "1000000", *QUICK[2:])
    assert status == 1
    error = capsys.readouterr().err
    assert "memory" in error and len(error.strip().splitlines()) == 1
    assert not (folder / "out.png").exists()


def test_the_record_tells_masks_and_stop_rules_apart(folder):
    for name, extra in (("a", []), ("b", ["--invert-mask"]), ("c", ["--stop", "auto"])):
        assert run("inpaint", folder / "noisy.png", "-o", folder / f"{name}.png", "--mask", folder / "mask.png",
                   "--record", folder / f"{name}.json", *QUICK, *extra) == 0
    a, b, c = (json.loads((folder / f"{name}.json").read_text()) for name in "abc")
    assert a["input"]["known_sha256"] == c["input"]["known_sha256"] != b["input"]["known_sha256"]
    assert a["parameters"]["stop_rule"] is None
    assert c["parameters"]["stop_rule"]["patience"] > 0


def test_inpainting_says_that_it_stopped_by_pixels_held_out(folder, capsys):
    noisy = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)  # what no fit finds where it is not shown
    write_image(folder / "random.png", noisy, Image(noisy))
    assert run("inpaint", folder / "random.png", "-o", folder / "out.png", "--random-missing", "0.5", "--record", folder / "r.json",
               "--channels", "8", "--levels", "2", "--iterations", "1000") == 0
    assert "image of iteration" in (said := capsys.readouterr().err) and "stopped by pixels held out of the fit" in said
    record = json.loads((folder / "r.json").read_text())
    assert record["stop_reason"] == "held-out" and record["iterations"] == record["delivered_iteration"] < 1000
    assert 100 < record["parameters"]["held_out_pixels"] < 300  # a tenth of some 2048
    assert record["parameters"]["stop_rule"]["shown_for"] == 100 and record["parameters"]["stop_rule"]["patience"] == 100


def test_quiet_silences_progress_but_not_errors(folder, capfd):
    assert run("denoise", folder / "noisy.png", "-o", folder / "out.png", *QUICK) == 0
    captured = capfd.readouterr()
    assert captured.err == "" and captured.out == ""
    assert run("denoise", folder / "gone.png", "-o", folder / "out.png", *QUICK) == 2
    assert "gone.png" in capfd.readouterr().err


def test_ctrl_c_writes_what_there_is(folder):
    command = [sys.executable, "-m", "dipengine", "denoise", "noisy.png", "-o", "out.png", "--channels", "8", "--levels",
               "2", "--iterations", "1000000", "--threads", "1", "--record", "r.json", "--stop", "fixed"]
    # A shell's background jobs ignore the signal, and so would what they start.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, preexec_fn=heed)
    try:
        # The progress bar says when the fit has begun.
        seen = b""
        while b"loss=" not in seen:
            seen += os.read(process.stderr.fileno(), 4096)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert read_image(folder / "out.png").pixels.shape == (40, 52, 3)
    record = json.loads((folder / "r.json").read_text())
    assert record["stop_reason"] == "interrupted" and record["iterations"] > 0


def test_doctor_reports_and_names_remedies(capsys):
    status = run("doctor")
    out = capsys.readouterr().out
    assert "dipengine" in out and "PyTorch" in out and "instruction set" in out and "CUDA" in out
    assert status == 0


@pytest.mark.parametrize("native, torch, status", [(True, False, 0), (False, True, 0), (False, False, 1)])
def test_doctor_asks_for_the_native_core_or_pytorch(monkeypatch, capsys, native, torch, status):
    if native and not backend.native_available():
        pytest.skip("needs the native core")
    if not native:
        monkeypatch.setattr(backend, "native", None)
    present = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: present(name) if name != "torch" or torch else None)
    assert run("doctor") == status
    assert ("not installed (custom operators, GPUs)" in capsys.readouterr().out) == (not torch)


def test_help_names_every_task(capsys):
    assert run("--help") == 0
    out = capsys.readouterr().out
    for verb in ("denoise", "dejpeg", "superres", "inpaint", "flash", "deblur", "doctor"):
        assert verb in out
    assert "custom" not in out

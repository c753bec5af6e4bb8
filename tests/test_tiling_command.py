"""`--tile` as a user meets it: outputs, records, what is refused, and a run that goes on where one was stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import synthetic_picture

from dipengine import environment
from dipengine.cli.main import main
from dipengine.images import Image, read_image, write_image
from dipengine.tiling import command, tiles_folder

QUICK = ["--channels", "8", "--levels", "2", "--iterations", "6", "--stop", "fixed", "--threads", "1", "--quiet"]


@pytest.fixture
def folder(tmp_path):
    """noisy.png, truth.png and mask.png (white = known) of 90 x 121 pixels."""
    truth = np.rint(synthetic_picture(90, 121) * 255).astype(np.uint8)
    noisy = np.clip(truth + np.random.default_rng(0).normal(0, 25, truth.shape), 0, 255).astype(np.uint8)
    mask = np.full((90, 121, 1), 255, np.uint8)
    mask[10:20, 10:30] = 0
    for name, pixels in (("noisy", noisy), ("truth", truth), ("mask", mask)):
        write_image(tmp_path / f"{name}.png", pixels, Image(pixels))
    return tmp_path


def run(*arguments) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        return leaving.code


def test_a_tiled_image_its_record_and_its_truth(folder, capsys):
    status = run("denoise", folder / "noisy.png", "-o", folder / "out.png", "--tile", "40,8", "--sigma", "25",
                 "--truth", folder / "truth.png", "--record", folder / "r.json", *QUICK)
    assert status == 0 and capsys.readouterr() == ("", "")
    record = json.loads((folder / "r.json").read_text())
    out, truth = (read_image(folder / f"{name}.png").pixels.astype(float) for name in ("out", "truth"))
    assert record["psnr"] == pytest.approx(10 * np.log10(255**2 / ((out - truth) ** 2).mean()))
    assert record["psnr_input"] < 25 and record["ssim"] is not None and record["parameters"]["sigma"] == 25
    assert record["tiles"]["tiles"] == len(record["tiles"]["each"]) == record["iterations"] / 6 > 1
    assert {"row", "column", "window", "seed", "iterations", "stop_reason", "seconds"} <= set(record["tiles"]["each"][0])
    assert not tiles_folder(folder / "out.png").exists()
    whole = folder / "whole.json"
    run("denoise", folder / "noisy.png", "-o", folder / "w.png", "--sigma", "25", "--truth", folder / "truth.png", "--record", whole,
        *QUICK)
    of_whole = json.loads(whole.read_text())
    assert set(of_whole) <= set(record)
    for name in ("input", "value_map", "psnr_input", "psnr_peak", "seed"):
        assert record[name] == of_whole[name]


@pytest.mark.parametrize(
    "verb, extra",
    [("superres", ["--factor", "2"]), ("inpaint", ["--mask", "mask.png"]), ("flash", ["--guide", "truth.png"]),
     ("deblur", ["--kernel", "kernel.txt"]), ("dejpeg", [])],
)
def test_other_tasks(folder, verb, extra, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "kernel.txt").write_text("1 2 1\n2 4 2\n1 2 1\n")
    assert run(verb, "noisy.png", "-o", "out.tif", "--tile", "44,8", *extra, *QUICK) == 0
    scale = 2 if verb == "superres" else 1
    assert read_image(folder / "out.tif").pixels.shape == (90 * scale, 121 * scale, 3)


def test_by_itself_only_where_memory_is_short(folder, monkeypatch):
    common = ["denoise", folder / "noisy.png", "--record", folder / "r.json", *QUICK]
    assert run(*common, "-o", folder / "a.png") == run(*common, "-o", folder / "b.png", "--tile", "none") == 0
    assert (folder / "a.png").read_bytes() == (folder / "b.png").read_bytes()
    assert "tiles" not in json.loads((folder / "r.json").read_text())
    monkeypatch.setattr(environment, "memory", lambda: 700_000)
    assert run(*common, "-o", folder / "c.png") == 0
    assert json.loads((folder / "r.json").read_text())["tiles"]["tiles"] > 1
    assert run(*common, "-o", folder / "c.png", "--tile", "none") == 1


def test_a_tile_that_holds_all_is_one_fit(folder):
    common = ["denoise", folder / "noisy.png", *QUICK]
    assert run(*common, "-o", folder / "a.png", "--tile", "512") == run(*common, "-o", folder / "b.png") == 0
    assert (folder / "a.png").read_bytes() == (folder / "b.png").read_bytes()


@pytest.mark.parametrize(
    "extra, words",
    [
        (["--tile", "bad"], "auto, none, a side"),
        (["--tile", "40,30"], "overlap"),
        (["--tile", "40", "--generator", "g.safetensors"], "generator"),
        (["--tile", "40", "--checkpoint", "c.safetensors"], "tile by tile"),
        (["--tile", "40", "--init-from", "g.safetensors"], "leave --init-from out"),
        (["--tile", "40", "--truth", "mask.png"], "truth"),
        (["--tile", "40", "--mask", "missing.png"], "missing.png"),
        (["--tile", "40", "--max-pixels", "100"], "max_pixels"),
    ],
)
def test_wrong_use_leaves_nothing_behind(folder, monkeypatch, capsys, extra, words):
    monkeypatch.chdir(folder)
    before = set(os.listdir())
    assert run("denoise", "noisy.png", "-o", "out.png", *extra, *QUICK) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert set(os.listdir()) == before


def test_an_unwritable_kind_is_refused_before_any_fit(folder, capsys):
    pixels = np.zeros((90, 121, 1), np.float32)
    pixels[::2] = 1
    write_image(folder / "in.tif", pixels, Image(pixels))
    assert run("denoise", folder / "in.tif", "-o", folder / "out.png", "--tile", "40", *QUICK) == 2
    assert "float32" in capsys.readouterr().err and not tiles_folder(folder / "out.png").exists()


def test_a_truth_in_another_unit_is_refused_before_anything_is_fitted(folder, capsys):
    truth = read_image(folder / "truth.png").pixels / np.float32(255)
    write_image(folder / "unit.tif", truth, Image(truth))
    assert run("denoise", folder / "noisy.png", "-o", folder / "o.png", "--truth", folder / "unit.tif", "--tile", "40,8", *QUICK) == 2
    assert "give both in one unit" in capsys.readouterr().err and not (folder / "o.png").exists()


def test_nan_in_a_float_tiff_is_filled_in(folder):
    values = np.float32(read_image(folder / "noisy.png").pixels)
    values[30:38, 50:58] = np.nan
    known = np.isfinite(values)
    write_image(folder / "nan.tif", values, Image(values))
    words = ["--truth", folder / "nan.tif", "--record", folder / "r.json", "--tile", "40,8", *QUICK]
    assert run("inpaint", folder / "nan.tif", "-o", folder / "out.tif", *words) == 0
    filled = read_image(folder / "out.tif").pixels
    np.testing.assert_array_equal(filled[known], values[known])
    assert np.isfinite(filled).all()
    record = json.loads((folder / "r.json").read_text())
    assert record["parameters"]["mask"] == "missing values" and record["psnr"] is None  # of what is known nothing has changed
    assert record["ssim"] == pytest.approx(1)
    assert record["parameters"]["held_out_pixels"] == 0  # of fits of fixed length

    # Tiles that stop by themselves hold pixels out, but those that know too few.
    values[:36, :36][np.random.default_rng(0).random((36, 36)) < 0.8] = np.nan
    write_image(folder / "holes.tif", values, Image(values))
    words = ["--record", folder / "r.json", "--tile", "40,8", *QUICK, "--stop", "auto"]
    assert run("inpaint", folder / "holes.tif", "-o", folder / "out.tif", *words) == 0
    parameters = json.loads((folder / "r.json").read_text())["parameters"]
    assert 64 < parameters["held_out_pixels"] < np.isfinite(values).all(2).sum() / 5 and parameters["stop_rule"] is None


def test_an_interrupted_run_goes_on_with_the_same_bits(folder, monkeypatch, capsys):
    common = ["denoise", folder / "noisy.png", "--tile", "40,8", *QUICK]
    assert run(*common, "-o", folder / "whole.png") == 0
    fitted = []
    restore = command.restore_tile

    def counted(tiled, index, **more):
        if len(fitted) == 2:
            fitted.clear()
            raise KeyboardInterrupt
        fitted.append(index)
        restore(tiled, index, **more)

    monkeypatch.setattr(command, "restore_tile", counted)
    assert run(*common, "-o", folder / "out.png") == 130
    said = capsys.readouterr().err
    assert "2 of" in said and "goes on" in said and not (folder / "out.png").exists() and tiles_folder(folder / "out.png").exists()
    fitted.extend([None] * 5)
    assert run(*common, "-o", folder / "out.png") == 0
    assert 0 not in fitted and 1 not in fitted
    assert (folder / "out.png").read_bytes() == (folder / "whole.png").read_bytes()
    assert not tiles_folder(folder / "out.png").exists()


def test_a_killed_run_goes_on_with_the_same_bits(folder):
    arguments = ["denoise", "noisy.png", "--tile", "40,8", *QUICK, "--iterations", "100"]
    start = [sys.executable, "-m", "dipengine", *arguments]
    subprocess.run([*start, "-o", "whole.png"], cwd=folder, check=True)
    kept = tiles_folder(folder / "out.png")
    killed = subprocess.Popen([*start, "-o", "out.png"], cwd=folder)
    while killed.poll() is None and not list(kept.glob("tile_*.npy")):
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (folder / "out.png").exists() and list(kept.glob("tile_*.npy"))
    subprocess.run([*start, "-o", "out.png"], cwd=folder, check=True)
    assert (folder / "out.png").read_bytes() == (folder / "whole.png").read_bytes() and not kept.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_runs_of_one_output_do_not_meet(folder, capsys):
    with command._alone(tiles_folder(folder / "out.png"), folder / "out.png"):
        assert run("denoise", folder / "noisy.png", "-o", folder / "out.png", "--tile", "40", *QUICK) == 2
    assert "Another run" in capsys.readouterr().err
    assert run("denoise", folder / "noisy.png", "-o", folder / "out.png", "--tile", "40", *QUICK) == 0

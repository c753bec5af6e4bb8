"""Batches with real workers: the bits of single commands; what changed is done again; failures explained; nothing half-written."""

import csv
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from dipengine.cli.main import main
from dipengine.images import Image, read_image, write_image
from batches import FIT, LONG, OUTPUTS, batch, begun, checkpoints, everything, folder, images, picture, rows, start, wait_until, workers


def test_a_folder_as_single_commands_would_do_it(folder, capsys):
    assert batch() == 1  # two are broken
    said = capsys.readouterr().err
    assert "broken.png" in said and "cannot be decoded" in said and "empty.tif is empty" in said
    assert set(images()) == OUTPUTS
    for name, source in (("a.png", "a.png"), ("deep/c.tif", "deep/c.tif"), ("deep/d.png", "deep/d.jpg")):
        alone = folder / "alone" / Path(name).name
        alone.parent.mkdir(exist_ok=True)
        assert main(["denoise", f"in/{source}", "-o", str(alone), *FIT, "--quiet"]) == 0
        assert np.array_equal(read_image(alone).pixels, read_image(Path("out") / name).pixels), name
    # A record each, a summary, the ledger, and nothing else.
    assert everything() == OUTPUTS | {f"{name}.json" for name in OUTPUTS} | {
        "summary.json", ".dipengine/ledger.sqlite", ".dipengine/ledger.sqlite.lock", ".dipengine/lock",
    }
    record = json.loads(Path("out/a.png.json").read_text())
    assert record["iterations"] == 30 and record["input"]["sha256"] == read_image("in/a.png").sha256
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["counts"] == {"done": 4, "failed": 2}
    assert {job["state"] for job in summary["jobs"] if "broken" in job["input"]} == {"failed"}
    ledger = rows()
    assert ledger["a.png"]["attempts"] == 1 and ledger["broken.png"]["error"].startswith(str(folder / "in" / "broken.png"))
    assert json.loads(ledger["a.png"]["environment"])["instruction_set"]


def test_a_pattern_that_the_shell_has_expanded(folder, capsys):
    assert main(["batch", "in/a.png", "in/b.png", "-o", "out", *FIT, "--quiet"]) == 0
    assert set(images()) == {"a.png", "b.png"}
    assert capsys.readouterr().err == ""  # quiet, and nothing failed


def test_done_is_not_done_again(folder):
    batch()
    times = {name: os.stat(Path("out") / name).st_mtime_ns for name in OUTPUTS}
    assert batch() == 1
    assert {name: os.stat(Path("out") / name).st_mtime_ns for name in OUTPUTS} == times
    assert {row["attempts"] for row in rows().values()} == {1}  # failed ones are left alone, too
    picture(folder / "in" / "broken.png", 20, 20)
    assert batch("--retry-failed") == 1
    assert rows()["broken.png"]["state"] == "done" and rows()["empty.tif"]["attempts"] == 2


def test_what_has_changed_is_done_again(folder, capsys):
    batch()
    before = images()
    picture(folder / "in" / "a.png", 24, 30, seed=9)
    os.utime("in/b.png")  # another time, the same bytes
    Path("out/deep/c.tif").unlink()
    assert batch() == 1
    after = images()
    assert {name for name in OUTPUTS if after[name] != before[name]} == {"a.png"}
    attempts = {name: rows()[name]["attempts"] for name in OUTPUTS}
    assert attempts == {"a.png": 2, "b.png": 1, "deep/c.tif": 2, "deep/d.png": 1}
    assert "a.png has changed" in rows()["a.png"]["note"] and "its output is gone" in rows()["deep/c.tif"]["note"]
    assert batch("--seed", "5") == 1
    assert all(images()[name] != after[name] for name in OUTPUTS)
    assert {rows()[name]["note"] for name in OUTPUTS} == {"its parameters have changed"}


def test_a_failed_input_that_was_repaired_is_another_one(folder, capsys):
    assert batch() == 1 and batch() == 1
    assert rows()["broken.png"]["attempts"] == 1  # the same again would come to the same
    picture(folder / "in" / "broken.png", 20, 20)
    assert batch() == 1
    row = rows()["broken.png"]
    assert (row["state"], row["attempts"]) == ("done", 2) and row["note"].endswith("broken.png has changed")


def test_a_folder_that_has_moved_is_not_done_again(folder):
    batch()
    (folder / "in").rename(folder / "elsewhere")
    picture(folder / "elsewhere" / "a.png", 24, 30, seed=9)
    assert batch(source="elsewhere") == 1
    assert {name: rows()[name]["attempts"] for name in OUTPUTS} == {"a.png": 2, "b.png": 1, "deep/c.tif": 1, "deep/d.png": 1}
    assert rows()["a.png"]["note"] == "its input is another file"
    assert rows()["b.png"]["input"] == str(folder / "elsewhere" / "b.png")


def test_what_is_begun_elsewhere_says_so_when_it_is_tried_again(folder, monkeypatch):
    Path("in/jobs.csv").write_text("input\na.png\n")
    assert batch("--limit-time", "0.0001", "--retries", "0", source="in/jobs.csv", fit=LONG) == 1
    environment = rows()["a.png"]["environment"]
    monkeypatch.setenv("DIPENGINE_ISA", "portable")
    assert batch("--retry-failed", "--limit-time", "0.3", source="in/jobs.csv", fit=LONG) == 1
    row = rows()["a.png"]
    assert row["environment"] == environment and "begun elsewhere" in row["note"]
    assert "begun anew: The checkpoint" in row["note"]  # another instruction set has other bits


def test_an_image_that_changes_while_its_tiles_are_fitted_is_noticed(folder):
    fit = ["--channels", "8", "--levels", "2", "--iterations", "400", "--stop", "fixed", "--tile", "16,4"]
    picture(folder / "large" / "a.png", 60, 70)
    before = hashlib.sha256((folder / "large" / "a.png").read_bytes()).hexdigest()
    process = start(fit=fit, source="large")
    wait_until(lambda: list(Path("out").glob(".dipengine/tiles/1/tile_*.npy")))
    picture(folder / "large" / "a.png", 60, 70, seed=4)
    assert process.wait() == 0
    assert json.loads(rows()["a.png"]["files"])[0][3] == before
    done = images()
    assert batch(source="large", fit=fit) == 0
    assert rows()["a.png"]["note"].endswith("a.png has changed") and images() != done


def test_more_than_the_limit_of_memory_is_not_tried(folder, capsys):
    assert batch("--limit-memory", "200K", source="in/a.png") == 1
    assert "MB and the limit of memory is 0" in capsys.readouterr().err
    assert rows()["a.png"]["attempts"] == 1


def test_a_limit_of_time_is_of_all_tiles_together(folder, capsys):
    picture(folder / "large" / "a.png", 60, 70)
    fit = ["--channels", "8", "--levels", "2", "--iterations", "300", "--stop", "fixed", "--tile", "16,4"]
    assert batch(source="large", fit=fit) == 0
    seconds = rows()["a.png"]["seconds"]
    assert batch("--limit-time", seconds / 4, source="large", out="limited", fit=fit) == 1
    assert "was not done after" in capsys.readouterr().err
    assert list(Path("limited").glob(".dipengine/tiles/1/tile_*.npy"))  # they are there when it goes on
    assert batch("--retry-failed", source="large", out="limited", fit=fit) == 0
    assert images("limited") == images()


def test_a_pattern_is_resumed_though_it_names_its_outputs_too(folder):
    monkey = ["**/*.png", "**/*.tif"]
    for pattern in monkey:
        assert batch(source=pattern, out="out") == 1
        attempts = {name: row["attempts"] for name, row in rows().items()}
        assert batch(source=pattern, out="out") == 1
        assert {name: row["attempts"] for name, row in rows().items()} == attempts


def test_no_resume_does_all_again(folder):
    batch()
    before = images()
    assert batch("--no-resume") == 1
    assert images() == before
    assert {rows()[name]["attempts"] for name in OUTPUTS} == {2}


def test_outputs_stand_on_other_legs_after_their_inputs_are_gone(folder):
    batch()
    (folder / "in" / "a.png").rename(folder / "kept.png")
    (folder / "in" / "b.png").rename(folder / "in" / "b.old")
    (folder / "in" / "b.png").mkdir()  # nobody can read it: no reason to refuse the whole batch
    Path("in/jobs.csv").write_text("input\na.png\nb.png\ndeep/c.tif\ndeep/d.jpg\n")
    assert batch(source="in/jobs.csv") == 0
    assert rows()["a.png"]["attempts"] == rows()["b.png"]["attempts"] == 1


def test_a_manifest_with_tasks_masks_and_truths(folder):
    mask = np.full((24, 30, 1), 255, np.uint8)
    mask[5:9, 6:12] = 0
    write_image("in/mask.png", mask, Image(mask))
    with open("in/jobs.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerows([
            ["input", "task", "output", "mask", "factor", "truth", "sigma"],
            ["a.png", "inpaint", "filled.png", "mask.png", "", "", ""],
            ["b.png", "superres", "large.tif", "", "2", "", ""],
            ["deep/d.jpg", "", "deep/clean.png", "", "", "deep/d.jpg", "20"],
        ])
    assert batch("--generators", source="in/jobs.csv") == 0
    assert read_image("out/large.tif").pixels.shape == (34, 66, 3)
    known = mask[:, :, 0] > 0
    assert np.array_equal(read_image("out/filled.png").pixels[known], read_image("in/a.png").pixels[known])
    assert json.loads(Path("out/deep/clean.png.json").read_text())["psnr"] > 10
    assert Path("out/filled.png.safetensors").stat().st_size > 1000
    files = json.loads(rows()["filled.png"]["files"])
    assert [Path(file[0]).name for file in files] == ["a.png", "mask.png"]
    # A mask is as good as an input where changes are concerned.
    mask[0, 0] = 0
    write_image("in/mask.png", mask, Image(mask))
    assert batch("--generators", source="in/jobs.csv") == 0
    assert rows()["filled.png"]["attempts"] == 2 and rows()["large.tif"]["attempts"] == 1


def test_a_large_image_is_a_cohort_of_tiles(folder):
    """Tiles of one image run on all workers; the bits are those of the single command."""
    write_image("in/truth.png", read_image("in/a.png").pixels, Image(read_image("in/a.png").pixels))
    Path("in/jobs.jsonl").write_text('{"input": "a.png", "truth": "truth.png"}\n{"input": "deep/c.tif"}\n{"input": "broken.png"}\n')
    assert batch("--tile", "16,4", source="in/jobs.jsonl") == 1
    assert main(["denoise", "in/a.png", "-o", "alone.png", *FIT, "--quiet", "--tile", "16,4", "--truth", "in/truth.png",
                 "--record", "alone.json"]) == 0
    assert np.array_equal(read_image("alone.png").pixels, read_image("out/a.png").pixels)
    record, alone = (json.loads(Path(name).read_text()) for name in ("out/a.png.json", "alone.json"))
    assert record["psnr"] == alone["psnr"] and len(record["tiles"]["each"]) == len(alone["tiles"]["each"]) > 1
    assert read_image("out/deep/c.tif").pixels.dtype == np.uint16
    assert {row["state"] for row in rows().values()} == {"done", "failed"} and rows()["a.png"]["attempts"] == 1
    assert json.loads(rows()["a.png"]["environment"])["tiling"] == f"{len(alone['tiles']['each'])} of 16x16, overlap 4"
    assert not list(Path("out/.dipengine").glob("tiles/*")) and not checkpoints()


def test_a_tile_that_fails_fails_its_image_alone(folder, capsys):
    mask = np.full((40, 40, 1), 255, np.uint8)
    mask[:20, :20] = 0  # a whole tile and more
    write_image("in/mask.png", mask, Image(mask))
    picture(folder / "in" / "e.png", 40, 40)
    Path("in/jobs.jsonl").write_text('{"input": "e.png", "task": "inpaint", "mask": "mask.png"}\n{"input": "a.png"}\n')
    assert batch("--tile", "12,4", source="in/jobs.jsonl") == 1
    assert "swallows a whole tile" in capsys.readouterr().err
    assert set(images()) == {"a.png"}


def test_other_tiles_are_another_request_by_row_and_by_option(folder):
    Path("in/jobs.jsonl").write_text('{"input": "a.png", "tile": "16,4"}\n{"input": "b.png"}\n')
    assert batch(source="in/jobs.jsonl") == 0
    tiling = {name: json.loads(row["environment"])["tiling"] for name, row in rows().items()}
    assert tiling["a.png"].endswith("16x16, overlap 4") and tiling["b.png"] == "none"
    assert batch("--tile", "20,4", source="in/jobs.jsonl") == 0
    assert {name: row["attempts"] for name, row in rows().items()} == {"a.png": 1, "b.png": 2}
    assert json.loads(rows()["b.png"]["environment"])["tiling"].endswith("overlap 4")


def test_an_image_in_tiles_has_no_generator_and_begins_with_nobody(folder, capsys):
    picture(folder / "frames" / "f0.png", 24, 30)
    picture(folder / "frames" / "f1.png", 40, 44)  # in tiles
    picture(folder / "frames" / "f2.png", 24, 30)
    assert batch("--tile", "30,6", "--generators", source="frames") == 1
    assert "f1.png: An image in tiles has a generator for each of them; leave --generators out" in capsys.readouterr().err
    assert batch("--tile", "30,6", source="frames", out="warm", fit=[*FIT, "--warm", "previous"]) == 1
    assert "f1.png: An image in tiles begins each of them with random weights; leave --warm out" in capsys.readouterr().err
    assert begun("f2.png", "warm")["source"].endswith("f0.png")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "-o", "out"], "There is no 'nowhere'"),
        (["in", "-o", "in"], "would be overwritten"),
        (["in", "-o", "out", "--task", "superres"], "superres needs factor"),
        (["in", "-o", "out", "--workers", "0"], "workers is 0"),
        (["in", "-o", "out", "--limit-time", "-1"], "limit-time is -1"),
        (["in", "-o", "out", "--device", "cuda:7"], "cuda:7"),
        (["in", "-o", "out", "--format", "xyz"], "names no format"),
        (["in", "-o", "out", "--tile", "big"], "The tile is 'big'"),
        (["in", "-o", "in/a.png"], "choose another --ledger, or -o"),
        (["in", "-o", "out", "--sigma", "nan"], "sigma is nan"),
        (["in", "-o", "out", "--skips=-1"], "skips holds -1"),
        (["in", "-o", "out", "--max-pixels", "0"], "max-pixels is 0"),
        (["in", "-o", "out", "--mask", "gone.png"], None),
    ],
)
def test_wrong_use_is_one_sentence_and_status_2(folder, arguments, said, capsys):
    status = main(["batch", *arguments, "--quiet", *FIT])
    error = capsys.readouterr().err.strip()
    if said is None:  # only the images that need it can tell
        assert status == 1 and "gone.png" in error
        return
    assert status == 2 and said in error and error.count("\n") == 0
    assert not Path("out").exists()


def test_a_log_is_told_now_and_then(folder):
    process = start("--iterations", 400)  # its stderr is no terminal
    said = process.communicate(timeout=120)[1]
    assert said.count("images") <= 8 and "100%" in said and "6/6 images" in said


def test_a_dry_run_does_nothing(folder, capsys):
    assert batch("--dry-run") == 0
    assert f"denoise: {folder}/in/deep/d.jpg -> out/deep/d.png" in capsys.readouterr().out
    assert not Path("out").exists()


def test_an_output_that_cannot_hold_the_image_fails_before_its_fit(folder, capsys):
    fit = [*FIT[:-3], "100000", *FIT[-2:]]
    assert batch("--format", "jpg", source="in/deep/c.tif", fit=fit) == 1
    said = capsys.readouterr().err
    assert "JPEG holds 8 bits" in said and "written as c.jpg because" in said
    assert [row["attempts"] for row in rows().values()] == [1]  # another would come to the same

"""From a folder, a pattern or a manifest to jobs: order, names of outputs, and every clash found before anything starts."""

import json
import os
import time

import pytest

from dipengine.errors import InputError
from dipengine.scheduling.jobs import Request, given
from dipengine.scheduling.sources import jobs_of

BLIND = Request()


@pytest.fixture
def folder(tmp_path):
    """in/ with pictures (their content is nobody's business here) in two folders."""
    for name in ("frame10.png", "frame2.png", "notes.txt", ".hidden.png", "deep/photo.JPG", "deep/stack.tif", "deep/sky.fits.gz"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def outputs(source, folder, request=BLIND, ending=None):
    return [job.output for job in jobs_of(str(source), folder, request, ending)]


def test_a_folder_with_those_in_it_in_natural_order(folder):
    # JPEG would lose again what was restored; all others keep their format.
    assert outputs(folder / "in", folder / "out") == ["deep/photo.png", "deep/sky.fits.gz", "deep/stack.tif", "frame2.png", "frame10.png"]


def test_one_format_for_all(folder):
    assert outputs(folder / "in", folder / "out", ending="TIFF") == [
        "deep/photo.tiff", "deep/sky.tiff", "deep/stack.tiff", "frame2.tiff", "frame10.tiff",
    ]


def test_a_pattern_keeps_what_follows_its_fixed_part(folder):
    assert outputs(folder / "in" / "**" / "*.tif", folder / "out") == ["deep/stack.tif"]
    assert outputs(folder / "in" / "frame*.png", folder / "out") == ["frame2.png", "frame10.png"]


def test_tile_compressed_fits_become_fits(folder):
    (folder / "in" / "deep" / "field.FITS.fz").write_bytes(b"x")
    assert outputs(folder / "in" / "deep", folder / "out") == ["field.fits", "photo.png", "sky.fits.gz", "stack.tif"]


def several(sources, folder):
    return [job.output for job in jobs_of([str(folder / source) for source in sources], folder / "out", BLIND)]


def test_what_a_shell_makes_of_a_pattern(folder):
    assert several(["in/frame10.png", "in/frame2.png"], folder) == ["frame2.png", "frame10.png"]
    # `in/*` names what `in` names; a file named twice is one image
    everything = ["in/deep", "in/frame10.png", "in/frame2.png", "in/frame10.png", "in/deep/stack.tif", "in/frame*.png"]
    assert several(everything, folder) == outputs(folder / "in", folder / "out")
    (folder / "more").mkdir()
    (folder / "more" / "frame2.png").write_bytes(b"x")
    assert several(["in/frame2.png", "more/frame2.png"], folder) == ["in/frame2.png", "more/frame2.png"]


def test_several_sources_of_which_one_is_nothing(folder):
    (folder / "jobs.csv").write_text("input\nin/frame2.png\n")
    (folder / "empty").mkdir()
    for source, said in (("jobs.csv", "manifest; give it alone"), ("empty", "no image in"), ("in/none.png", "There is no"),
                         ("in/notes.txt", "no image by its ending")):
        with pytest.raises(InputError, match=said):
            several(["in/frame2.png", source], folder)


def test_one_file(folder):
    assert outputs(folder / "in" / "frame2.png", folder / "out") == ["frame2.png"]


def test_outputs_below_the_inputs_are_no_inputs(folder):
    inside = folder / "in" / "restored"
    inside.mkdir()
    (inside / "frame2.png").write_bytes(b"x")
    assert "restored/frame2.png" not in outputs(folder / "in", inside)


def test_outputs_of_another_batch_below_the_inputs_are_no_inputs(folder):
    """Else a second batch, to another folder, would restore what the first one has restored."""
    inside = folder / "in" / "restored"
    (inside / ".dipengine").mkdir(parents=True)
    (inside / "frame2.png").write_bytes(b"x")
    assert "restored/frame2.png" not in outputs(folder / "in", folder / "out")
    (inside / ".dipengine").rmdir()
    assert "restored/frame2.png" in outputs(folder / "in", folder / "out")


def test_patterns_leave_out_what_batches_have_written(folder):
    inside = folder / "in" / "restored" / "deeper"
    inside.mkdir(parents=True)
    (inside.parent / ".dipengine").mkdir()
    (inside / "frame2.png").write_bytes(b"x")
    assert outputs(folder / "in" / "**" / "*.png", folder / "out") == ["frame2.png", "frame10.png"]


def test_links_to_folders_are_followed_once(folder):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "far.png").write_bytes(b"x")
    (folder / "in" / "linked").symlink_to(folder / "elsewhere")
    (folder / "elsewhere" / "back").symlink_to(folder / "in")
    assert outputs(folder / "in", folder / "out") == [
        "deep/photo.png", "deep/sky.fits.gz", "deep/stack.tif", "frame2.png", "frame10.png", "linked/far.png",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_nobody_may_read(folder):
    (folder / "in" / "deep").chmod(0)
    with pytest.raises(InputError, match="deep' cannot be read"):
        outputs(folder / "in", folder / "out")


def test_digits_that_are_no_numbers(folder):
    (folder / "in" / "10\u00b23.png").write_bytes(b"x")
    assert "10\u00b23.png" in outputs(folder / "in", folder / "out")


def test_a_name_that_is_no_text(folder):
    with open(os.path.join(os.fsencode(folder / "in"), b"caf\xe9.png"), "wb") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="not valid UTF-8"):
        outputs(folder / "in", folder / "out")


def test_many_rows_are_listed_in_moderate_time(folder):
    """Most of it used to be resolving each path from the root on; the bound is for busy machines."""
    lines = "\n".join(f"{i}.png" for i in range(20_000))
    begin = time.perf_counter()
    assert len(manifest(folder, f"input\n{lines}\n")) == 20_000
    assert time.perf_counter() - begin < 20


def test_zero_is_given_and_nothing_is_not():
    assert given({"sigma": 0.0, "mask": None, "invert_mask": False, "offset": 0}) == {"sigma": 0.0, "offset": 0}


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda at: (at / "in" / "frame2.tif").write_bytes(b"x"), None),  # another ending is another output
        (lambda at: (at / "in" / "deep" / "photo.png").write_bytes(b"x"), "photo.JPG' and .*photo.png' would both be written"),
    ],
)
def test_two_inputs_for_one_output(folder, prepare, said):
    prepare(folder)
    if said is None:
        outputs(folder / "in", folder / "out")
        return
    with pytest.raises(InputError, match=said):
        outputs(folder / "in", folder / "out")


def test_an_input_is_never_overwritten(folder):
    with pytest.raises(InputError, match="is an input and would be overwritten"):
        outputs(folder / "in" / "*.png", folder / "in")
    mask = folder / "out" / "frame2.png"
    mask.parent.mkdir()
    mask.write_bytes(b"x")
    request = Request("inpaint", {"mask": str(mask)})
    with pytest.raises(InputError, match="frame2.png' is an input and would be overwritten"):
        outputs(folder / "in" / "*.png", folder / "out", request)


@pytest.mark.parametrize(
    ("source", "said"),
    [("nowhere", "There is no"), ("nowhere/*.png", "There is no image"), ("in/notes.txt", "no image by its ending")],
)
def test_nothing_found(folder, source, said, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=said):
        jobs_of(source, folder / "out", BLIND)


# ---- manifests ------------------------------------------------------------------------------------------------------


def manifest(folder, text, name="jobs.csv"):
    path = folder / "in" / name
    path.write_text(text)
    return jobs_of(str(path), folder / "out", Request(options={"sigma": 25.0}))


def test_rows_override_the_command_line(folder):
    jobs = manifest(
        folder,
        "input,task,output,sigma,mask,iterations,channels,priority\n"
        "frame2.png,,,10,,,,\n"
        'frame10.png,inpaint,"filled, once.png",,deep/stack.tif,300,"16,32",7\n'
        "deep/photo.JPG,,,,,,,\n",
    )
    assert [job.output for job in jobs] == ["frame2.png", "filled, once.png", "deep/photo.png"]
    assert jobs[0].request.options == {"sigma": 10.0}
    assert jobs[0].input == str(folder / "in" / "frame2.png")
    # Another task's row does not inherit options that it does not have.
    assert jobs[1].request.options == {"mask": str(folder / "in" / "deep" / "stack.tif")}
    assert (jobs[1].request.settings.iterations, jobs[1].request.settings.channels, jobs[1].priority) == (300, (16, 32), 7)
    assert jobs[2].request.options == {"sigma": 25.0}


def test_json_lines(folder):
    rows = [{"input": "frame2.png", "channels": [16, 32], "range": [0, 4095], "invert_mask": None}, {"input": "frame10.png", "seed": 7}]
    jobs = manifest(folder, "\n".join(map(json.dumps, rows)) + "\n\n", "jobs.jsonl")
    assert jobs[0].request.settings.channels == (16, 32)
    assert jobs[0].request.settings.value_range == (0, 4095)
    assert jobs[1].request.settings.seed == 7


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"input": "frame2.png", "priority": 1e999}', "priority is inf"),
        ('{"input": "frame2.png", "iterations": 1e999}', "iterations is inf"),
        ('{"input": "a\\u0000.png"}', "can be no file's name"),
        ('{"input": "a\\ud800.png"}', "can be no file's name"),
    ],
)
def test_values_that_json_can_hold_and_nobody_else(folder, row, said):
    path = folder / "in" / "jobs.jsonl"
    path.write_text(row)
    with pytest.raises(InputError, match=said):
        jobs_of(str(path), folder / "out", BLIND)


def test_parquet(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = folder / "in" / "jobs.parquet"
    parquet.write_table(pyarrow.table({"input": ["frame2.png", "frame10.png"], "sigma": [5.0, None]}), path)
    jobs = jobs_of(str(path), folder / "out", BLIND)
    assert [job.request.options for job in jobs] == [{"sigma": 5.0}, {}]


def test_equal_rows_share_one_request(folder):
    jobs = manifest(folder, "input\nframe2.png\nframe10.png\n")
    assert jobs[0].request is jobs[1].request


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name\nframe2.png\n", "has no column 'input'"),
        ("input,colour\nframe2.png,red\n", "row 1: There is no parameter 'colour'"),
        ("input,sigma\nframe2.png,loud\n", "row 1: sigma is 'loud'; give a number"),
        ("input,iterations\nframe2.png,1.5\n", "row 1: iterations is '1.5'; give a whole number"),
        ("input,task\nframe2.png,superres\n", "superres needs factor"),
        ("input,task,factor\nframe2.png,superres,3.5\n", "factor is '3.5'"),
        ("input,task\nframe2.png,custom\n", "takes a function"),
        ("input,task\nframe2.png,paint\n", "There is no task 'paint'"),
        ("input,output\nframe2.png,../away.png\n", "leaves the batch's folder"),
        ("input,output\nframe2.png,/away.png\n", "leaves the batch's folder"),
        ("input,output\nframe2.png,away.xyz\n", "row 1: .*names no format"),
        ("input,output\nframe2.png,a.png\nframe10.png,a.png\n", "would both be written"),
        ("input,sigma\nframe2.png\n", "another number of cells"),
        ("input,preset\nframe2.png,best\n", "preset"),
        ("input,priority\nframe2.png,99999999999999999999\n", "priority is '9+'; give a whole number"),
        ("input,sigma\nframe2.png,inf\n", "sigma is 'inf'; give a number"),
        ("input,sigma\nframe2.png,nan\n", "sigma is 'nan'; give a number"),
        ("input,output\nframe2.png,.dipengine/staging/x.png\n", "among the batch's own files"),
        ("input\n", "There is no image"),
    ],
)
def test_manifests_that_make_no_sense(folder, text, said):
    with pytest.raises(InputError, match=said):
        manifest(folder, text)


def test_a_link_inside_the_outputs_does_not_lead_out_of_them(folder):
    (folder / "out").mkdir()
    os.symlink(folder / "in", folder / "out" / "link")
    with pytest.raises(InputError, match="would leave|is an input"):
        manifest(folder, "input,output\nframe2.png,link/other.png\n")


def test_no_json_and_no_text(folder):
    with pytest.raises(InputError, match="line 1: this is no JSON"):
        manifest(folder, "{input}", "jobs.jsonl")
    (folder / "in" / "bytes.csv").write_bytes(b"input\n\xff\xfe.png\n")
    with pytest.raises(InputError, match="not in UTF-8"):
        jobs_of(str(folder / "in" / "bytes.csv"), folder / "out", BLIND)

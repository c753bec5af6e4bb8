"""Images restored in tiles: what each fit is given, what is kept, what comes out."""

import json
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from conftest import synthetic_picture
from image_samples import noise

from dipengine.errors import InputError, OutputError
from dipengine.fitting import metrics
from dipengine.fitting.settings import Settings
from dipengine.images import Image, Metadata, ValueMap, read_image, write_image
from dipengine.images.resizing import enlarge
from dipengine.restoration import plan_restoration, restore_image
from dipengine.tasks import quantisation
from dipengine.tiling import TiledPlan, TileRequest, measuring, needs_tiles, plan_tiles, planning, restore_tile, tiled_record
from dipengine.tiling.sizes import Fits

SETTINGS = Settings(channels=(8,), levels=2, iterations=6, stop="fixed", threads=1, seed=3)
SHAPE = (90, 121)


def picture(dtype="uint8", channels=3, shape=SHAPE):
    values = synthetic_picture(*shape, channels)
    if np.dtype(dtype).kind == "f":
        return (values * 1000 - 300).astype(dtype)
    return np.rint(values * np.iinfo(dtype).max).astype(dtype)


def plan(source, folder, task="denoise", options=None, settings=SETTINGS, tile="40,8", **more):
    return plan_tiles(source, task, options or {}, settings, folder=folder, tile=TileRequest.parse(tile), **more)


def repeat_the_input(tiled):
    """In place of fits: every tile's result is its own input, enlarged where the task enlarges."""
    for tile in tiled.pending:
        image, _, _ = tiled.tile_image(tile.index)
        unit = tiled.values.to_unit(image.pixels).repeat(tiled.scale, 0).repeat(tiled.scale, 1)
        tiled.add(tile.index, unit, {})


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_that_repeat_their_input_give_the_input(tmp_path, dtype, channels):
    pixels = picture(dtype, channels)
    tiled = plan(Image(pixels), tmp_path)
    assert len(tiled.grid) > 4
    repeat_the_input(tiled)
    result = tiled.assemble().read()
    assert result.dtype == pixels.dtype
    if np.dtype(dtype).kind == "f":
        np.testing.assert_allclose(result, pixels, atol=1300 * 2**-23)  # a fit's values are float32 in [0, 1]
    else:
        np.testing.assert_array_equal(result, pixels)


def test_values_are_blended_in_data_units_and_rounded_once(tmp_path):
    tiled = plan(Image(picture("uint8", 1, (40, 72))), tmp_path)
    assert len(tiled.grid) == 2 and tiled.grid[1].left == 32
    for tile, level in zip(tiled.tiles, (100.2, 103.7)):
        tiled.add(tile.index, np.full((tile.height, tile.width, 1), level / 255, np.float32), {})
    ramp = 0.5 + 0.5 * np.cos(np.pi * (np.arange(8) + 0.5) / 8)
    expected = np.concatenate([np.full(32, 100.2), 100.2 * ramp + 103.7 * (1 - ramp), np.full(32, 103.7)])
    np.testing.assert_array_equal(tiled.assemble().read()[20, :, 0], np.rint(expected))


def test_every_tile_has_the_whole_images_values_and_recipe_and_a_seed_of_its_own(tmp_path):
    pixels = picture("float32", 1)
    tiled = plan(Image(pixels), tmp_path)
    whole = plan_restoration(Image(pixels), "denoise", {}, SETTINGS)
    assert tiled.values == whole.values
    seeds = set()
    for tile in tiled.tiles:
        image, _, settings, own = tiled.tile_plan(tile.index)
        np.testing.assert_array_equal(image.pixels, pixels[tile.rows, tile.columns])
        assert own.values == whole.values and own.recipe == whole.recipe
        assert own.problem.output_shape == (tiled.grid.rows.tile, tiled.grid.columns.tile)
        seeds.add(settings.seed)
    assert len(seeds) == len(tiled.tiles) and SETTINGS.seed not in seeds
    again = plan(Image(pixels), tmp_path / "again")
    other = plan(Image(pixels), tmp_path / "other", settings=replace(SETTINGS, seed=4))
    assert [again.seed(i) for i in range(4)] == [tiled.seed(i) for i in range(4)] != [other.seed(i) for i in range(4)]


@pytest.mark.parametrize("data_term", ["likelihood", "stabilised"])
def test_a_sensors_noise_is_that_of_the_whole_frame(tmp_path, data_term):
    options = {"noise": "poisson-gaussian", "gain": 0.5, "read_noise": 2.0, "offset": 10.0, "data_term": data_term}
    pixels = picture("uint16", 1) // 200
    pixels[:, :60] = 8  # dark tiles, which alone would be refused for a wrong black level
    whole = plan_restoration(Image(pixels), "denoise", options, SETTINGS)
    tiled = plan(Image(pixels), tmp_path, options=options)
    assert (tiled.values.low, tiled.values.high) == (whole.values.low, whole.values.high)
    for tile in tiled.tiles:
        own = tiled.tile_plan(tile.index)[3]
        assert own.recipe.perturbation == whole.recipe.perturbation
        assert (own.values.curve is None) == (data_term == "likelihood")
    assert TiledPlan.load(tmp_path).values.to_dict() == tiled.values.to_dict()
    with pytest.raises(InputError, match="black level"):
        plan(Image(pixels), tmp_path / "refused", options={**options, "offset": 1e5})


def test_masks_missing_values_and_guides_are_cut_by_the_same_windows(tmp_path):
    pixels, guide = picture("float32"), picture("float32", 4)
    mask, known = noise("uint8", 1, SHAPE)[..., 0] > 50, noise("uint8", 1, SHAPE, seed=5)[..., 0] > 20
    tiled = plan(Image(pixels, known=known), tmp_path / "a", options={"mask": ~mask, "invert_mask": True})
    flash = plan(Image(pixels, known=known), tmp_path / "b", "flash", {"guide": Image(guide)})
    for tile in tiled.tiles[::3]:
        image, options, _ = tiled.tile_image(tile.index)
        np.testing.assert_array_equal(options["mask"], (mask & known)[tile.rows, tile.columns])
        image, options, _, own = flash.tile_plan(tile.index)
        np.testing.assert_array_equal(image.known, known[tile.rows, tile.columns])
        whole = ValueMap.for_image(guide).to_unit(guide)  # by the whole guide's range
        np.testing.assert_array_equal(own.problem.guide, whole[tile.rows, tile.columns])
    assert tiled.values == ValueMap.for_image(pixels, mask & known)
    with pytest.raises(InputError, match="guide"):
        plan(Image(pixels), tmp_path / "c", "flash", {"guide": Image(guide[:-1])})
    with pytest.raises(InputError, match="mask"):
        plan(Image(pixels), tmp_path / "c", options={"mask": mask[:-1]})


def test_known_pixels_are_kept_bit_for_bit_and_tiles_without_missing_ones_take_no_fit(tmp_path):
    pixels = picture("float64")
    mask = np.ones(SHAPE, bool)
    mask[10:20, 10:25] = False
    tiled = plan(Image(pixels), tmp_path, "inpaint", {"mask": mask})
    assert [tile.index for tile in tiled.tiles] == [0]
    for tile in tiled.pending:
        tiled.add(tile.index, np.full((tile.height, tile.width, 3), 0.5, np.float32), {})
    result = tiled.assemble().read()
    np.testing.assert_array_equal(result[mask], pixels[mask])
    assert np.unique(result[~mask]).size == 1
    everywhere = plan(Image(pixels), tmp_path / "fit", "inpaint", {"mask": mask, "known": "fit"})
    assert len(everywhere.tiles) == len(everywhere.grid)


def test_a_random_mask_and_transparency_are_those_of_the_whole(tmp_path):
    pixels = picture()
    alpha = np.full(SHAPE, 255, np.uint8)
    alpha[30:40, 50:60] = 20
    whole = plan_restoration(Image(pixels), "inpaint", {"random_missing": 0.4}, SETTINGS)
    tiled = plan(Image(pixels), tmp_path / "a", "inpaint", {"random_missing": 0.4})
    np.testing.assert_array_equal(tiled.known.read()[..., 0].astype(bool), whole.problem.known)
    assert tiled.parameters["missing_fraction"] == pytest.approx(whole.problem.parameters["missing_fraction"])
    filled = plan(Image(pixels, alpha), tmp_path / "b", "inpaint")
    np.testing.assert_array_equal(filled.known.read()[..., 0].astype(bool), alpha >= 128)
    assert filled.fills_alpha and not filled.keeps_alpha
    with pytest.raises(InputError, match="Nothing says"):
        plan(Image(pixels), tmp_path / "c", "inpaint")


def test_a_tile_of_which_nothing_is_known(tmp_path):
    pixels = picture("float32", 1)
    known = np.ones(SHAPE, bool)
    known[:, :50] = False
    with pytest.raises(InputError, match="whole tile of 40x36.*--tile") as error:
        plan(Image(pixels), tmp_path / "a", "inpaint", {"mask": known})
    assert str(error.value).endswith(".") and not any((tmp_path / "a").iterdir())
    tiled = plan(Image(pixels, known=known), tmp_path / "b")
    assert len(tiled.skipped) == tiled.grid.rows.count
    repeat_the_input(tiled)
    result = tiled.assemble().read()[..., 0]
    np.testing.assert_allclose(result[:, :24], pixels[..., 0][known].mean(dtype=np.float64), rtol=1e-6)
    with pytest.raises(InputError, match="no pixel known"):
        plan(Image(pixels), tmp_path / "c", options={"mask": np.zeros(SHAPE, bool)})


def test_transparency_travels_and_grows_with_the_image(tmp_path):
    alpha = noise("uint8", 1, SHAPE)[..., 0]
    same = plan(Image(picture(), alpha), tmp_path / "a")
    repeat_the_input(same)
    np.testing.assert_array_equal(same.assemble().read()[..., 3], alpha)
    larger = plan(Image(picture(), alpha), tmp_path / "b", "superres", {"factor": 2})
    repeat_the_input(larger)
    result = larger.assemble().read()
    np.testing.assert_array_equal(result[..., :3], picture().repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(result[..., 3], enlarge(alpha, 2))


def test_what_is_done_survives_the_process_and_another_plan_does_not_use_it(tmp_path):
    pixels = picture()
    tiled = plan(Image(pixels), tmp_path)
    restore_tile(tiled, 0)
    restore_tile(tiled, 1)
    (tmp_path / ".tile_0_2.deadbeef.npy").write_bytes(b"half")  # of a run that was killed
    again = plan(Image(pixels), tmp_path)
    assert [tile.index for tile in again.pending] == [tile.index for tile in tiled.tiles][2:]
    loaded = TiledPlan.load(tmp_path)  # as another process finds it
    before = (tmp_path / "tile_0_1.npy").read_bytes()
    (tmp_path / "tile_0_1.npy").unlink()
    restore_tile(loaded, 1)
    assert (tmp_path / "tile_0_1.npy").read_bytes() == before
    for other in ({"settings": replace(SETTINGS, seed=9)}, {"options": {"sigma": 25.0}}, {"tile": "48,8"}):
        assert len(plan(Image(pixels), tmp_path, **other).pending) == len(plan(Image(pixels), tmp_path, **other).tiles)
    changed = pixels.copy()
    changed[0, 0] += 1
    plan(Image(pixels), tmp_path)
    restore_tile(plan(Image(pixels), tmp_path), 0)
    assert len(plan(Image(changed), tmp_path).pending) == len(tiled.tiles)


def test_a_plan_that_was_cut_short_is_made_anew(tmp_path):
    whole = plan(Image(picture()), tmp_path)
    for text in ("", "{}", '{"format": 99}'):
        (tmp_path / "plan.json").write_text(text)
        assert plan(Image(picture()), tmp_path).key == whole.key


@pytest.mark.parametrize(
    "task, options",
    [
        ("denoise", {}), ("denoise", {"sigma": 25.0}), ("dejpeg", {}), ("superres", {"factor": 2}),
        ("deblur", {"kernel": np.ones((5, 3)) / 15}), ("flash", {"guide": Image(picture("uint16"))}),
        ("inpaint", {"random_missing": 0.5}),
        ("denoise", {"noise": "poisson", "gain": 0.5, "data_term": "stabilised"}),
    ],
)
def test_every_task_from_file_to_file(tmp_path, task, options):
    write_image(tmp_path / "in.png", picture(), Image(picture()))
    tiled = plan(tmp_path / "in.png", tmp_path / "tiles", task, options)
    assert len(tiled.grid) > 1
    for tile in TiledPlan.load(tmp_path / "tiles").pending:
        restore_tile(tiled, tile.index)
    tiled = TiledPlan.load(tmp_path / "tiles")
    tiled.write(tmp_path / "out.png", tiled.assemble())
    scale = options.get("factor", 1)
    restored = read_image(tmp_path / "out.png").pixels
    assert restored.shape == (SHAPE[0] * scale, SHAPE[1] * scale, 3)
    record = tiled_record(tiled, {})
    json.dumps(record, allow_nan=False)
    assert record["iterations"] == 6 * len(tiled.tiles) and record["tiles"]["tiles"] == len(tiled.grid)
    assert record["input"]["height"] == SHAPE[0] and record["input"]["sha256"] == read_image(tmp_path / "in.png").sha256


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_tile_of_one_value_is_fitted(tmp_path, dtype):
    pixels = picture(dtype, 1)
    pixels[:60, :60] = pixels.min()
    tiled = plan(Image(pixels), tmp_path, settings=replace(SETTINGS, iterations=150, stop="auto"))
    restore_tile(tiled, 0)
    unit = np.load(tmp_path / "tile_0_0.npy")
    assert np.isfinite(unit).all() and unit.mean() < 0.2


def test_one_fit_where_it_fits_in_memory_and_tiles_where_it_does_not(tmp_path):
    like, fits = Image(picture()), Fits.of(Image(picture()), "denoise", {}, Settings())
    whole = fits.bytes_for(3000, 4000)
    run = plan_restoration(like, "denoise", {}, SETTINGS)
    assert Fits.of(like, "denoise", {}, SETTINGS).bytes_for(*SHAPE) == planned(run)
    assert fits.grid(3000, 4000, TileRequest(), whole) is None
    grid = fits.grid(3000, 4000, TileRequest(), whole - 1)
    assert len(grid) > 1 and grid.rows.side == 512 and grid.rows.overlap == 64
    small = fits.grid(3000, 4000, TileRequest(), whole // 100)
    assert fits.bytes_for(small.rows.side, small.columns.side) <= whole // 200
    assert fits.grid(3000, 4000, TileRequest.parse("none"), 1) is None
    assert fits.grid(100, 100, TileRequest.parse("128"), 1) is None  # one tile is no tiling
    with pytest.raises(InputError, match="smallest tile"):
        fits.grid(3000, 4000, TileRequest(), 1000)
    assert plan_tiles(like, "denoise", {}, SETTINGS, folder=tmp_path / "none") is None and not (tmp_path / "none").exists()
    assert needs_tiles(like, "denoise", {}, SETTINGS, budget=100_000_000_000) is False
    assert needs_tiles(tmp_path / "missing.png", "denoise", {}, SETTINGS, budget=1) is False


def planned(run):
    from dipengine.fitting import native_fit

    return native_fit.planned_bytes(run.problem, run.recipe, run.placement, run.stop)[0]


def test_a_tile_of_deblurring_counts_only_where_its_data_are_complete(tmp_path):
    kernel = np.ones((7, 5)) / 35
    fits = Fits.of(Image(picture()), "deblur", {"kernel": kernel}, SETTINGS)
    assert fits.margins == (6, 4) and fits.guards == (3, 2)
    tiled = plan(Image(picture()), tmp_path, "deblur", {"kernel": kernel}, tile="50,8")
    rows, columns = tiled.grid.weights(0)
    assert not rows[-3:].any() and not columns[-2:].any()
    image, options, settings, own = tiled.tile_plan(0)
    canvas = SETTINGS.levels and own.recipe.generator.canvas(*own.problem.output_shape)
    assert canvas == own.problem.output_shape  # nothing wasted
    np.testing.assert_array_equal(TiledPlan.load(tmp_path).options["kernel"], kernel)


def test_a_tile_is_restored_as_the_same_image_alone_would_be(tmp_path):
    pixels = picture()
    tiled = plan(Image(pixels), tmp_path)
    tile = tiled.tiles[3]
    restore_tile(tiled, tile.index)
    alone = restore_image(
        Image(np.ascontiguousarray(pixels[tile.rows, tile.columns])), "denoise", {}, replace(SETTINGS, seed=tiled.seed(tile.index))
    )
    np.testing.assert_array_equal(np.load(tmp_path / f"tile_{tile.row}_{tile.column}.npy"), alone.generator.delivered)


def test_measures_by_rows_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr("dipengine.images.raw._BAND_BYTES", 200_000)
    image, truth = noise("uint8", 3, (61, 47)), picture("uint8", 3, (61, 47))
    rows = [lambda part: image[part], lambda part: Image(truth[part])]
    assert measuring.psnr(*rows, image.shape, 255) == pytest.approx(metrics.psnr(image, truth, 255), abs=1e-10)
    assert measuring.ssim(*rows, image.shape, 255) == pytest.approx(metrics.ssim(image, truth, 255), abs=1e-12)
    same = [rows[0], lambda part: Image(image[part])]
    assert measuring.ssim(*same, image.shape, 255) == pytest.approx(1)
    assert measuring.psnr(*same, image.shape, 255) == float("inf")
    assert measuring.ssim(*rows, (10, 47, 3), 255) is None
    known = np.ones((61, 47), bool)
    known[20:23, 30], known[60, 46] = False, False
    rows[1] = lambda part: Image(truth[part], known=known[part])
    assert measuring.psnr(*rows, image.shape, 255) == pytest.approx(metrics.psnr(image, truth, 255, known), abs=1e-10)
    assert measuring.ssim(*rows, image.shape, 255) == pytest.approx(metrics.ssim(image, truth, 255, known), abs=1e-12)
    assert metrics.psnr(image, truth, 255, known) != metrics.psnr(image, truth, 255)


def test_a_disk_without_room_is_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match="GiB"):
        plan(Image(picture()), tmp_path / "tiles")
    assert not any((tmp_path / "tiles").iterdir())


@pytest.mark.parametrize("text", ["", "0", "64,", "a", "64,8,8", "-5", "64,-1", "1.5"])
def test_a_tile_request_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="auto, none, a side"):
        TileRequest.parse(text)


@pytest.mark.parametrize("ending, dtype, orientation", [("tif", "uint16", 6), ("png", "uint8", 1), ("fits", "float32", 1)])
def test_metadata_survive_also_by_way_of_another_process(tmp_path, ending, dtype, orientation):
    fields = {"icc-profile-data": b"\0" * 16 + b"RGB " + b"\0" * 108}
    metadata = Metadata(orientation=orientation, resolution=(11.0, 7.0), fields=fields)
    source = tmp_path / f"in.{ending}"
    pixels = picture(dtype)
    write_image(source, pixels, Image(pixels, metadata=metadata))
    if ending == "fits":
        with fits.open(source, mode="update") as hdus:
            hdus[0].header["OBJECT"] = "M1"
            hdus.append(fits.ImageHDU(np.arange(6.0).reshape(2, 3)))
    tiled = plan(source, tmp_path / "tiles")
    repeat_the_input(tiled)
    given = read_image(source)
    for name, each in (("a", tiled), ("b", TiledPlan.load(tmp_path / "tiles"))):
        out = tmp_path / f"{name}.{ending}"
        each.write(out, each.assemble())
        write_image(tmp_path / f"memory.{ending}", each.assemble().read(), given)
        assert out.read_bytes() == (tmp_path / f"memory.{ending}").read_bytes()


def test_a_folder_loses_nothing_but_the_plans_own_files(tmp_path):
    kept = [tmp_path / name for name in ("photo.raw", "result.png", "notes.json", "tile_0.npy", ".hidden")]
    for path in kept:
        path.write_text("mine")
    (tmp_path / ".tile_0_0.0123456789ab.npy").write_text("half")
    plan(Image(picture()), tmp_path)
    plan(Image(picture()), tmp_path, tile="48")
    plan(Image(picture()), tmp_path, "deblur", {"kernel": np.ones((3, 3)) / 9})
    planning.remove(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_tiles_know_where_the_blocks_of_a_jpeg_lie(tmp_path, suffix):
    import PIL.Image
    from skimage.data import astronaut

    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    jpeg = tmp_path / "in.jpg"
    PIL.Image.fromarray(astronaut()[40:240, 150:350]).save(jpeg, quality=25, subsampling="4:2:0", exif=exif)
    source = tmp_path / f"in.{suffix}"
    if suffix == "png":
        PIL.Image.open(jpeg).save(source)  # its pixels as they are stored, nothing said of turning
    plan(source, tmp_path / "tiles", "dejpeg", tile="88,12")
    tiled = TiledPlan.load(tmp_path / "tiles")
    whole = plan_restoration(read_image(source), "dejpeg", {}, SETTINGS).problem
    wanted = whole.parameters["jpeg"]["steps"]
    assert wanted[0] is not None
    noticed = 0
    for tile in tiled.tiles:
        image, _, _, made = tiled.tile_plan(tile.index)
        assert made.problem.parameters["jpeg"]["steps"] == wanted
        # The tile's own pixels show the steps where the plan says that blocks begin, and nowhere else.
        unit, coding = made.values.to_unit(image.pixels), image.metadata.jpeg
        assert quantisation.checked(unit, coding) is not None
        noticed += quantisation.checked(unit, replace(coding, origin=(coding.origin[0] + 3, coding.origin[1] + 2))) is None
    assert noticed > len(tiled.tiles) // 2
    repeat_the_input(tiled)
    assert (tiled.assemble().read() == read_image(source).pixels).all()


def test_an_image_that_shows_no_steps_has_none_in_any_tile(tmp_path):
    import io

    import PIL.Image
    from skimage.data import astronaut

    # A corner was a JPEG once; what is in the middle of the whole, a plain one, does not say so.
    file = io.BytesIO()
    PIL.Image.fromarray(astronaut()[:96, 150:246]).save(file, "JPEG", quality=30)
    pixels = np.full((1400, 96, 3), 200, np.uint8)
    pixels[:96] = PIL.Image.open(file)
    assert quantisation.found_in(Image(pixels[:96]).pixels.astype(np.float32) / 255) is not None
    plan(Image(pixels), tmp_path, "dejpeg", tile="96,8")
    tiled = TiledPlan.load(tmp_path)
    assert all("jpeg" not in tiled.tile_plan(index)[3].problem.parameters for index in (0, 1))
    restore_tile(tiled, 0)
    assert "jpeg" not in tiled_record(tiled, {})["parameters"]

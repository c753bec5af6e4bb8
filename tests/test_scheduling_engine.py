"""dipengine.Engine: the results of dipengine.restore() for many images, in the order of completion, with back-pressure."""

import threading
import time

import numpy as np
import pytest

import dipengine
from conftest import synthetic_picture

FIT = {"channels": 8, "levels": 2, "iterations": 20, "stop": "fixed"}


def images(count):
    return [np.rint(synthetic_picture(16 + i, 24) * 255).astype(np.uint8) for i in range(count)]


@pytest.fixture(scope="module")
def engine():
    with dipengine.Engine(workers=2, threads=2) as engine:
        yield engine


def test_the_bits_of_restore(engine):
    image = images(1)[0]
    mask = np.ones((16, 24), bool)
    mask[3:7, 5:9] = False
    kernel = np.ones((1, 3)) / 3
    asked = {
        "denoise": engine.submit(image, sigma=25, **FIT),
        "inpaint": engine.submit(image, "inpaint", mask=mask, **FIT),
        "superres": engine.submit(np.float32(image[..., 0]), "superres", factor=2, **FIT),
        "deblur": engine.submit(image, "deblur", kernel=kernel, **FIT),
    }
    alone = {
        "denoise": dipengine.denoise(image, sigma=25, **FIT),
        "inpaint": dipengine.inpaint(image, mask, **FIT),
        "superres": dipengine.super_resolve(np.float32(image[..., 0]), 2, **FIT),
        "deblur": dipengine.deblur(image, kernel, **FIT),
    }
    for task, expected in alone.items():
        result = asked[task].result(timeout=120)
        assert result.image.dtype == expected.image.dtype and np.array_equal(result.image, expected.image), task
        assert result.history.loss == expected.history.loss
        for name, value in expected.generator.parameters.items():
            assert np.array_equal(result.generator.parameters[name], value)


def test_flash_with_its_guide(engine):
    image = images(1)[0]
    result = engine.submit(image, "flash", guide=image, **FIT).result(timeout=120)
    assert np.array_equal(result.image, dipengine.flash(image, image, **FIT).image)


def test_alpha_truth_and_axes(engine):
    image = np.moveaxis(images(1)[0], -1, 0)
    four = np.concatenate([image, np.full((1, 16, 24), 77, np.uint8)])
    result = engine.submit(four, axes="CHW", alpha=True, truth=four, **FIT).result(timeout=120)
    assert result.image.shape == (4, 16, 24) and (result.image[3] == 77).all()
    assert result.record["psnr"] > 5


def test_torch_in_torch_out(engine):
    torch = pytest.importorskip("torch")
    result = engine.submit(torch.from_numpy(images(1)[0]), **FIT).result(timeout=120)
    assert isinstance(result.image, torch.Tensor)


def test_map_yields_in_the_order_of_completion(engine):
    lengths = [200, 5, 5, 5]
    futures = []
    for index, (image, iterations) in enumerate(zip(images(4), lengths)):
        future = engine.submit(image, **{**FIT, "iterations": iterations})
        future.index = index
        futures.append(future)
    assert {len(f.result(timeout=120).history.loss) for f in futures} == {200, 5}
    seen = [(done.index, done.result().image.shape) for done in engine.map(images(5), **FIT)]
    assert sorted(seen) == [(i, (16 + i, 24, 3)) for i in range(5)]


def test_map_takes_images_no_faster_than_they_are_worked_on():
    taken = []

    def source():
        for index, image in enumerate(images(12)):
            taken.append(index)
            yield image

    with dipengine.Engine(workers=1, threads=1, queue=2) as engine:
        most = 0
        for number, done in enumerate(engine.map(source(), **FIT), 1):
            most = max(most, len(taken) - number)
            done.result()
    assert len(taken) == 12
    assert most <= 4  # one at work, two waiting, one in the hand


def test_submit_waits_where_enough_is_waiting():
    with dipengine.Engine(workers=1, threads=1, queue=1) as engine:
        slow = [engine.submit(images(1)[0], **{**FIT, "iterations": 20000}) for _ in range(2)]
        third: list = []
        waiting = threading.Thread(target=lambda: third.append(engine.submit(images(1)[0], **FIT)))
        waiting.start()
        waiting.join(1.0)
        assert waiting.is_alive() and not third
        slow[0].result(timeout=120)
        waiting.join(60)
        assert third


def test_one_bad_image_fails_alone(engine):
    bad = engine.submit("/nowhere/image.png", **FIT)
    good = engine.submit(images(1)[0], **FIT)
    with pytest.raises(dipengine.ImageError, match="does not exist"):
        bad.result(timeout=60)
    assert good.result(timeout=60).image.shape == (16, 24, 3)


def test_a_file_comes_back_as_an_array(engine, tmp_path):
    from dipengine.images import Image, write_image

    pixels = images(1)[0]
    write_image(tmp_path / "a.png", pixels, Image(pixels))
    result = engine.submit(tmp_path / "a.png", **FIT).result(timeout=60)
    assert np.array_equal(result.image, dipengine.denoise(pixels, **FIT).image)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"colour": 1}, "no option 'colour'"),
        ({"task": "paint"}, "There is no task"),
        ({"task": "custom"}, "takes a function"),
        ({"task": "superres"}, "superres needs factor"),
        ({"iterations": 0}, "iterations is 0"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"preset": "best"}, "preset"),
        ({"axes": "HW"}, "does not fit axes"),
        ({"threads": 3}, "threads is the engine's"),
        ({"device": "cpu"}, "device is the engine's"),
        ({"init_from": "gone.safetensors"}, "gone.safetensors"),
    ],
)
def test_wrong_use_is_told_at_once(engine, arguments, said):
    with pytest.raises(dipengine.InputError, match=said):
        engine.submit(images(1)[0], **{**FIT, **arguments})


def test_weights_to_begin_with(engine):
    image = images(1)[0]
    first = dipengine.denoise(image, **FIT)
    expected = dipengine.denoise(image, init_from=first.generator, **FIT)
    result = engine.submit(image, init_from=first.generator, **FIT).result(timeout=120)
    assert np.array_equal(result.image, expected.image) and result.record["init_from"] == expected.record["init_from"] is not None


def test_callbacks_may_submit_and_close():
    image, done = images(1)[0], []
    engine = dipengine.Engine(workers=1, threads=1, queue=1)
    finished = threading.Event()

    def again(future):
        done.append(future.result())
        if len(done) == 1:
            for _ in range(3):
                engine.submit(image, **FIT).add_done_callback(again)
        if len(done) == 4:
            engine.close()
            finished.set()

    engine.submit(image, **FIT).add_done_callback(again)
    assert finished.wait(60)
    engine.close()


def test_what_is_no_image_raises_from_its_future_alone(engine):
    futures = list(engine.map([images(1)[0], np.zeros((0, 3)), images(1)[0]], **FIT))
    assert sorted(future.index for future in futures) == [0, 1, 2]
    bad = next(future for future in futures if future.index == 1)
    with pytest.raises(dipengine.InputError, match="no pixels"):
        bad.result()
    with pytest.raises(dipengine.InputError, match="superres needs factor"):
        next(engine.map(images(1), "superres", **FIT))


def test_a_truth_in_a_file(engine, tmp_path):
    from dipengine.images import Image, write_image

    image = images(1)[0]
    write_image(tmp_path / "t.png", image, Image(image))
    record = engine.submit(image, truth=tmp_path / "t.png", **FIT).result(timeout=60).record
    assert record["psnr"] == engine.submit(image, truth=image, **FIT).result(timeout=60).record["psnr"] > 5


def test_leaving_by_an_error_gives_the_rest_up():
    with pytest.raises(ZeroDivisionError):
        with dipengine.Engine(workers=1, threads=1) as engine:
            future = engine.submit(images(1)[0], **{**FIT, "iterations": 1_000_000})
            time.sleep(0.5)
            raise ZeroDivisionError
    with pytest.raises(dipengine.DipEngineError, match="closed before this image was done"):
        future.result(timeout=10)
    with pytest.raises(dipengine.DipEngineError, match="engine is closed"):
        engine.submit(images(1)[0], **FIT)


def test_a_limit_of_time_raises_from_the_future():
    with dipengine.Engine(workers=1, threads=1, limit_time=0.2) as engine:
        future = engine.submit(images(1)[0], **{**FIT, "iterations": 1_000_000})
        with pytest.raises(dipengine.FitError, match="not done after 0.2 s"):
            future.result(timeout=60)

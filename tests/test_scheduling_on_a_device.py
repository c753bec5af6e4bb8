"""Images of a batch whose fits run on a GPU: brought there when they are decoded, seen again by the host when they are encoded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conftest import TINY  # noqa: E402
from device_arrays import COMPARED, HEIGHT, KINDS, WIDTH, given_to, kind_of, mask_of, noisy, stand_in  # noqa: E402, F401
from dipengine.api import given_settings  # noqa: E402
from dipengine.errors import OutOfMemory  # noqa: E402
from dipengine.fitting import on_device  # noqa: E402
from dipengine.images import Image, read_image, write_image  # noqa: E402
from dipengine.restoration import Restoration  # noqa: E402
from dipengine.scheduling import worker  # noqa: E402
from dipengine.scheduling.cohorts import Cohorts  # noqa: E402
from dipengine.scheduling.jobs import Request  # noqa: E402
from dipengine.scheduling.messages import Start  # noqa: E402
from dipengine.scheduling.work import work_of  # noqa: E402
from dipengine.scheduling.worker import WorkerOptions  # noqa: E402

SETTINGS = given_settings({**TINY, "iterations": 4})[0]


def written(name, pixels, **more):
    write_image(name, pixels, Image(pixels), **more)
    return name


def of_fits(name):
    """Two missing pixels among counts."""
    from astropy.io import fits

    counts = noisy("float32", 1)[:, :, 0] * 900
    counts[3, 4:6] = np.nan
    fits.PrimaryHDU(counts).writeto(name)
    return name


CASES = {
    "photograph, truth": (lambda: written("a.png", noisy()), "denoise", {"sigma": 25.0}),
    "sixteen bits, alpha": (
        lambda: written("a.tif", noisy("uint16"), alpha=(mask_of() * 65535).astype(np.uint16)), "denoise", {}
    ),
    "FITS": (lambda: of_fits("a.fits"), "denoise", {"noise": "poisson", "gain": 1.5}),
    "mask turned": (lambda: written("a.png", noisy()), "inpaint", {"mask": "mask.png", "invert_mask": True}),
    "guide": (lambda: written("a.png", noisy()), "flash", {"guide": "guide.png"}),
    "larger": (lambda: written("a.png", noisy(), alpha=(mask_of() * 255).astype(np.uint8)), "superres", {"factor": 2}),
    "kernel": (lambda: written("a.tif", noisy("float32")), "deblur", {"kernel": "kernel.txt", "sigma": 0.05}),
}


def started(path, task, options, device, staging):
    truth = "truth.png" if options.get("sigma") == 25.0 else None
    request = Request(task, options, SETTINGS, truth=truth, keep_generator=True)
    ending = Path(path).suffix
    start = Start(1, 1, path, request, f"out{ending}", None if staging is None else str(staging), None, None)
    return work_of(start, WorkerOptions(device=device), 1, Cohorts())


def finished(work):
    assert work.begin(1)
    while not work.settled():
        work.turn(10.0)
    return work.finish()


@pytest.fixture
def side_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written("truth.png", noisy(seed=9))
    written("mask.png", (mask_of() * 255).astype(np.uint8)[:, :, None])
    written("guide.png", noisy(seed=4))
    Path("kernel.txt").write_text("1 2 1\n")
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_an_image_stays_on_the_device_of_its_fit_until_it_is_encoded(stand_in, side_files, monkeypatch, name, kind):
    make, task, options = CASES[name]
    path = make()
    expected = finished(started(path, task, options, "cpu", side_files / "cpu"))
    brought = []
    monkeypatch.setattr(on_device, "way_to", lambda device: lambda array: brought.append((device, array.shape)) or given_to(kind, array))
    trips, home = stand_in["trips"], []
    trips.clear()
    work = started(path, task, options, "cuda:0", side_files / "cuda")
    assert brought and {device for device, _ in brought} == {"cuda:0"} and brought[0][1][:2] == (HEIGHT, WIDTH)
    assert kind_of(work._image.pixels) == kind_of(work._plan.problem.target) == kind

    def brought_home(restored, real=Restoration.on_host):
        # An alpha channel is enlarged by libvips, on the host.
        assert task == "superres" and {len(shape) for shape in trips} == {2} or trips == []
        restored = real(restored)
        home.extend(trips)
        return restored

    monkeypatch.setattr(Restoration, "on_host", brought_home)
    done = finished(work)
    assert home and trips == home
    assert done.staged == expected.staged and done.files == expected.files
    here, there = side_files / "cpu", side_files / "cuda"
    records = [json.loads((place / done.staged[1]).read_text()) for place in (here, there)]
    for name in COMPARED:
        wanted = records[0][name]
        assert records[1][name] == (pytest.approx(wanted, rel=1e-9) if isinstance(wanted, float) else wanted), name
    outputs = [read_image(place / done.staged[2]) for place in (here, there)]
    np.testing.assert_array_equal(outputs[1].pixels, outputs[0].pixels)
    assert (outputs[0].alpha is None) == (outputs[1].alpha is None)
    if outputs[0].alpha is not None:
        np.testing.assert_array_equal(outputs[1].alpha, outputs[0].alpha)


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_back_to_the_engine_is_numpys(stand_in, side_files, monkeypatch, kind):
    monkeypatch.setattr(on_device, "way_to", lambda device: lambda array: given_to(kind, array))
    work = started(written("a.png", noisy()), "denoise", {}, "cuda:0", None)
    restored = finished(work).value
    assert isinstance(restored.pixels, np.ndarray) and isinstance(restored.generator.delivered, np.ndarray)
    assert restored.pixels.dtype == np.uint8 and restored.record["input"]["sha256"] == read_image("a.png").sha256


def test_memory_that_runs_out_on_the_way_is_the_fits(stand_in, side_files, monkeypatch):
    def full(array):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(on_device, "way_to", lambda device: full)
    path = written("a.png", noisy())
    with pytest.raises(OutOfMemory):
        started(path, "denoise", {}, "cuda:0", side_files / "out")


def test_arrays_that_torch_does_not_take_as_they_are(monkeypatch):
    """Read-only, of another byte order, with strides: each comes as the same values."""
    monkeypatch.setattr(on_device, "library", lambda device: "torch")
    put = on_device.way_to("cpu")
    values = noisy("uint16")
    for array in (values.astype(">u2"), values[:, ::-1], np.frombuffer(values.tobytes(), np.uint16).reshape(values.shape)):
        np.testing.assert_array_equal(put(array).numpy(), array)


def test_without_a_gpu_library_the_image_stays_on_the_host(monkeypatch):
    monkeypatch.setattr(on_device, "find_spec", lambda name: None)
    image = Image(noisy())
    assert on_device.library("cuda:0") == "numpy" and on_device.bring(image, "cuda:0") is image
    assert on_device.library("cpu") == "numpy"


def test_the_ledger_knows_whose_arrays_they_were(monkeypatch):
    from dipengine.fitting import device

    monkeypatch.setattr(device, "cuda_name", lambda name: f"card of {name}")
    monkeypatch.setattr(on_device, "library", lambda name: "cupy")
    told = worker.environment_of("cuda:1")
    assert (told["device"], told["arrays"]) == ("card of cuda:1", "cupy")
    assert "arrays" not in worker.environment_of("cpu") and worker.environment_of("cpu")["device"] == "cpu"


@pytest.mark.gpu
def test_a_batch_on_a_gpu_comes_to_what_a_call_comes_to(side_files):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device that PyTorch can use")
    path = written("a.png", noisy())
    work = started(path, "denoise", {"sigma": 25.0}, "cuda:0", side_files / "out")
    assert work._image.pixels.device.type == "cuda" and work._plan.problem.target.device.type == "cuda"
    done = finished(work)
    import dipengine

    given = {**TINY, "iterations": 4, "device": "cuda:0", "sigma": 25.0}
    expected = dipengine.denoise(read_image(path).pixels, **given).image
    np.testing.assert_array_equal(read_image(side_files / "out" / done.staged[-1]).pixels, expected)

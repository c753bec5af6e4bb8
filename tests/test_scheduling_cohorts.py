"""Images in the slots of one plan: who shares one, who waits, what is kept, and the bits of fits alone, also when they go on."""

import numpy as np
import pytest

import dipengine
from conftest import synthetic_picture
from dipengine import environment
from dipengine.errors import OutOfMemory
from dipengine.fitting.settings import Settings
from dipengine.images import Image, read_image, write_image
from dipengine.kernels import backend
from dipengine.restoration import plan_restoration
from dipengine.scheduling.batch import Batch
from dipengine.scheduling.canvases import Canvases
from dipengine.scheduling.cohorts import Cohorts, Room
from dipengine.scheduling.jobs import Request
from dipengine.scheduling.pool import DevicePlan, Pool
from dipengine.scheduling.sources import jobs_of
from dipengine.scheduling.worker import WorkerOptions

pytestmark = pytest.mark.skipif(not backend.native_available(), reason="needs the native core")
FIT = {"channels": (8,), "levels": 2, "iterations": 40, "stop": "fixed"}
SETTINGS = Settings(**FIT, device="cpu", threads=1)
BUDGET = 1 << 30


def picture(height, width=24, seed=0):
    noise = np.random.default_rng(seed).normal(0, 20, (height, width, 3))
    return np.rint(np.clip(synthetic_picture(height, width) * 255 + noise, 0, 255)).astype(np.uint8)


def plan_of(height, width=24, settings=SETTINGS):
    return plan_restoration(Image(picture(height, width)), "denoise", {}, settings)


def opened(cohorts, plan):
    room = cohorts.room_for(plan)
    return room.cohort.open(plan.problem, plan.recipe, 0, plan.stop)


def close(cohorts, slot):
    room = Room(slot.cohort)
    slot.close()
    cohorts.left(room)


def test_images_of_one_canvas_share_a_plan_and_others_do_not():
    cohorts = Cohorts(3, BUDGET)
    slots = [opened(cohorts, plan_of(height)) for height in (18, 20, 19)]
    assert {slot.cohort for slot in slots} == {slots[0].cohort}
    assert opened(cohorts, plan_of(17)).cohort is not slots[0].cohort  # it is full
    assert opened(cohorts, plan_of(40)).cohort is not slots[0].cohort  # another canvas
    cohort = slots[1].cohort
    close(cohorts, slots[1])
    assert opened(cohorts, plan_of(20)).cohort is cohort


def test_what_a_fit_holds_is_its_share_of_a_full_plan():
    alone, shared = Cohorts(1, BUDGET).bytes_of(plan_of(20)), Cohorts(4, BUDGET).bytes_of(plan_of(20))
    cohort = Cohorts(4, BUDGET).room_for(plan_of(20)).cohort
    assert cohort.arena_bytes / 4 <= shared < alone


def test_another_plan_waits_where_it_has_no_room_beside_the_first():
    first, second = plan_of(20), plan_of(40)
    needed = Cohorts(2).room_for(second).cohort.arena_bytes
    cohorts = Cohorts(2, needed)
    slot = opened(cohorts, first)
    assert cohorts.room_for(second) is None
    close(cohorts, slot)
    assert cohorts.room_for(second).cohort.arena_bytes == needed


def test_memory_decides_how_many_slots_a_plan_has():
    plan = plan_of(20)
    two, three = (Cohorts(slots).room_for(plan).cohort.arena_bytes for slots in (2, 3))
    assert Cohorts(16, three).room_for(plan).cohort.slots == 3
    assert Cohorts(16, three - 1).room_for(plan).cohort.slots == 2
    assert Cohorts(16, two - 1).room_for(plan).cohort.slots == 1


def test_memory_that_is_not_there_all_the_same_halves_the_slots(monkeypatch):
    plan = plan_of(20)
    there = Cohorts(2).room_for(plan).cohort.arena_bytes
    monkeypatch.setattr(environment, "memory", lambda: there)
    cohorts = Cohorts(8, BUDGET)
    assert cohorts.room_for(plan).cohort.slots == 2
    monkeypatch.setattr(environment, "memory", lambda: 1000)
    with pytest.raises(OutOfMemory):
        Cohorts(8, BUDGET).room_for(plan)


def test_a_worker_of_one_slot_keeps_a_small_plan_for_the_next_image():
    cohorts = Cohorts(1, BUDGET)
    slot = opened(cohorts, plan_of(20))
    cohort = slot.cohort
    close(cohorts, slot)
    assert opened(cohorts, plan_of(19)).cohort is cohort
    assert Cohorts(1, cohort.arena_bytes * 10).room_for(plan_of(20)).cohort is None  # too large to be kept by nobody's count
    assert Cohorts(1, None).room_for(plan_of(20)).cohort is None


def test_fits_that_nobody_knows_the_memory_of_run_one_at_a_time():
    pytest.importorskip("torch")
    plan = plan_of(20, settings=Settings(**FIT, device="cpu", threads=1, kernels="torch"))
    cohorts = Cohorts(4, BUDGET)
    room = cohorts.room_for(plan)
    assert room.cohort is None and cohorts.room_for(plan) is None
    assert cohorts.room_for(plan_of(20)).cohort is not None  # others share theirs beside it
    cohorts.left(room)
    assert cohorts.room_for(plan) is not None


def test_headers_tell_who_can_share_a_plan(tmp_path):
    for name, height in (("a", 18), ("b", 20), ("c", 40)):
        write_image(tmp_path / f"{name}.png", picture(height), Image(picture(height)))
    (tmp_path / "d.png").write_bytes(b"nonsense")
    canvases, request = Canvases(), Request(settings=SETTINGS)
    a, b, c = (canvases.of(request, str(tmp_path / f"{name}.png")) for name in "abc")
    assert a == b != c and a is not None
    assert canvases.of(request, Image(picture(17))) == a
    assert canvases.of(Request("superres", {"factor": 2}, SETTINGS), str(tmp_path / "a.png")) not in (a, None)
    assert canvases.of(request, str(tmp_path / "d.png")) is None
    assert canvases.of(Request("inpaint", {"mask": "gone.png"}, SETTINGS), str(tmp_path / "a.png")) is not None


def pool(slots=3, threads=2, **options):
    return Pool([DevicePlan("cpu", 1, slots, BUDGET, threads)], WorkerOptions(**options))


def test_slots_give_the_bits_of_fits_alone():
    """Nine images on three canvases through three slots; of three lengths; one cannot be fitted."""
    images = [picture(height, seed=i) for i, height in enumerate((18, 40, 20, 19, 29, 17, 38, 20, 18))]
    asked = [FIT | {"iterations": 40 + 30 * (i % 3)} for i in range(9)]
    alone = [dipengine.denoise(image, **options) for image, options in zip(images, asked)]
    with dipengine.Engine(executors=pool(checkpoint_every=float("inf"))) as engine:
        futures = [engine.submit(image, **options) for image, options in zip(images, asked)]
        bad = engine.submit(picture(20), "inpaint", mask=np.ones((3, 3), bool), **FIT)
        results = [future.result(timeout=120) for future in futures]
        with pytest.raises(dipengine.InputError):
            bad.result(timeout=60)
    for expected, result in zip(alone, results):
        assert np.array_equal(result.image, expected.image) and result.history.loss == expected.history.loss


def test_a_batch_in_slots_goes_on_where_it_was_stopped(tmp_path):
    settings = Settings(**(FIT | {"iterations": 1600}), device="cpu")
    for i, height in enumerate((18, 20, 19, 17, 40)):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_image(tmp_path / "in" / f"{i}.png", picture(height, seed=i), Image(picture(height)))

    def run(folder, slots, progress=None):
        batch = Batch(jobs_of(str(tmp_path / "in"), tmp_path / folder, Request(settings=settings)), tmp_path / folder)
        try:
            return batch.run(pool(slots, checkpoint_every=0.05), progress=progress)
        finally:
            batch.close()

    def checkpoints():
        return len(list((tmp_path / "slots/.dipengine/checkpoints").glob("*.safetensors")))

    assert run("alone", 1).done == 5
    # Stopped when each slot has written one, early in fits of seconds: none ends before it hears of it.
    assert run("slots", 3, lambda tally, under_way: checkpoints() == 3).interrupted
    assert checkpoints() == 3
    tally = run("slots", 3)
    assert (tally.done, tally.failed) == (5, [])
    for i in range(5):
        assert np.array_equal(read_image(tmp_path / f"slots/{i}.png").pixels, read_image(tmp_path / f"alone/{i}.png").pixels)

"""The driver's step with images in tiles, over executors that a test plays."""

import json

from dipengine.scheduling.messages import Died, Drop, Ready, Tiled
from dipengine.scheduling.pool import DevicePlan
from scenes import HERE, NoPlaces, Scene


def test_a_large_image_becomes_tiles_then_one_image():
    scene = Scene(2)
    scene.driver._places = NoPlaces()
    scene.ready()
    first, second = scene.workers
    start = first.starts()[0]
    first.say(Tiled(start.job, start.attempt, (0, 2, 3), 4))  # tile 1 was done by an engine before
    scene.driver.step()
    assert first.starts()[-1].stage == "tile" and first.starts()[-1].tile == 0
    assert scene.state(scene.rows[0])["state"] == "running" and scene.driver.progress() == 0.25
    scene.plan(second)
    scene.finish(second)  # the other image makes room: tiles come before images that came later
    assert second.starts()[-1].tile == 2
    scene.plan(first)
    scene.finish(first)
    assert first.starts()[-1].tile == 3
    for worker in (first, second):
        scene.plan(worker)
        scene.finish(worker)
    blend = next(s for worker in scene.workers for s in worker.starts() if s.stage == "blend")
    assert (blend.job, blend.attempt) == (1, 1)
    worker = first if blend in first.starts() else second
    scene.plan(worker)
    scene.finish(worker)
    assert scene.ended == [("done", 2), ("done", 1)] and scene.driver.idle
    assert scene.state(scene.rows[0])["attempts"] == 1


def test_a_tile_that_fails_ends_the_others():
    scene = Scene(2)
    scene.driver._places = NoPlaces()
    scene.ready()
    first, second = scene.workers
    scene.plan(second)
    start = first.starts()[0]
    first.say(Tiled(start.job, start.attempt, (0, 1, 2, 3), 4))
    scene.driver.step()
    scene.finish(second)
    assert (first.starts()[-1].tile, second.starts()[-1].tile) == (0, 1)
    scene.fail(first, "final", "It is not finite.")
    assert scene.ended == [("done", 2), ("failed", 1, "Tile 0: It is not finite.")]
    assert any(isinstance(message, Drop) for message in second.sent)
    assert scene.driver.idle and len(first.starts()) == 2 and len(second.starts()) == 2


def test_tiles_of_one_image_on_a_worker_that_dies():
    scene = Scene(1, device=DevicePlan("cuda:0", 1, 2, None, 1), retries=0)
    scene.driver._places = NoPlaces()
    scene.ready()
    worker = scene.workers[0]
    start = worker.starts()[0]
    worker.say(Tiled(start.job, start.attempt, (0, 1, 2), 3))
    scene.driver.step()
    assert [start.stage for start in worker.starts()] == ["image", "tile", "tile"]
    worker.say(Died("boom"))
    worker.say(Ready(HERE))
    scene.driver.step()
    assert scene.ended == [("failed", 1, "Tile 0: Tried once: boom")] and scene.driver.idle


def test_tiles_of_an_engine_that_stops_leave_their_image_queued():
    scene = Scene(1)
    scene.driver._places = NoPlaces()
    scene.ready()
    start = scene.workers[0].starts()[0]
    scene.workers[0].say(Tiled(start.job, start.attempt, (0, 1, 2), 3))
    scene.driver.step()
    scene.driver.stop(1)
    assert scene.ledger.counts() == {"queued": 1}


def test_tiles_are_fixed_at_the_first_plan_and_said_when_they_change():
    scene = Scene(1, device=DevicePlan("cpu", 1, 1, None, 1))
    scene.driver._places = NoPlaces()
    scene.ready()
    worker = scene.workers[0]
    start = scene.plan(worker)
    worker.say(Died("boom"))
    worker.say(Ready(HERE))
    scene.driver.step()
    line = scene.state(scene.rows[0])
    assert json.loads(line["environment"])["tiling"] == "none" and line["note"] is None
    worker.say(Tiled(start.job, start.attempt + 1, (0,), 1, "4 of 64x64, overlap 8"))
    scene.driver.step()  # the tile begins, which writes nothing
    worker.say(Died("boom"))
    worker.say(Ready({"device": "cpu", "bf16": False}))
    scene.driver.step()
    scene.driver.stop(0)
    line = scene.state(scene.rows[0])
    assert json.loads(line["environment"])["tiling"] == "none"
    assert "begun with tiles: none, so the values differ: now 4 of 64x64, overlap 8" in line["note"]

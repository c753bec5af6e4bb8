"""`dipengine bench render`: its peers paint the picture that ours paints, its report says what was measured, its errors come early."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dipengine.bench import machine, rendering, turns
from dipengine.bench.setting import Setting
from dipengine.cli.main import main
from dipengine.errors import InputError
from dipengine.export.consolidate import consolidate
from dipengine.generators.architecture import Hourglass
from dipengine.kernels import backend

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not backend.native_available(), reason="needs the native core")


def generator(**changes):
    architecture = Hourglass.regular(3, channels=(8, 12, 10), **{"upsample": "nearest"} | changes)
    return rendering.random_generator(Setting(architecture, 32, 48, "fp32", 1))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(machine, "PRODUCT", 64)
    monkeypatch.setattr(turns, "LEAST", 0.0)


@pytest.mark.parametrize("changes", [{}, {"upsample": "bilinear"}, {"channels_skip": 0}])
def test_every_way_of_pytorch_paints_our_picture(changes):
    import torch

    from dipengine.bench.rendering_peers import WAYS, EagerPainting, plain_network
    from dipengine.export.exporter import verified
    from dipengine.rendering.renderer import Renderer

    given = generator(**changes)
    frozen = consolidate(given, enough=0, threads=1)
    # Statistics of norms behind a bias that they cancel: the peers must put it back.
    frozen.parameters["level0.down1.conv.bias"][:] = 0.5
    ours = Renderer(verified(given, frozen, "fp32", "seed", 1)[0], threads=1).render().transpose(2, 0, 1)[None]
    network = plain_network(given, frozen)
    z = np.ascontiguousarray(given.code.make(given.canvas).transpose(2, 0, 1)[None])
    for name, way in WAYS.items():
        difference = np.abs(EagerPainting(network, z, way).paint() - ours)
        # bf16 keeps 8 bits of every activation, and oneDNN's Winograd on AVX2 is off by 5e-5; two pictures of different weights
        # differ by 0.1 and more on average.
        assert (difference.mean() < 0.02 if way.bf16 else difference.max() < 1e-4), name
    with torch.inference_mode():
        exact = network.double()(torch.from_numpy(z).double()).numpy()
    assert np.abs(exact - ours).max() < 1e-5


def test_the_report_holds_what_the_table_shows(quick, tmp_path, capsys):
    words = ["bench", "render", "--size", "32x48", "--levels", "3", "--channels", "8", "--threads", "1", "--rounds", "2"]
    assert main([*words, "--json", str(tmp_path / "r.json")]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    shown = capsys.readouterr().out
    rows = {row["name"]: row for row in report["sides"]}
    assert {"ours, fp32", "ours, fp16", "ours, int8", "eager float32", "float32 channels_last"} <= set(rows)
    for name, row in rows.items():
        assert name in shown and len(row["seconds"]["samples"]) == 2
        ratio = [theirs / own for theirs, own in zip(row["seconds"]["samples"], rows["ours, fp32"]["seconds"]["samples"])]
        assert name == "ours, fp32" or row["ratio"]["samples"] == pytest.approx(ratio)
    assert rows["eager float32"]["psnr"] > 90 and 20 < rows["ours, int8"]["psnr"] < 90 and not report["notes"]
    assert rows["ours, fp16"]["file_bytes"] < rows["ours, fp32"]["file_bytes"]
    exports = [name for name in rows if name.startswith("plain torch.onnx.export")]
    assert len(exports) + len(report["skipped"]) == 2
    assert all(rows[name]["psnr"] > 90 for name in exports)


def test_a_peer_of_another_network_is_told(quick, monkeypatch):
    monkeypatch.setattr(rendering, "_others", lambda given, frozen, threads, say: (
        {"impostor": type("Black", (), {"paint": lambda self: np.zeros((1, 3, 32, 48), np.float32)})()}, []))
    report = rendering.measure(generator(), threads=1, rounds=1)
    assert any("impostor paints another picture" in note for note in report["notes"])
    assert "impostor" in rendering.table(report)


def test_a_network_that_the_peers_have_not_is_measured_alone(quick):
    report = rendering.measure(generator(padding="zero"), threads=1, rounds=1)
    assert len(report["sides"]) == 3 and "reflection" in report["skipped"][0]["reason"]


@pytest.mark.parametrize("changes", [{"rounds": 0}, {"threads": 0}])
def test_impossible_wishes_are_refused_first(changes, monkeypatch):
    monkeypatch.setattr(rendering, "consolidate", lambda *arguments, **options: pytest.fail("worked first"))
    with pytest.raises(InputError):
        rendering.measure(generator(), **{"rounds": 1, "threads": 1} | changes)

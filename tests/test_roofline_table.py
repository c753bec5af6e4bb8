"""The computed table of CUDA kernels by layers (bench/roofline_cuda.py): complete, of kernels that there are, and nothing measured."""

from __future__ import annotations

import json
from itertools import product

import pytest
from cuda_compiler import REGISTERS, ROOT

from dipengine.bench.operations import layers_of
from dipengine.generators.architecture import Hourglass

TABLE = ROOT / "bench/results/roofline_h200.json"
pytestmark = pytest.mark.skipif(not TABLE.exists(), reason="needs the source tree")


@pytest.mark.parametrize(("upsample", "dtype", "size"), list(product(("nearest", "bilinear"), ("bf16", "float32"), (256, 512))))
def test_every_layer_of_the_papers_network_is_in_the_table(upsample, dtype, size):
    table = json.loads(TABLE.read_text())
    assert table["measured"] is False
    (network,) = (one for one in table["networks"] if (one["upsample"], one["dtype"]) == (upsample, dtype))
    launches = network["launches"][str(size)]
    rows = [dict(zip(launches["columns"], row, strict=True)) for row in launches["rows"]]
    assert {row["kernel"] for row in rows} <= set(REGISTERS)
    for row in rows:
        assert 0 < row["registers"] <= REGISTERS[row["kernel"]] and row["blocks_an_sm"] >= 1
        assert row["shared"] + row["static_shared"] <= network["assumed"]["block_shared"]
        least = max(row["bytes"] / network["assumed"]["bandwidth"], row["operations"] / network["assumed"]["flops"])
        assert row["bytes"] > 0 and row["floor_us"] == pytest.approx(1e6 * least, abs=1e-4)
    for layer in layers_of(Hourglass(upsample=(upsample,) * 5), size, size):
        own = [row for row in rows if row["layer"] == layer.name]
        wants = {"forward", "weights"} | ({"data"} if any(part.raw for part in layer.parts) else set())
        steps = {row["step"] for row in own if row["operations"]}
        assert wants <= steps | ({"weights", "data"} if "both" in steps else set())
        for row in own:
            assert not row["operations"] or ("float32" in row["kernel"]) == (dtype == "float32")

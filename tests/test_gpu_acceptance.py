"""The driver of `make gpu-acceptance`, over a fake acceptance (fake_acceptance.py) and on a CPU: nothing here is a GPU's figure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "bench/acceptance").exists():
    pytest.skip("needs the source tree", allow_module_level=True)
sys.path.insert(0, str(ROOT / "bench"))

from acceptance import report, table, targets  # noqa: E402
from acceptance.store import Store, fingerprint  # noqa: E402

from dipengine.cli.doctor import on_silicon  # noqa: E402


class Acceptance:
    """Calls of the command over a plan of fake steps."""

    def __init__(self, folder: Path, **plan: list[tuple]) -> None:
        self.folder = folder
        self.plan(**plan)

    def plan(self, **plan: list[tuple]) -> None:
        steps = {part: [[name, does, *rest, *(0, 60, False)[len(rest):]] for name, does, *rest in steps] for part, steps in plan.items()}
        (self.folder / "plan.json").write_text(json.dumps(steps))

    def start(self, *arguments: str, seconds: float = 60) -> subprocess.Popen:
        path = os.pathsep.join(map(str, [ROOT / "tests", ROOT / "engine", *filter(None, [os.environ.get("PYTHONPATH")])]))
        return subprocess.Popen(
            [sys.executable, ROOT / "bench/gpu_acceptance.py", "--parts", "fake_acceptance", "--folder", self.folder / "state",
             "--seconds", str(seconds), *arguments],
            env=os.environ | {"PYTHONPATH": path, "FAKE_ACCEPTANCE": str(self.folder)}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)

    def call(self, *arguments: str, seconds: float = 60) -> tuple[int, str]:
        """(exit status, what was said)."""
        process = self.start(*arguments, seconds=seconds)
        said, _ = process.communicate(timeout=100)
        return process.returncode, said

    def begun(self) -> list[str]:
        """Steps begun since the last look, in their order."""
        path = self.folder / "begun.txt"
        names = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return names

    def result(self, part: str, name: str) -> dict | None:
        return Store(self.folder / "state").result(part, name)


def test_every_step_is_done_once_in_the_order_of_the_parts(tmp_path):
    one = Acceptance(tmp_path, first=[("a", "measure"), ("b", "measure")], second=[("c", "measure")])
    status, said = one.call()
    assert status == 0 and one.begun() == ["a", "b", "c"] and said.rstrip().endswith("All 3 steps are done, and none failed.")
    assert one.result("first", "b")["status"] == "measured" and one.result("first", "b")["took"] >= 0
    assert one.call()[0] == 0 and one.begun() == []


def test_a_call_passes_over_what_it_has_no_time_for_and_the_next_goes_on(tmp_path):
    one = Acceptance(tmp_path, first=[("a", "measure"), ("b", "measure", 1000)], second=[("c", "measure", 1000), ("d", "measure")])
    status, said = one.call(seconds=30)
    assert status == 0 and one.begun() == ["a", "d"] and "2 of 4 steps are done; run it again for the others, next first/b." in said
    one.call(seconds=30)  # nothing before it in this call: begun although it may be too long
    assert one.begun() == ["b"]
    one.call(seconds=30)
    assert one.begun() == ["c"]


def test_stages_come_before_what_is_left_of_the_parts(tmp_path):
    one = Acceptance(tmp_path, first=[("a", "measure"), ("b", "measure")], second=[("c", "measure"), ("d", "raise"), ("e", "measure")])
    (tmp_path / "order.json").write_text(json.dumps([["second", ["e", "d"]], ["first", ["b"]]]))
    assert one.call()[0] == 1 and one.begun() == ["e", "d", "b", "a", "c"]
    assert one.call("--part", "second", "--again")[0] == 1 and one.begun() == ["c", "d", "e"]


def test_what_needs_a_step_that_failed_waits_for_it(tmp_path):
    plan = {"first": [("a", "raise"), ("b", "measure")], "second": [("c", "measure"), ("d", "measure")], "third": [("e", "measure")]}
    one = Acceptance(tmp_path, **plan)
    (tmp_path / "needs.json").write_text(json.dumps({"second": "first/a", "third/e": "first/b"}))
    status, said = one.call()
    assert status == 1 and one.begun() == ["a", "b", "e"] and "Not before what failed works: second (2)" in said
    one.plan(**plan | {"first": [("a", "measure"), ("b", "measure")]})
    assert one.call("--again")[0] == 0 and one.begun() == ["a", "c", "d"]


def test_what_is_asked_for_is_done_whatever_it_needs(tmp_path):
    one = Acceptance(tmp_path, first=[("a", "raise")], second=[("c", "measure")])
    (tmp_path / "needs.json").write_text(json.dumps({"second": "first/a"}))
    one.call()
    assert one.call("--part", "second")[0] == 1 and one.begun() == ["a", "c"]


def test_every_step_that_failed_has_a_new_process_behind_it(tmp_path):
    one = Acceptance(tmp_path, first=[("a", "process"), ("b", "raise"), ("c", "process"), ("d", "process"), ("e", "device"), ("f", "process")])
    assert one.call()[0] == 1
    process = {name: one.result("first", name)["process"] for name in "acdf"}
    assert process["c"] == process["d"] and len(set(process.values())) == 3


def test_what_the_seconds_cut_off_is_begun_again_and_nothing_else(tmp_path):
    one = Acceptance(tmp_path, first=[("a", "measure"), ("b", "sleep 30"), ("c", "measure")])
    began = time.monotonic()
    status, said = one.call(seconds=4)
    assert status == 0 and time.monotonic() - began < 20 and "[first] b: not finished in this call" in said
    assert one.begun() == ["a", "b"] and one.result("first", "b") is None
    one.plan(first=[("a", "measure"), ("b", "sleep 0"), ("c", "measure")])
    assert one.call()[0] == 0 and one.begun() == ["b", "c"]


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_killed_call_loses_the_step_under_way_alone(tmp_path):
    one = Acceptance(tmp_path, first=[("a", "measure"), ("b", "sleep 5"), ("c", "measure")])
    process = one.start()
    wait_for(lambda: (at := Store(tmp_path / "state").under_way()) is not None and at["name"] == "b")
    process.kill()
    process.wait()
    # Its worker holds the folder until it has seen that nobody waits for it.
    status, said = one.call()
    if status == 1:
        assert "Another acceptance works" in said
        wait_for(lambda: "Another acceptance" not in (outcome := one.call())[1] and outcome[0] == 0)
    begun = one.begun()
    assert begun[:2] == ["a", "b"] and begun[-1] == "c" and begun.count("a") == 1
    assert all(one.result("first", name)["status"] == "measured" for name in "abc")


def test_two_calls_at_a_time_are_refused(tmp_path):
    one = Acceptance(tmp_path, first=[("a", "sleep 4")])
    process = one.start()
    wait_for(lambda: Store(tmp_path / "state").under_way() is not None)
    status, said = one.call()
    assert status == 1 and re.search("Another acceptance works in .*; wait for it", said)
    assert process.wait() == 0 and one.begun() == ["a"]


@pytest.mark.parametrize(("does", "status", "reason"), [
    ("raise", "failed", "ValueError: this fake step fails"),
    ("fail", "failed", "as planned"),
    ("die", "crashed", "ended by signal SIGKILL"),
    ("device", "failed", "RuntimeError: CUDA error: an illegal memory access was encountered"),
    ("sleep 60", "cut off", "took more than 2 s"),
])
def test_a_step_that_fails_costs_itself_alone(tmp_path, does, status, reason):
    one = Acceptance(tmp_path, first=[("a", "measure"), ("b", does, 0, 2), ("c", "measure")])
    code, said = one.call()
    assert code == 1 and one.begun() == ["a", "b", "c"]
    assert one.result("first", "b")["status"] == status and one.result("first", "b")["reason"] == reason
    assert one.result("first", "c")["status"] == "measured" and "Failed: first/b" in said
    assert one.call()[0] == 1 and one.begun() == []  # it stays so
    one.plan(first=[("a", "measure"), ("b", "measure", 0, 2), ("c", "measure")])
    assert one.call("--again")[0] == 0 and one.begun() == ["b"]


@pytest.mark.parametrize("does", ["memory", "raise", "die", "sleep 60"])
def test_a_peer_that_cannot_run_is_a_result_and_no_failure(tmp_path, does):
    one = Acceptance(tmp_path, first=[("peer", does, 0, 2, True), ("b", "measure")])
    status, said = one.call()
    assert status == 0 and one.result("first", "b")["status"] == "measured"
    if does == "memory":
        found = one.result("first", "peer")
        assert found["status"] == "out of memory" and found["reason"] == "RuntimeError: CUDA out of memory. Tried to allocate 1 TiB."
        assert "[first] peer: out of memory" in said


def test_one_part_alone_is_done_behind_the_build_that_it_needs(tmp_path):
    plan = {"build": [("machine", "machine"), ("m", "measure")], "first": [("a", "measure")],
            "second": [("b", "measure"), ("c", "measure")]}
    one = Acceptance(tmp_path, **plan)
    status, said = one.call("--part", "second")
    assert status == 0 and one.begun() == ["machine", "m", "b", "c"] and "4 of 5 steps" in said
    assert one.call("--part", "second")[0] == 0 and one.begun() == []
    assert one.call("--part", "second", "--again")[0] == 0 and one.begun() == ["b", "c"]
    status, said = one.call("--part", "third")
    assert status == 2 and "There is no part 'third'; choose build, first, second." in said


def test_nothing_is_done_behind_a_build_that_failed(tmp_path):
    one = Acceptance(tmp_path, build=[("machine", "machine"), ("compile", "fail")], first=[("a", "measure")])
    status, said = one.call()
    assert status == 1 and one.begun() == ["machine", "compile"] and "The part 'build' failed: nothing else can be done" in said


def test_results_go_to_a_folder_behind_every_step_and_another_call_goes_on_from_them(tmp_path):
    plan, here, there = whole_plan(), tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    plan["restoration"] = [("ours", "sleep 30")]
    plan["build"].insert(1, ("compile", result(status="passed")))
    one, out = Acceptance(here, **plan), tmp_path / "out"
    for name in ("build/tests/silicon/dipengine_ceilings", "build/large.o", "package/dipengine/_native.so"):
        (here / "state" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "state" / name).write_text(name)
    one.call("--out", str(out), seconds=12)  # cut off
    assert {path.name for path in out.iterdir()} == {"fake_1000.json", "fake_1000.md", "acceptance.tar.gz", "build.tar.gz"}
    assert json.loads((out / "fake_1000.json").read_text())["missing"] == {"restoration": ["ours"]}
    one.begun()
    plan["restoration"] = [("ours", "measure")]
    other = Acceptance(there, **plan)
    other.call("--resume", str(out / "acceptance.tar.gz"))
    assert other.begun() == ["ours"] and other.result("layers", "1024")["rows"]
    assert (there / "state/package/dipengine/_native.so").exists() and not (there / "state/build/large.o").exists()
    assert (there / "state/build/tests/silicon/dipengine_ceilings").read_text().startswith("build")


def test_an_archive_is_unpacked_by_pythons_without_filters(tmp_path, monkeypatch):
    import tarfile

    plain = tarfile.TarFile.extractall
    monkeypatch.delattr(tarfile, "data_filter")  # as before Python 3.11.4
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda self, path: plain(self, path))
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    for store in (one, other):
        store.begin("sources")
    one.finish("part", "step", {"status": "measured"}, 1.0)
    one.pack(["results"], tmp_path / "archive.tar.gz")
    other.unpack(tmp_path / "archive.tar.gz")
    assert other.result("part", "step")["status"] == "measured"


def test_results_are_forgotten_when_the_sources_change(tmp_path):
    one = Acceptance(tmp_path, first=[("a", "measure")])
    one.call()
    (tmp_path / "fingerprint.txt").write_text("other sources")
    status, said = one.call()
    assert status == 0 and one.begun() == ["a", "a"] and "The sources, the GPU or the software have changed since the last call" in said


def test_what_has_been_made_and_is_gone_is_made_again(tmp_path):
    one = Acceptance(tmp_path, build=[("machine", "machine"), ("compile", "make built")], first=[("a", "measure")])
    one.call()
    assert one.begun() == ["machine", "compile", "a"]
    (tmp_path / "built").unlink()  # as where results came from another machine
    assert one.call()[0] == 0 and one.begun() == ["compile"]


def test_the_fingerprint_is_of_sources_and_not_of_builds(tmp_path):
    for name in ("csrc", "cmake", "bindings", "engine", "tests", "bench/acceptance", "demo"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("CMakeLists.txt", "bench/layers.py", "demo/photograph.png"):
        (tmp_path / name).write_text("one")
    (tmp_path / "csrc/a.cu").write_text("one")
    first = fingerprint(tmp_path)
    (tmp_path / "engine/_native.so").write_text("built")
    (tmp_path / "README.md").write_text("words")
    assert fingerprint(tmp_path) == first
    seen = {first}
    for name in ("csrc/a.cu", "bench/layers.py", "demo/photograph.png"):
        (tmp_path / name).write_text("two")
        seen.add(fingerprint(tmp_path))
    assert len(seen) == 4


def test_results_are_of_a_gpu_and_of_the_software_that_they_were_found_with(monkeypatch):
    from acceptance import gpu, parts

    monkeypatch.setattr(parts.store, "fingerprint", lambda: "sources")
    monkeypatch.setattr(gpu, "query", lambda: {"name": "NVIDIA Fake 1000"})
    software = {"python": "3.11.7", "torch": "2.9.0", "nvcc": "12.8.61", "numpy": "2.0"}
    seen = set()
    for change in ({}, {"torch": "2.13.0"}, {"python": "3.12.1"}, {"nvcc": "13.0.48"}):
        monkeypatch.setattr(gpu, "software", lambda change=change: software | change)
        seen.add(parts.fingerprint())
    assert len(seen) == 4
    monkeypatch.setattr(gpu, "software", lambda: software | {"numpy": "1.26"})
    assert parts.fingerprint() in seen
    monkeypatch.setattr(gpu, "query", lambda: {"name": "NVIDIA H200"})
    assert parts.fingerprint() not in seen


# ---- the results file -----------------------------------------------------------------------------------------------

SPREAD = {"median": 0.002, "lower_quartile": 0.002, "upper_quartile": 0.002, "samples": [0.002]}
LAYER = {"layer": "level0.up", "shape": "4+128 -> 128, 3x3, 1024^2", "wide": True, "of_roofline": 0.6, "ratio": 3.5,
         "forward": {"seconds": SPREAD, "operations": 1e9, "bytes": 1e6, "floor": 0.001, "of_roofline": 0.5},
         "backward": {"seconds": SPREAD, "operations": 2e9, "bytes": 2e6, "floor": 0.001, "of_roofline": 0.5},
         "pytorch": {"bf16 channels_last": SPREAD}}
KERNELS = {"adam": "a" * 16, "philox": "b" * 16, "conv_forward": "c" * 16}


def result(**values) -> str:
    return "result " + json.dumps({"status": "measured"} | values)


def whole_plan() -> dict[str, list[tuple]]:
    return {
        "build": [("machine", "machine"), ("doctor", result(status="passed", kernels=KERNELS))],
        "tests": [("adam", result(status="passed", passed=2)), ("philox", result(status="passed", passed=2)),
                  ("conv", result(status="failed", passed=3, reason="1 of 4 failed, first conv_wide"))],
        "checker": [("memcheck-fits", result(status="left out", reason="compute-sanitizer was not found"))],
        "layers": [("ceilings", result(mma_bf16=1e12, mma_tf32=1e12, copy=1e12, read=1e12, library_bf16=1e12, library_tf32=1e12,
                                       library_copy=1e12)), ("1024", result(rows=[LAYER]))],
        "iterations": [("256-ours", result(seconds=SPREAD, arena_bytes=75_000_000, memory_bytes=80_000_000, pixels=65536)),
                       ("256-eager", result(seconds=SPREAD, ratio=4.25, ours=[0.1, 0.1], pixels=65536, peer="eager tf32"), 0, 60, True),
                       ("4096-eager", "memory", 0, 60, True)],
        "cohorts": [("4-ours", result(seconds=SPREAD, iterations_per_second=2000.0, arena_bytes=3_000_000, memory_bytes=4_000_000)), ("4-grouped", "memory", 0, 60, True)],
        "restoration": [("ours", result(psnr=31.25, psnr_noisy=20.25, iterations=900, seconds=1.5, stopped_by="variance",
                                        delivered_iteration=800))],
    }


def test_the_results_file_holds_everything_and_the_table_shows_it(tmp_path):
    one = Acceptance(tmp_path, **whole_plan())
    status, said = one.call()
    path = tmp_path / "fake_1000.json"
    assert status == 1 and f"Written: {path} and fake_1000.md" in said  # the convolutions' tests failed
    found = json.loads(path.read_text())
    assert found["format"] == report.FORMAT and found["complete"] and found["gpu"] == "NVIDIA Fake 1000"
    assert found["kernels"] == KERNELS and found["silicon"] == {"adam": "a" * 16, "philox": "b" * 16}
    assert found["results"]["iterations"]["4096-eager"]["status"] == "out of memory"
    text = (tmp_path / "fake_1000.md").read_text()
    for words in ("2 of 3 CUDA sources have passed their tests on this GPU", "| conv_forward | `cccccccccccccccc` | not passed |",
                  "| 256 | ours | 2.000 |  | 75 | 80 | 1.22 |", "| side | ms an iteration | times ours | MB, said before | MB |", "| 256x256, an iteration | at most 0.5 ms | 2 | missed |",
                  "| 512x512, an iteration | at most 1.2 ms | not measured |  |",
                  "| 256, eager tf32 | at least 10 times ours | 4.25 | missed |",
                  "the least share of their roofline | at least 0.5 | 0.6 | met |", "| 256 | eager tf32 | 2.000 | 4.25 |",
                  "| 4096 | eager | out of memory |", "| 4 | ours | 2000 |  | 3 | 4 |", "| 4 | grouped | out of memory |",
                  "Layers of 128 channels: 60% to 60% of their roofline.", "| ours | 31.25 | 900 | 1.50 |", "noisy 20.25 dB",
                  "| tests | conv | failed | 3 | 1 of 4 failed, first conv_wide |", "compute-sanitizer was not found"):
        assert words in text, words
    assert "Not complete" not in text
    assert not list((ROOT / "bench/results").glob("*fake*"))


def test_an_unfinished_results_file_says_what_is_missing(tmp_path):
    plan = whole_plan()
    plan["restoration"] = [("ours", "measure", 1000)]
    one = Acceptance(tmp_path, **plan)
    one.call(seconds=50)
    found = json.loads((tmp_path / "fake_1000.json").read_text())
    assert not found["complete"] and found["missing"] == {"restoration": ["ours"]}
    assert "**Not complete.** Not done yet: all of restoration." in (tmp_path / "fake_1000.md").read_text()


def test_doctor_reads_from_the_results_file_what_ran(tmp_path):
    from emulated import CMAKE
    from test_cuda_manifest import manifest

    if CMAKE is None:
        pytest.skip('needs cmake: pip install "dipengine[test]"')
    import shutil

    for folder in ("csrc", "cmake"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    now = {name: hash_ for name, (hash_, _) in manifest(tmp_path).items()}
    plan = whole_plan()
    plan["build"][1] = ("doctor", result(status="passed", kernels=now))
    state = tmp_path / "run"
    state.mkdir()
    one = Acceptance(state, **plan)
    one.call()
    (tmp_path / "bench/results").mkdir(parents=True)
    shutil.copy(state / "fake_1000.json", tmp_path / "bench/results")
    source = tmp_path / "csrc/ops/adam/adam_cuda.cu"
    source.write_text(source.read_text().replace("namespace {", "namespace {\nint changed_since;", 1))
    later = manifest(tmp_path)
    said = on_silicon("|".join(f"{name} {hash_} {then}" for name, (hash_, then) in later.items()))
    assert said == f"1 of 2 CUDA sources as they are; changed since: adam ({later['adam'][0]}, then {now['adam']})"


def test_the_best_peer_counts_once_all_have_been_tried():
    def peer(ratio):
        return {"status": "measured", "ratio": ratio}

    results = {"iterations": {"256-eager": peer(9.0), "256-graph": peer(4.0)}, "compiled": {}}
    best = targets.over_best("256")
    assert best(results) is None
    results["compiled"]["256-compiled"] = {"status": "cut off"}
    assert best(results) == 4.0
    results["compiled"]["256-compiled"] = peer(3.5)
    results["iterations"]["256-graph"] = {"status": "out of memory"}
    assert best(results) == 3.5
    found = {row["what"]: row["met"] for row in targets.judged(results)}
    assert found["256, best PyTorch"] is True and found["256, eager tf32"] is False and found["512, eager tf32"] is None


def test_kernels_of_an_iteration_are_summed_by_name():
    from acceptance import profiling

    assert profiling.short("void dipengine::(anonymous namespace)::conv_forward_kernel<dipengine::cuda::Bfloat16, dipengine::ConvTile<(int)2, "
                           "(int)2, (int)4, (int)4> >(dipengine::(anonymous namespace)::ForwardLaunch)") == (
        "conv_forward<Bfloat16, ConvTile<2, 2, 4, 4> >")
    assert profiling.short("dipengine::(anonymous namespace)::adam_kernel(dipengine::(anonymous namespace)::AdamLaunch)") == "adam"
    events = [(name, 100.0 * i + at, 100.0 * i + at + took) for i in range(3) for name, at, took in (("a_kernel(X)", 0, 10), ("b", 15, 30), ("a_kernel(X)", 50, 5))]
    found = profiling.summary(reversed(events), 3)
    assert found["kernels"] == [{"kernel": "b", "launches": 1, "us": 30}, {"kernel": "a", "launches": 2, "us": 15}]
    assert (found["launches"], found["busy_us"], found["us"]) == (3, 45, 85)
    assert found["sequence"] == [["a", 10, 45], ["b", 30, 5], ["a", 5, 5]]
    assert profiling.summary(events[:3], 1)["sequence"][0] == ["a", 10, 0]
    text = "\n".join(table._profile({"profile": {"256": {"status": "measured"} | found, "1024": {"status": "cut off", "reason": "slow"}}}))
    assert "3 launches an iteration; 85 us, of which kernels run 45 us." in text and "| `b` | 1 | 30.0 | 66.7% |" in text
    assert "1024x1024: cut off slow" in text


def test_the_table_of_nothing_is_no_table():
    assert table._iterations({}) == table._layers({}) == table._restoration({}) == table._profile({}) == []

"""`make gpu`, rehearsed without a GPU: every part runs, finished parts are kept; how fast is no matter here."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fixtures.emulated_device import emulate

BENCH = Path(__file__).parent / "bench"
SCRIPT = BENCH / "gpu.py"
ENCODERS = {f"gpu/hubert-large-{kind}" for kind in ("equal", "sorted", "unsorted")}
PARTS = {
    "encoders": {"gpu/matmul-peak", "gpu/clip-vit-l14", "gpu/pinned-copy", *ENCODERS},
    "profile": {"gpu/profile/device-busy", "gpu/profile/matrix products", "gpu/profile/attention"},
    "audio": {"audio/hubert-large"},
    "video": {"video/clip-vit-l14"},
    "probe": {"probe/ridge", "probe/ridge-isotropic"},
    "fuse": {"fuse/protocol", "fuse/protocol-fused"},
    "tests": {"tests/passed", "tests/failed", "tests/errors", "tests/skipped"},
}


@pytest.fixture(autouse=True)
def _bench_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def run_script(*options, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, SCRIPT, *map(str, options)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)


def read_rows(path):
    return {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    if torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    for options in ([], ["--device", "cuda"], ["--device", "cpu"]):
        done = run_script(*options, "--output", tmp_path / "gpu.json")
        assert done.returncode == 77
        assert done.stderr == "no GPU: nothing was measured (`mertool doctor` shows what this machine has)\n"
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("shape", "gflop"), [("hubert-base", 14.3), ("hubert-large", 37.1)])
def test_operations_of_a_second_of_audio(shape, gflop):
    from flops import hubert_flop
    from models import SHAPES
    from transformers import HubertConfig

    config = HubertConfig(**SHAPES[shape]).to_dict()
    assert hubert_flop(config, 5 * 16_000) / 5 / 1e9 == pytest.approx(gflop, rel=0.02)


@pytest.mark.parametrize(("shape", "gflop"), [("clip-vit-b16", 35.1), ("clip-vit-l14", 162)])
def test_operations_of_an_image(shape, gflop):
    from flops import vit_flop
    from models import SHAPES

    assert vit_flop(SHAPES[shape]) / 1e9 == pytest.approx(gflop, rel=0.01)


@pytest.mark.parametrize("model", ["hubert", "clip"])
def test_operations_are_those_that_torch_counts(model, tiny_encoders):
    """Attention is computed as two products, which torch's counter knows."""
    from flops import hubert_flop, vit_flop
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModel

    module = AutoModel.from_pretrained(tiny_encoders[model], attn_implementation="eager").eval()
    config = module.config.to_dict()
    inputs = (
        torch.zeros(1, 16_000) if model == "hubert" else torch.zeros(1, 3, config["image_size"], config["image_size"])
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs)
    counted = hubert_flop(config, 16_000) if model == "hubert" else vit_flop(config)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("profile", [False, True])
def test_encoders_on_an_emulated_gpu(profile, tmp_path):
    import gpu_encoders

    options = argparse.Namespace(tiny=True, repeat=1)
    with emulate("cuda") as emulation:
        run = gpu_encoders.profile if profile else gpu_encoders.measure
        rows = {row.name: row for row in run(tmp_path, torch.device("cuda"), options)}
        assert emulation.dtypes[torch.bfloat16] > 100
    assert PARTS["profile" if profile else "encoders"] <= set(rows)
    if profile:
        assert sum(row.value for name, row in rows.items() if "busy" not in name) == pytest.approx(1)
        return
    assert rows["gpu/hubert-large-equal"].fields["padding"] == 0
    assert rows["gpu/hubert-large-sorted"].fields["padding"] <= rows["gpu/hubert-large-unsorted"].fields["padding"]


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("sm80_xmma_fprop_implicit_gemm_bf16_cudnn", "convolutions"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::vectorized_layer_norm_kernel<...>", "norms"),
        ("void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernel>", "elementwise"),
        ("aten::addmm", "matrix products"),
    ],
)
def test_kinds_of_kernels(kernel, kind):
    from gpu_encoders import kind_of

    assert kind_of(kernel) == kind


def test_a_part_that_takes_too_long_is_stopped_with_what_it_started(tmp_path):
    from gpu import run_command

    began = time.monotonic()
    script = f"sleep 30 & echo $! > {tmp_path}/child; wait"
    assert run_command(["bash", "-c", script], 1.0, "cpu") is None
    assert time.monotonic() - began < 10
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        if not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.1)
    pytest.fail("the child still runs")


def test_outcomes_of_tests(tmp_path):
    from gpu import count_tests

    cases = '<testcase classname="a" name="ok"/><testcase classname="a" name="bad"><failure/></testcase>'
    (tmp_path / "r.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    rows = {row.name: row for row in count_tests(tmp_path / "r.xml")}
    assert (rows["tests/passed"].value, rows["tests/failed"].value) == (1, 1)
    assert rows["tests/failed"].fields["tests"] == ["a::bad"]


@pytest.mark.slow
def test_all_parts_are_rehearsed_and_kept(tmp_path):
    output = tmp_path / "gpu.json"
    first = run_script("--device", "cpu", "--tiny", "--only", "encoders", "fuse", "--output", output)
    assert first.returncode == 0, first.stderr
    assert set(read_rows(output)) == PARTS["encoders"] | PARTS["fuse"]
    whole = run_script("--device", "cpu", "--tiny", "--output", output)
    assert whole.returncode == 0, whole.stderr
    assert {line for line in whole.stderr.splitlines() if "kept from" in line} == {
        "encoders: kept from an earlier run",
        "fuse: kept from an earlier run",
    }
    rows = read_rows(output)
    assert set().union(*PARTS.values()) <= set(rows)
    assert rows["tests/passed"]["value"] > 0
    assert rows["gpu/hubert-large-sorted"]["goal"] == 0.4
    for row in rows.values():
        if row["baseline"]:
            assert row["ratio"] == pytest.approx(row["value"] / row["baseline"])


@pytest.mark.slow
def test_a_part_that_does_not_finish_is_told_and_the_others_go_on(tmp_path):
    output = tmp_path / "gpu.json"
    done = run_script("--device", "cpu", "--tiny", "--minutes", 0.0, "--only", "fuse", "--output", output)
    assert done.returncode == 1
    assert "fuse: no time is left" in done.stderr
    assert read_rows(output) == {}


@pytest.mark.slow
def test_the_tests_of_a_gpu_run_on_an_emulated_one():
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MERTOOL_TEST_DEVICE": "emulated"}
    done = subprocess.run(command, env=env, cwd=BENCH.parents[1], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout

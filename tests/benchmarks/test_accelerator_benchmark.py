"""The benchmark for accelerators runs as a whole on the CPU, at a small size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "accelerator.py"


@pytest.mark.slow
def test_it_prints_every_piece_and_writes_it_down(tmp_path):
    words = ["--device", "cpu", "--images", "24", "--backbones", "efficientnet_lite0"]
    done = subprocess.run([sys.executable, SCRIPT, *words, "--json", tmp_path / "found.json"], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"torch", "torchvision", "pillow", "device", "cores"} <= found["machine"].keys()
    for start in ("decode, simplejpeg", "decode and lay out", "resize on the device", "forward, efficientnet_lite0",
                  "extract, efficientnet_lite0, bfloat16, pillow", "extract on the processor", "all workers",
                  "training, batches of 4, ours", "training, batches of 32, the tutorial's"):
        assert any(name.startswith(start) for name in found), start
    assert found["resize on the device"]["values_unlike_pillows"] == 0
    extract = found["extract, efficientnet_lite0, float32, pillow"]
    assert 0 < extract["of_bound"] < 2 and extract["cosine_least"] > 0.999

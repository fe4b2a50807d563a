"""A loaded model takes little more than its file: at most 1.3 times, besides Python and the KV pool."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: memory that another test has freed would be used again and not be seen.
CHILD = """
import json, sys
import jinja2, numpy, sentencepiece, tokenizers  # code that any model needs is not the model's memory
import realm
from realm.kernels.cpu import NativeExecutor
from realm.models import loader
from realm.runtime.manager import RuntimeManager
from realm.core.config import EngineConfig, ModelConfig

def resident_bytes():
    # Without pages of shared libraries: the kernel maps 16 to 512 of them for each that is touched.
    total, counts = 0, True
    for line in open("/proc/self/smaps"):
        first, *rest = line.split()
        if not first.endswith(":"):
            counts = ".so" not in " ".join(rest[4:])
        elif first == "Rss:" and counts:
            total += int(rest[0]) * 1024
    return total

executors = []
def load(*args):
    loaded = loader.load_model(*args)
    executors.append(loaded.executor)
    return loaded

before = resident_bytes()
with RuntimeManager(EngineConfig(kv_cache_tokens=512, num_threads=2), loader=load) as runtime:
    model = runtime.load_model(ModelConfig(sys.argv[1]))
    # Fills the KV pool, so that all of it is resident and can be taken off.
    model.generate(list(range(1000, 1400)), max_tokens=110, ignore_eos=True)
    print(json.dumps({"model": resident_bytes() - before, "kv": executors[0].kv_bytes}))
"""


@pytest.mark.model
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_takes_at_most_1_3_times_its_file(gguf_models: list[Path]) -> None:
    for path in gguf_models:
        done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True)
        taken = json.loads(done.stdout)
        ratio = (taken["model"] - taken["kv"]) / path.stat().st_size
        assert ratio <= 1.3, f"{path.name}: {ratio:.2f} times its size"

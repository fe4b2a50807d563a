"""What a result row says about where it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path

_ISA_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")


def _cpu_field(name: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.split(":")[0].strip() == name:
            return line.split(":", 1)[1].strip()
    return "unknown"


def machine() -> dict[str, object]:
    """CPU, cores this process may use, and the instruction sets that matter here."""
    flags = _cpu_field("flags").split()
    model = f"{_cpu_field('model name')} (family {_cpu_field('cpu family')}, model {_cpu_field('model')})"
    return {
        "cpu": model,
        "num_cores": len(os.sched_getaffinity(0)),
        "isa": [flag for flag in _ISA_FLAGS if flag in flags],
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def commit() -> str:
    """Short commit of the checkout, with a `+` when tracked files differ from it."""
    here = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=here, capture_output=True, text=True)
    if head.returncode:
        return "unknown"
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "-uno", "--", "../../src", "../../csrc"],
        cwd=here,
        capture_output=True,
        text=True,
    ).stdout.strip()
    return head.stdout.strip() + ("+" if dirty else "")


def stamp() -> dict[str, object]:
    """Machine, commit and time, for the head of a row."""
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit(), "machine": machine()}

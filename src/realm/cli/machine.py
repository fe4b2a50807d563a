"""What a result row says about where and when it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path

_ISA_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")


def _cpu_fields() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def machine() -> dict[str, object]:
    """CPU, the cores this process may use, and the instruction sets that matter to the kernels."""
    fields = _cpu_fields()
    flags = fields.get("flags", "").split()
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    return {
        "cpu": name,
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": [flag for flag in _ISA_FLAGS if flag in flags],
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def commit() -> str:
    """Commit of the checkout that this code runs from, with `+` if its sources are changed; the version elsewhere."""
    root = Path(__file__).resolve().parents[3]
    if (root / ".git").exists() and (root / "csrc").is_dir():
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True)
        status = [*git, "status", "--porcelain", "-uno", "--", "src", "csrc"]
        if head.returncode == 0:
            changed = subprocess.run(status, capture_output=True, text=True).stdout.strip()
            return head.stdout.strip() + ("+" if changed else "")
    from importlib.metadata import version

    return f"v{version('realm')}"


def stamp() -> dict[str, object]:
    """Time, commit and machine: the head of every result row."""
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit(), "machine": machine()}

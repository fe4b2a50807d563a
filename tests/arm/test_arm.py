"""Everything an aarch64 build uses compiles, and its steps give the bits that x86 gives, run under emulation."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QEMU = os.environ.get("QEMU_AARCH64") or shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
CXX = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def parse(output: str) -> dict[tuple[str, str, str], str]:
    """Digests by (tensor type, KV type, instruction set)."""
    rows = [line.split() for line in output.splitlines()]
    return {(tensor, kv, isa): digest for tensor, kv, isa, digest in rows}


def run(*command: str | Path, **env: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.skipif(CXX is None, reason="needs a C++ compiler")
def test_the_program_that_is_emulated_fits_the_kernels() -> None:
    """Machines without the tools below would not notice."""
    run(*shlex.split(str(CXX)), "-std=c++17", "-fsyntax-only", "-I", ROOT / "csrc", ROOT / "tests/arm/step_digest.cc")


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs a cross compiler: pip install ziglang")
@pytest.mark.skipif(QEMU is None, reason="needs qemu-aarch64 (qemu-user), or QEMU_AARCH64 set to one")
def test_an_emulated_arm_machine_gives_the_bits_of_this_one(tmp_path: Path) -> None:
    build = tmp_path / "host"
    run("cmake", "-S", ROOT, "-B", build, "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}")
    run("cmake", "--build", build, "--target", "step_digest", "-j", "2")
    here = parse(run(build / "step_digest"))
    there = parse(run(ROOT / "tests/arm/arm.sh", tmp_path / "arm", PYTHON=sys.executable, QEMU_AARCH64=str(QEMU)))
    assert there
    assert {isa for _, _, isa in there} == {"portable"}
    assert {key[:2] for key in there} == {key[:2] for key in here}
    assert {key: there[*key[:2], "portable"] for key in here} == here

"""Rules of the house that import-linter can't see: the native module, and what serving must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import realm

SOURCES = Path(realm.__file__).parent


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_one_door_to_the_native_module() -> None:
    doors = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if any(name.startswith("realm._cpu") for name in _imports(path))
    }
    assert doors == {"kernels/cpu.py"}


def test_serving_does_not_load_torch() -> None:
    code = "import sys, realm.server.run, realm.kernels.cpu, realm.cli.measure; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

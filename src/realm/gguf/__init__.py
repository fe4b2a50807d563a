"""GGUF files: read (hostile-safe, mmapped), dequantise, quantise, write."""

"""Paged KV cache: which block holds what, prefix reuse."""

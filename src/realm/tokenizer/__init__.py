"""Tokenizers, chat templates and incremental detokenising, all from the metadata of a GGUF file."""

from realm.tokenizer.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]

"""Tokenizers, chat templates and incremental detokenising, all from the metadata of a GGUF file."""

from realm.tokenizer.stream import Detokenizer, StopStrings, TextStream
from realm.tokenizer.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Detokenizer", "StopStrings", "TextStream", "Tokenizer", "load_tokenizer"]

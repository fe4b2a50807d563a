"""Tokenizers, chat templates and incremental detokenising, all from the metadata of a GGUF file."""

from realm.tokenizer.chat import ChatTemplate, load_chat_template
from realm.tokenizer.stream import Detokenizer, StopStrings, TextStream
from realm.tokenizer.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "StopStrings",
    "TextStream",
    "Tokenizer",
    "load_chat_template",
    "load_tokenizer",
]

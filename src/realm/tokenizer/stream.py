"""Text from tokens as they come: whole characters only, cut at stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from realm.tokenizer.tokenizer import Tokenizer


class Detokenizer:
    """Turns a request's output tokens into text piece by piece; special tokens are left out.

    The pieces joined equal `tokenizer.decode(ids, continuation=continuation)`: incomplete characters are held back
    until their bytes are complete or turn out to be invalid.

    Args:
        tokenizer: The model's tokenizer.
        continuation: The output goes on after a prompt, so a leading space belongs to it.
    """

    __slots__ = ("_pending", "_pieces", "_strip", "num_chars")

    def __init__(self, tokenizer: Tokenizer, *, continuation: bool = True) -> None:
        self._pieces = tokenizer.visible_pieces
        self._strip = tokenizer.add_space_prefix and not continuation
        self._pending = b""
        self.num_chars = 0
        """Characters given out so far: where the next token's text starts."""

    def push(self, token_ids: Iterable[int]) -> str:
        """Text that became certain by these tokens; may be empty."""
        pieces = self._pieces
        data = self._pending + b"".join([pieces[token_id] for token_id in token_ids])
        if self._strip and data:
            data = data.removeprefix(b" ")
            self._strip = False
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        self.num_chars += len(text)
        return text

    def flush(self) -> str:
        """The end: what is left of an incomplete character becomes U+FFFD."""
        text, _ = codecs.utf_8_decode(self._pending, "replace", True)
        self._pending = b""
        self.num_chars += len(text)
        return text


class StopStrings:
    """Cuts a text at the stop string that is complete first; of those complete at one character, the longest.

    This rule looks at characters alone, so the cut is the same however the text was split into pieces. Knuth, Morris
    and Pratt's automaton per stop string: constant time per character, whatever the strings.

    Args:
        stops: Stop strings, none of them empty.
    """

    __slots__ = ("_first", "_held", "_states", "_stops", "_tables", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "stop strings are checked on entry"
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._tables = [_failure_table(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)  # characters of each stop string that the text ends with
        self._first = {stop[0] for stop in stops}
        self._held = ""
        self.matched: str | None = None
        """The stop string that cut the text."""

    def push(self, text: str) -> str:
        """Text that can't be part of a stop string any more; nothing after a match."""
        if self.matched is not None:
            return ""
        if not self._held and self._first.isdisjoint(text):
            return text
        start, buffer = len(self._held), self._held + text
        for position in range(start, len(buffer)):
            if stop := self._advance(buffer[position]):
                self.matched, self._held = stop, ""
                return buffer[: position + 1 - len(stop)]
        num_held = max(self._states)
        self._held = buffer[len(buffer) - num_held :]
        return buffer[: len(buffer) - num_held]

    def flush(self) -> str:
        """The end: text held back that turned out to be no stop string."""
        text, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return text

    def _advance(self, char: str) -> str | None:
        matched = None
        for index, stop in enumerate(self._stops):
            state, table = self._states[index], self._tables[index]
            while state and stop[state] != char:
                state = table[state - 1]
            state += stop[state] == char
            if state == len(stop):
                matched = matched or stop
                state = 0
            self._states[index] = state
        return matched


def _failure_table(pattern: str) -> list[int]:
    """For each prefix, the length of its longest proper suffix that is a prefix of `pattern`."""
    table = [0] * len(pattern)
    length = 0
    for index in range(1, len(pattern)):
        while length and pattern[index] != pattern[length]:
            length = table[length - 1]
        length += pattern[index] == pattern[length]
        table[index] = length
    return table


class TextStream:
    """A request's output text: `Detokenizer` and `StopStrings` in one.

    Args:
        tokenizer: The model's tokenizer.
        stops: Stop strings; the text ends before the first.
        continuation: See `Detokenizer`.
    """

    __slots__ = ("_detokenizer", "_stops", "num_tokens")

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, continuation: bool = True) -> None:
        self._detokenizer = Detokenizer(tokenizer, continuation=continuation)
        self._stops = StopStrings(stops) if stops else None
        self.num_tokens = 0
        """Tokens taken in, up to and with the one that completed a stop string."""

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stops.matched if self._stops else None

    def push(self, token_ids: Sequence[int], offsets: list[int] | None = None) -> str:
        """Text to give out after these tokens; tokens after a completed stop string are ignored.

        Args:
            token_ids: New tokens of the output.
            offsets: If given, gets for each token taken in the number of characters before its text.
        """
        if self._stops is None and offsets is None:
            self.num_tokens += len(token_ids)
            return self._detokenizer.push(token_ids)
        parts = []
        for token_id in token_ids:
            if self.matched is not None:
                break
            if offsets is not None:
                offsets.append(self._detokenizer.num_chars)
            self.num_tokens += 1
            text = self._detokenizer.push((token_id,))
            parts.append(self._stops.push(text) if self._stops else text)
        return "".join(parts)

    def flush(self) -> str:
        """The rest of the text at the end of the output; may complete a stop string."""
        if self.matched is not None:
            return ""
        text = self._detokenizer.flush()
        return self._stops.push(text) + self._stops.flush() if self._stops else text

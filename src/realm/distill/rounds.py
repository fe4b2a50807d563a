"""Texts to learn from, and what the target says of them: written and asked once, and kept in a work directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from realm.distill.chats import LENGTH_TOKENS, Author, ChatPlan, Rows, Text
from realm.distill.corpus import TorchAuthor
from realm.distill.lessons import ask
from realm.distill.student import TorchModel
from realm.distill.workdir import WorkDir

Report = Callable[[str, int, int, str], None]
"""(what is being done, done so far, of how much, a remark)."""
Answered = tuple[Rows, NDArray[np.void]]
"""Rows [N, T] and the target's word on them, see `lessons.ask`."""

_HELD_OUT_SEED = 1 << 32
_FIRST_TOKENS = 8_000_000


@dataclass(frozen=True, slots=True)
class Rounds:
    """Rounds of text that a target writes.

    Args:
        author: The target as a writer.
        plan: How its texts begin and go on.
        num_tokens: How much to write.
        rows_per_round: Texts written side by side.
        max_length: Tokens of a text at most.
        batch_tokens: Tokens of which the target is asked at once.
        seed: Of the first round; the others' follow it.
        work: Where everything is kept; what is there is not done again.
        report: Told of progress.
    """

    author: Author
    plan: ChatPlan
    num_tokens: int
    rows_per_round: int
    max_length: int
    batch_tokens: int
    seed: int
    work: WorkDir
    report: Report

    def first(self) -> list[Rows]:
        """The first rounds: enough to tell which tokens are frequent, so that of the others only those are noted."""
        texts: list[Rows] = []
        while _size(texts) < min(self.num_tokens, _FIRST_TOKENS):
            number = len(texts)
            self._report_written(texts)
            texts.append(self.work.array(_text(number), lambda n=number: self.author.write(*self._order(n))))  # type: ignore[misc]
        return texts

    def others(self, texts: Sequence[Rows], judge: TorchModel, vocabulary: Tensor | None) -> Iterator[Answered]:
        """The rounds after `texts`; `judge` gives logits of the tokens in `vocabulary` only."""
        written = list(texts)
        while _size(written) < self.num_tokens:
            self._report_written(written)
            rows, answers = self._answered(len(written), judge, vocabulary)
            written.append(rows)
            yield rows, answers
        self._report_written(written)

    def ask(self, texts: Sequence[Rows], judge: TorchModel) -> Iterator[Answered]:
        """What `judge` says of the first texts, whoever wrote them."""
        for number, rows in enumerate(texts):
            self.report("asking", number, len(texts), "")
            yield rows, self.work.array(_answers(number), lambda r=rows: ask(judge, r, self.batch_tokens, judge.device))  # type: ignore[misc]
        self.report("asking", len(texts), len(texts), "")

    def hold_out(self, num_rows: int) -> Rows:
        """Chats with greedy answers, to questions that nothing was trained on."""
        seed = self.seed + _HELD_OUT_SEED
        texts = self.plan.draw(num_rows, seed, answer_temperature=0.0)
        length = min(LENGTH_TOKENS, self.max_length)
        return self.work.array("held-out", lambda: self.author.write(texts, length, seed))

    def _answered(self, number: int, judge: TorchModel, vocabulary: Tensor | None) -> Answered:
        told: list[NDArray[np.void]] = []

        def write() -> Rows:
            if not isinstance(self.author, TorchAuthor):
                return self.author.write(*self._order(number))
            rows, answers = self.author.write_and_tell(*self._order(number), vocabulary)
            told.append(answers)
            return rows

        rows = self.work.array(_text(number), write)
        answers = self.work.array(
            _answers(number), lambda: told.pop() if told else ask(judge, rows, self.batch_tokens, judge.device)
        )
        return rows, answers

    def _order(self, number: int) -> tuple[list[Text], int, int]:
        """What is written in round `number`: its texts, their length and a seed."""
        length = self.plan.length(number, self.max_length)
        # Long rows are fewer: what they hold in the KV cache is what bounds a round.
        num_rows = max(1, self.rows_per_round * LENGTH_TOKENS // max(LENGTH_TOKENS, length))
        seed = self.seed + number
        return self.plan.draw(num_rows, seed), length, seed

    def _report_written(self, texts: Sequence[Rows]) -> None:
        self.report("writing", min(_size(texts), self.num_tokens), self.num_tokens, "")


def _size(texts: Sequence[Rows]) -> int:
    return sum(rows.size for rows in texts)


def _text(number: int) -> str:
    return f"text-{number:05}"


def _answers(number: int) -> str:
    return f"answers-{number:05}"

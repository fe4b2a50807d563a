"""From a target to a distilled draft: the target writes, the draft learns, held-out text tells how well."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from realm.core.types import Int32Array
from realm.distill.chats import LENGTH_TOKENS, Author, ChatPlan, Rows
from realm.distill.lessons import Forward, Lessons, Taught
from realm.distill.make import check_layers, check_vocabulary, count_tokens, make_draft, most_frequent
from realm.distill.rounds import Report, Rounds
from realm.distill.student import Student, TorchModel, tensor_keys
from realm.distill.train import Distillation, TrainConfig, tokens_per_verification
from realm.distill.workdir import WorkDir
from realm.gguf import names
from realm.gguf.reader import GGUFFile
from realm.models.draft import read_draft

DRAFT_LENGTHS = (2, 3, 4, 6, 8)
_SAVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to distil; on a CPU the same recipe gives the same draft on the same machine."""

    layers: tuple[int, ...]
    vocab_size: int
    """Tokens that the draft can propose."""
    num_tokens: int
    """Tokens that the target writes."""
    num_steps: int
    batch_tokens: int
    """Tokens of one training step."""
    learning_rate: float
    rows_per_round: int
    """Texts written side by side."""
    num_held_out: int
    """Texts to measure on."""
    seed: int

    def describe(self) -> str:
        """One line for the file's metadata."""
        return (
            f"realm draft distill: {self.num_tokens} tokens that the target wrote, {self.num_steps} steps of "
            f"{self.batch_tokens} tokens, learning rate {self.learning_rate:g}, seed {self.seed}"
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """Mean tokens that one verification gives on held-out text, by draft length."""

    pruned: dict[int, float]
    """Before training..."""
    distilled: dict[int, float]
    """...and after, as stored in the file."""


def distill(
    target: GGUFFile,
    teacher: TorchModel,
    author: Author,
    plan: ChatPlan,
    out: Path,
    recipe: Recipe,
    work: WorkDir,
    report: Report,
    corpus: Int32Array | None = None,
) -> Outcome:
    """Write a distilled draft of `target` to `out`.

    Args:
        target: The model it is for.
        teacher: The target in torch; the draft trains on its device.
        author: The target as a writer.
        plan: How its texts begin and go on.
        out: The file to write.
        recipe: How.
        work: Where texts and training state are kept.
        report: Told of progress.
        corpus: [T] a text to train on, instead of what the author writes.

    Raises:
        InvalidRequest: layers or a vocabulary that the target doesn't have.
    """
    spec = teacher.spec
    check_layers(recipe.layers, spec.num_layers)
    check_vocabulary(recipe.vocab_size, spec.vocab_size)
    rounds = Rounds(
        author,
        plan,
        recipe.num_tokens,
        recipe.rows_per_round,
        spec.context_length_tokens,
        recipe.batch_tokens,
        recipe.seed,
        work,
        report,
    )
    texts = rounds.first() if corpus is None else _cut(corpus, min(LENGTH_TOKENS, spec.context_length_tokens))
    held_out = rounds.hold_out(recipe.num_held_out)
    counts = [plan.is_answer(rows) if corpus is None else np.ones(rows.shape, np.bool_) for rows in texts]
    token_ids = None
    if recipe.vocab_size < spec.vocab_size:
        said = [rows[:, 1:][counting[:, :-1]] for rows, counting in zip(texts, counts, strict=True)]
        token_ids = most_frequent(count_tokens(said, spec.vocab_size), recipe.vocab_size)
    device = teacher.device
    vocabulary = None if token_ids is None else torch.tensor(token_ids, device=device)
    judge = teacher.cut_head(vocabulary)
    student = Student(judge, recipe.layers, trains_head=token_ids is not None)

    def measure(draft: Forward) -> dict[int, float]:
        return tokens_per_verification(draft, held_out, plan.is_answer(held_out), vocabulary, DRAFT_LENGTHS, device)

    pruned = measure(student)
    config = TrainConfig(recipe.num_steps, recipe.learning_rate, seed=recipe.seed)
    answered = list(rounds.ask(texts, judge))
    if corpus is None:
        answered += rounds.others(texts, judge, vocabulary)
        counts += [plan.is_answer(rows) for rows, _ in answered[len(texts) :]]
    known = np.ones(spec.vocab_size, np.bool_)
    if token_ids is not None:
        known[:] = False
        known[token_ids] = True
    taught = [
        Taught(rows, counting & _followed_by(known, rows), answers)
        for (rows, answers), counting in zip(answered, counts, strict=True)
    ]
    lessons = Lessons(taught, recipe.batch_tokens, device)
    keys = tensor_keys(judge.weights, spec)
    trainable = {name: student.trained[key] for name, key in keys.items() if key in student.trained}
    _train(Distillation(student, trainable, [f"{names.OUTPUT}.weight"], lessons, config), config, work, report)
    make_draft(
        target,
        out,
        recipe.layers,
        token_ids,
        trained=lambda name: trainable[name].detach().cpu().numpy(),
        recipe=recipe.describe(),
    )
    with GGUFFile.open(out) as file:
        stored = read_draft(file, target)
    return Outcome(pruned, measure(TorchModel.load(stored.weights, stored.spec, device, torch.float32)))


def plan_of(recipe: Recipe, fingerprint: str, corpus_hash: str) -> dict[str, object]:
    """What a work directory belongs to."""
    return {**asdict(recipe), "layers": list(recipe.layers), "target": fingerprint, "corpus": corpus_hash}


def _followed_by(known: NDArray[np.bool_], rows: Rows) -> NDArray[np.bool_]:
    """[N, T] whether the next token of `rows` is `known` [V]: what a draft can't propose it need not learn."""
    follows = np.ones(rows.shape, np.bool_)
    follows[:, :-1] = known[rows[:, 1:]]
    return follows


def _cut(corpus: Int32Array, length: int) -> list[Rows]:
    """`corpus` as rows of one length; what is left over at its end is the last row, if it is all there is."""
    length = min(length, len(corpus))
    num_rows = len(corpus) // length
    return [corpus[: num_rows * length].reshape(num_rows, length)]


def _train(training: Distillation, config: TrainConfig, work: WorkDir, report: Report) -> None:
    """Run to the end, saving now and then and when it is interrupted."""
    if work.checkpoint.exists():
        training.restore(torch.load(work.checkpoint, weights_only=True))
    saved = time.monotonic()
    try:
        for progress in training.run():
            remark = f"loss {progress.loss:.3f}, agrees {progress.agreement:.1%}"
            report("training", progress.step, config.num_steps, remark)
            if time.monotonic() - saved > _SAVE_SECONDS:
                _save(training, work)
                saved = time.monotonic()
    except KeyboardInterrupt:
        _save(training, work)
        raise


def _save(training: Distillation, work: WorkDir) -> None:
    partial = work.checkpoint.with_suffix(".partial")
    torch.save(training.state(), partial)
    os.replace(partial, work.checkpoint)

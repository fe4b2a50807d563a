"""From a target to a distilled draft: the target writes, the draft learns, held-out text tells how well."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from realm.core.types import Int32Array
from realm.distill.chats import LENGTH_TOKENS, Author, ChatPlan, Rows
from realm.distill.lessons import Forward, Lessons, Taught, ask
from realm.distill.make import check_layers, check_vocabulary, count_tokens, make_draft, most_frequent
from realm.distill.student import Student, TorchModel, tensor_keys
from realm.distill.train import Distillation, TrainConfig, tokens_per_verification
from realm.distill.workdir import WorkDir
from realm.gguf import names
from realm.gguf.reader import GGUFFile
from realm.models.draft import read_draft

Report = Callable[[str, int, int, str], None]
"""(what is being done, done so far, of how much, a remark)."""

DRAFT_LENGTHS = (2, 3, 4, 6, 8)
_HELD_OUT_SEED = 1 << 32
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
    max_length = spec.context_length_tokens
    if corpus is None:
        texts = [(rows, plan.is_answer(rows)) for rows in _written(author, plan, recipe, max_length, work, report)]
    else:
        texts = [(rows, np.ones(rows.shape, np.bool_)) for rows in _cut(corpus, min(LENGTH_TOKENS, max_length))]
    held_out = work.array("held-out", lambda: _hold_out(author, plan, recipe, max_length))
    token_ids = None
    if recipe.vocab_size < spec.vocab_size:
        said = [rows[:, 1:][answers[:, :-1]] for rows, answers in texts]
        token_ids = most_frequent(count_tokens(said, spec.vocab_size), recipe.vocab_size)
    device = next(iter(teacher.parameters.values())).device
    vocabulary = None if token_ids is None else torch.tensor(token_ids, device=device)
    judge = teacher.cut_head(vocabulary)
    student = Student(judge, recipe.layers, trains_head=token_ids is not None)

    def measure(draft: Forward) -> dict[int, float]:
        return tokens_per_verification(draft, held_out, plan.is_answer(held_out), vocabulary, DRAFT_LENGTHS, device)

    pruned = measure(student)
    config = TrainConfig(recipe.num_steps, recipe.learning_rate, seed=recipe.seed)
    lessons = Lessons(_taught(judge, texts, recipe, work, report, device), recipe.batch_tokens)
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


def _written(
    author: Author, plan: ChatPlan, recipe: Recipe, max_length: int, work: WorkDir, report: Report
) -> Iterator[Rows]:
    done = 0
    for number in count():
        report("writing", min(done, recipe.num_tokens), recipe.num_tokens, "")
        if done >= recipe.num_tokens:
            return
        rows = work.array(f"text-{number:05}", lambda n=number: _round(author, plan, recipe, max_length, n))  # type: ignore[misc]
        done += rows.size
        yield rows


def _round(author: Author, plan: ChatPlan, recipe: Recipe, max_length: int, number: int) -> Rows:
    length = plan.length(number, max_length)
    # Long rows are fewer: what they hold in the KV cache is what bounds a round.
    num_rows = max(1, recipe.rows_per_round * LENGTH_TOKENS // max(LENGTH_TOKENS, length))
    seed = recipe.seed + number
    return author.write(plan.draw(num_rows, seed), length, seed)


def _hold_out(author: Author, plan: ChatPlan, recipe: Recipe, max_length: int) -> Rows:
    """Chats with greedy answers, to questions that nothing was trained on."""
    seed = recipe.seed + _HELD_OUT_SEED
    texts = plan.draw(recipe.num_held_out, seed, answer_temperature=0.0)
    return author.write(texts, min(LENGTH_TOKENS, max_length), seed)


def _taught(
    judge: TorchModel,
    texts: Sequence[tuple[Rows, NDArray[np.bool_]]],
    recipe: Recipe,
    work: WorkDir,
    report: Report,
    device: torch.device,
) -> list[Taught]:
    taught = []
    for number, (rows, counts) in enumerate(texts):
        report("asking", number, len(texts), "")
        answers = work.array(
            f"answers-{number:05}",
            lambda r=rows: ask(judge, r, recipe.batch_tokens, device),  # type: ignore[misc]
        )
        taught.append(Taught(rows, counts, answers))
    report("asking", len(texts), len(texts), "")
    return taught


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

"""From a target to a distilled draft: the target writes, the draft learns, held-out text tells how well."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from realm.core.types import Int32Array
from realm.distill.chats import Author, ChatPlan, Round, Rows, no_tokens
from realm.distill.make import check_layers, check_vocabulary, count_tokens, make_draft, most_frequent
from realm.distill.student import TorchModel, tensor_keys
from realm.distill.train import Distillation, TrainConfig, tokens_per_verification
from realm.distill.workdir import WorkDir
from realm.gguf.reader import GGUFFile
from realm.models.draft import read_draft

Report = Callable[[str, int, int, str], None]
"""(what is being done, done so far, of how much, a remark)."""

DRAFT_LENGTHS = (2, 3, 4, 6, 8)
_CORPUS_ROW_TOKENS = 384
_HELD_OUT_PROMPT_TOKENS = 64
_HELD_OUT_TOKENS = 320
_HELD_OUT_TEMPERATURE = 0.8
_SAVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to distil; the same recipe gives the same draft on the same machine."""

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
        rows = list(_written(author, plan, recipe, max_length, work, report))
    else:
        rows = _cut(corpus, min(_CORPUS_ROW_TOKENS, max_length))
    held_out = work.rows("held-out", lambda: _hold_out(author, plan, recipe, max_length))
    token_ids = None
    if recipe.vocab_size < spec.vocab_size:
        token_ids = most_frequent(count_tokens(rows, spec.vocab_size), recipe.vocab_size)
    device = next(iter(teacher.parameters.values())).device
    vocabulary = None if token_ids is None else torch.tensor(token_ids, device=device)
    judge = teacher.cut_head(vocabulary)
    student, trained = judge.student(recipe.layers)
    keys = tensor_keys(teacher.weights, spec)
    trainable = {name: trained[key] for name, key in keys.items() if key in trained}
    num_prompt = _prompt_tokens(held_out.shape[1])
    pruned = tokens_per_verification(student, held_out, num_prompt, vocabulary, DRAFT_LENGTHS, device)
    config = TrainConfig(recipe.num_steps, recipe.learning_rate, seed=recipe.seed)
    training = Distillation(judge, student, trainable, _batches(rows, recipe.batch_tokens), config)
    _train(training, config, work, report)
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
    written = TorchModel.load(stored.weights, stored.spec, device, torch.float32)
    after = tokens_per_verification(written, held_out, num_prompt, vocabulary, DRAFT_LENGTHS, device)
    return Outcome(pruned, after)


def plan_of(recipe: Recipe, fingerprint: str, corpus_hash: str) -> dict[str, object]:
    """What a work directory belongs to."""
    return {**asdict(recipe), "layers": list(recipe.layers), "target": fingerprint, "corpus": corpus_hash}


def _written(
    author: Author, plan: ChatPlan, recipe: Recipe, max_length: int, work: WorkDir, report: Report
) -> Iterator[Rows]:
    done = 0
    for number, item in enumerate(plan.rounds(max_length)):
        report("writing", min(done, recipe.num_tokens), recipe.num_tokens, "")
        if done >= recipe.num_tokens:
            return
        rows = work.rows(f"text-{number:05}", lambda n=number, r=item: _round(author, r, recipe, n))  # type: ignore[misc]
        done += rows.size
        yield rows


def _round(author: Author, item: Round, recipe: Recipe, number: int) -> Rows:
    # Long rows are fewer: what they hold in the KV cache is what bounds a round.
    num_rows = max(1, recipe.rows_per_round * _CORPUS_ROW_TOKENS // max(_CORPUS_ROW_TOKENS, item.length))
    return author.write(item.opening, no_tokens(num_rows), item.length, item.temperature, recipe.seed + number)


def _hold_out(author: Author, plan: ChatPlan, recipe: Recipe, max_length: int) -> Rows:
    """Greedy text that follows beginnings which nothing was trained on, from openings of all kinds."""
    length = min(_HELD_OUT_TOKENS, max_length)
    prompt_length = _prompt_tokens(length)
    openings = plan.openings[: recipe.num_held_out]
    per_opening = -(-recipe.num_held_out // len(openings))
    written = []
    for number, opening in enumerate(openings):
        seed = recipe.seed + (1 << 32) + number
        begun = author.write(opening, no_tokens(per_opening), prompt_length, _HELD_OUT_TEMPERATURE, seed)
        written.append(author.write(opening, begun[:, len(opening) :], length, 0.0, seed))
    return np.concatenate(written)


def _prompt_tokens(length: int) -> int:
    return min(_HELD_OUT_PROMPT_TOKENS, length // 4)


def _cut(corpus: Int32Array, length: int) -> list[Rows]:
    """`corpus` as rows of one length; what is left over at its end is the last row, if it is all there is."""
    length = min(length, len(corpus))
    num_rows = len(corpus) // length
    return [corpus[: num_rows * length].reshape(num_rows, length)]


def _batches(rows: Sequence[Rows], batch_tokens: int) -> list[Tensor]:
    """Batches of about `batch_tokens`; rows of one length together, whoever wrote them."""
    by_length: dict[int, list[Rows]] = {}
    for some in rows:
        by_length.setdefault(some.shape[1], []).append(some)
    batches: list[Tensor] = []
    for length, parts in by_length.items():
        together = torch.from_numpy(np.concatenate(parts))
        size = max(1, batch_tokens // length)
        # Neighbours begin alike: a batch takes its rows from all over.
        order = torch.randperm(len(together), generator=torch.Generator().manual_seed(length))
        batches += [together[some] for some in torch.split(order, size) if len(some) == size or len(together) < size]
    return batches


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

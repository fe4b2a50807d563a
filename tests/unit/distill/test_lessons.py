"""What a draft learns from: the target's word on each position, batches of rows of one length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from realm.distill.lessons import NUM_LIKELIEST, Lessons, Taught, ask

CPU = torch.device("cpu")


def target(vocab_size: int) -> torch.nn.Embedding:
    return torch.nn.Embedding.from_pretrained(
        torch.randn(50, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 3
    )


@pytest.mark.parametrize("vocab_size", [7, 100, 70_000])
def test_it_keeps_the_likeliest_tokens_of_every_position(vocab_size: int) -> None:
    model = target(vocab_size)
    rows = np.random.default_rng(0).integers(0, 50, (5, 6)).astype(np.int32)
    answers = ask(model, rows, 12, CPU)
    num = min(NUM_LIKELIEST, vocab_size)
    best = model(torch.from_numpy(rows).long()).topk(num)
    assert answers["ids"].shape == (5, 6, num)
    assert np.array_equal(answers["ids"], best.indices)
    np.testing.assert_allclose(answers["probabilities"], best.values.softmax(-1), atol=1e-3)


def test_batches_have_rows_of_one_length_from_all_over() -> None:
    taught = []
    for number, (size, length) in enumerate([(8, 4), (8, 4), (3, 10)]):
        rows = np.full((size, length), number, np.int32) + 10 * np.arange(size, dtype=np.int32)[:, None]
        rows %= 50
        taught.append(Taught(rows, rows % 2 == 0, ask(target(20), rows, 100, CPU)))
    lessons = Lessons(taught, 17, CPU)
    shapes = [tuple(lessons[i].token_ids.shape) for i in range(len(lessons))]
    assert sorted(shapes) == [(1, 10)] * 3 + [(4, 4)] * 4
    mixed = 0
    for i in range(len(lessons)):
        lesson = lessons[i].to(CPU)
        assert torch.equal(lesson.counts, lesson.token_ids % 2 == 0)
        assert torch.equal(lesson.likeliest[..., 0], target(20)(lesson.token_ids).argmax(-1))
        assert lesson.probabilities.sum(-1).sub(1).abs().max() < 1e-2
        mixed += len(set((lesson.token_ids[:, 0] % 10).tolist())) > 1
    assert mixed >= 2

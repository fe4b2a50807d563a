"""The SentencePiece model that is written from a vocabulary, against protobuf's own reading of it."""

import pytest
from sentencepiece import sentencepiece_model_pb2
from tests.unit.tokenizer.vocabularies import spm_metadata

from realm.core.errors import ModelFileError
from realm.tokenizer import load_tokenizer
from realm.tokenizer.spm import _serialize_model
from realm.tokenizer.vocabulary import read_vocabulary

SCORES = "tokenizer.ggml.scores"


def test_protobuf_reads_what_was_written() -> None:
    metadata = spm_metadata()
    vocabulary = read_vocabulary(metadata)
    scores = [-0.5 * i for i in range(len(vocabulary.tokens))]
    written = _serialize_model(vocabulary, scores)
    model = sentencepiece_model_pb2.ModelProto.FromString(written)
    assert [piece.piece for piece in model.pieces] == metadata["tokenizer.ggml.tokens"]
    assert [piece.score for piece in model.pieces] == scores
    assert [piece.type for piece in model.pieces] == metadata["tokenizer.ggml.token_type"]
    assert model.trainer_spec.model_type == sentencepiece_model_pb2.TrainerSpec.BPE
    assert (model.trainer_spec.vocab_size, model.trainer_spec.byte_fallback) == (len(scores), True)
    normalizer = model.normalizer_spec
    assert normalizer.escape_whitespaces
    assert not normalizer.add_dummy_prefix
    assert not normalizer.remove_extra_whitespaces
    assert model.SerializeToString() == written


def test_a_score_beyond_32_bits_is_refused() -> None:
    metadata = spm_metadata()
    metadata[SCORES] = [1e39, *metadata[SCORES][1:]]  # type: ignore[index]
    with pytest.raises(ModelFileError, match="scores entry 0"):
        load_tokenizer(metadata)

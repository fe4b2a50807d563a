"""Loading from metadata, encoding and decoding with tiny vocabularies."""

import pytest
from tests.unit.tokenizer.vocabularies import bpe_metadata, spm_metadata

from realm.core.errors import InvalidRequest, ModelFileError
from realm.tokenizer import load_tokenizer

G = "tokenizer.ggml."
TEXTS = ["hello", " the  world\n\n\n", "a\0b\tc\r\n", "日本 é e\u0301 👩‍👩‍👧", "", " ", "the <table> x"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("metadata", [bpe_metadata(), bpe_metadata("smollm"), spm_metadata(), spm_metadata(False)])
def test_text_survives_a_round_trip(metadata: dict[str, object], text: str) -> None:
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_in_text_are_read_only_if_asked() -> None:
    for metadata in (bpe_metadata(), spm_metadata()):
        tokenizer = load_tokenizer(metadata)
        eos = tokenizer.token_text(tokenizer.eos_id)
        assert tokenizer.eos_id in tokenizer.encode(f"hello{eos}hello", add_special=False)
        ids = tokenizer.encode(f"hello{eos}hello", add_special=False, parse_special=False)
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == f"hello{eos}hello"


def test_user_defined_tokens_are_always_read() -> None:
    tokenizer = load_tokenizer(bpe_metadata())
    think = tokenizer.vocab_size - 1
    assert tokenizer.encode("a<think>", parse_special=False)[-1] == think
    assert think not in tokenizer.special_ids
    spm = load_tokenizer(spm_metadata())
    assert spm.token_text(spm.encode("a\n\n\n", parse_special=False)[-1]) == "\n\n\n"


def test_end_ids_are_eos_and_known_end_texts() -> None:
    bpe, spm = load_tokenizer(bpe_metadata()), load_tokenizer(spm_metadata())
    assert {bpe.token_text(i) for i in bpe.end_ids} == {"<|im_end|>", "<|endoftext|>"}
    assert {spm.token_text(i) for i in spm.end_ids} == {"</s>", "<end_of_turn>"}


def test_harmony_messages_do_not_end_generation() -> None:
    metadata = bpe_metadata()
    metadata[G + "tokens"] = [*metadata[G + "tokens"], "<|return|>", "<|call|>", "<|end|>"]
    metadata[G + "token_type"] = [*metadata[G + "token_type"], 3, 3, 3]
    tokenizer = load_tokenizer(metadata)
    texts = {tokenizer.token_text(i) for i in tokenizer.end_ids}
    assert "<|return|>" in texts
    assert "<|end|>" not in texts


def test_an_end_token_marked_as_normal_is_still_special() -> None:
    metadata = bpe_metadata()
    metadata[G + "token_type"] = [1] * len(metadata[G + "tokens"])
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>")) == "a"


def test_bos_and_eos_are_added_as_the_file_says() -> None:
    metadata = bpe_metadata() | {G + "add_bos_token": True, G + "add_eos_token": True}
    tokenizer = load_tokenizer(metadata)
    ids = tokenizer.encode("a")
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert ids[1:-1] == tokenizer.encode("a", add_special=False)


@pytest.mark.parametrize(("pre", "added"), [("llama-bpe", True), ("qwen2", False), ("gpt-2", False)])
def test_whether_bos_is_added_by_default_depends_on_the_family(pre: str, added: bool) -> None:
    metadata = bpe_metadata(pre)
    del metadata[G + "add_bos_token"]
    assert load_tokenizer(metadata).add_bos is added


def test_the_space_prefix_is_put_after_each_control_token() -> None:
    tokenizer = load_tokenizer(spm_metadata())
    ids = tokenizer.encode("the</s>the", add_special=False)
    assert [tokenizer.token_text(i) for i in ids] == [" the", "</s>", " the"]
    bare = load_tokenizer(spm_metadata(add_space_prefix=False))
    assert [bare.token_text(i) for i in bare.encode("the the", add_special=False)] == ["t", "he", " the"]


def test_control_tokens_match_leftmost_longest() -> None:
    metadata = spm_metadata()
    metadata[G + "tokens"] = [*metadata[G + "tokens"], "<s><s>", "s><"]
    metadata[G + "token_type"] = [*metadata[G + "token_type"], 3, 3]
    metadata[G + "scores"] = [*metadata[G + "scores"], 0.0, 0.0]
    tokenizer = load_tokenizer(metadata)
    ids = tokenizer.encode("<s><s><s>s><s>", add_special=False)
    assert [tokenizer.token_text(i) for i in ids] == ["<s><s>", "<s>", "s><", " ", "s", ">"]


def test_empty_tokens_are_kept_apart_and_have_no_text() -> None:
    for metadata in (bpe_metadata(), spm_metadata()):
        tokens = list(metadata[G + "tokens"])
        metadata[G + "tokens"] = [*tokens, "", ""]
        metadata[G + "token_type"] = [*metadata[G + "token_type"], 1, 1]
        metadata[G + "scores"] = [0.0] * (len(tokens) + 2)
        assert load_tokenizer(metadata).token_bytes(len(tokens)) == b""


@pytest.mark.parametrize("kind", [bpe_metadata, spm_metadata])
def test_lone_surrogates_are_refused(kind: object) -> None:
    with pytest.raises(InvalidRequest, match=r"U\+D800 at character 1") as error:
        load_tokenizer(kind()).encode("a\ud800")
    assert error.value.code == "invalid_text"


@pytest.mark.parametrize("token_id", [-1, 10**9])
def test_ids_outside_the_vocabulary_are_refused(token_id: int) -> None:
    tokenizer = load_tokenizer(bpe_metadata())
    with pytest.raises(InvalidRequest, match=str(token_id)):
        tokenizer.decode([token_id])
    with pytest.raises(InvalidRequest, match=str(token_id)):
        tokenizer.token_bytes(token_id)


def changed(metadata: dict[str, object], **values: object) -> dict[str, object]:
    """`None` takes a key out."""
    merged = metadata | {G + key: value for key, value in values.items()}
    return {key: value for key, value in merged.items() if value is not None}


BPE, SPM = bpe_metadata(), spm_metadata()
NUM_BPE, NUM_SPM = len(BPE[G + "tokens"]), len(SPM[G + "tokens"])


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({}, "model"),
        (changed(BPE, model=7), "model"),
        (changed(BPE, model="t5"), "model"),
        (changed(BPE, pre="made-up"), "pre"),
        (changed(BPE, tokens=None), "tokens"),
        (changed(BPE, tokens=[]), "tokens"),
        (changed(BPE, tokens="abc"), "tokens"),
        (changed(BPE, tokens=[*BPE[G + "tokens"][:-1], 7]), "tokens"),
        (changed(BPE, tokens=[*BPE[G + "tokens"][:-1], "a"]), "tokens"),
        (changed(BPE, tokens=[*BPE[G + "tokens"][:-1], "a\udc80"]), "tokens"),
        (changed(BPE, token_type=[1]), "token_type"),
        (changed(BPE, token_type=[9] * NUM_BPE), "token_type"),
        (changed(BPE, token_type=[True] * NUM_BPE), "token_type"),
        (changed(BPE, merges=None), "merges"),
        (changed(BPE, merges=["ab"]), "merges"),
        (changed(BPE, merges=["a nothing"]), "merges"),
        (changed(BPE, merges=["a b\udc80"]), "merges"),
        (changed(BPE, bos_token_id=NUM_BPE), "bos_token_id"),
        (changed(BPE, eos_token_id=-1), "eos_token_id"),
        (changed(BPE, eos_token_id="2"), "eos_token_id"),
        (changed(BPE, add_bos_token=1), "add_bos_token"),
        (changed(BPE, add_bos_token=True, bos_token_id=None), "add_bos_token"),
        (changed(SPM, scores=None), "scores"),
        (changed(SPM, scores=[0.0]), "scores"),
        (changed(SPM, scores=[0] * NUM_SPM), "scores"),
        (changed(SPM, scores=[float("nan")] * NUM_SPM), "scores"),
        (changed(SPM, add_space_prefix="yes"), "add_space_prefix"),
        (changed(SPM, unknown_token_id=NUM_SPM - 1), "unknown_token_id"),
        (changed(SPM, token_type=[2, 2, *SPM[G + "token_type"][2:]]), "token_type"),
        (changed(SPM, token_type=[*SPM[G + "token_type"][:-1], 6]), "token_type"),
        (
            changed(
                SPM, token_type=[1 if kind == 6 and i % 2 else kind for i, kind in enumerate(SPM[G + "token_type"])]
            ),
            "token_type",
        ),
    ],
)
def test_bad_metadata_is_refused_by_the_name_of_its_key(metadata: dict[str, object], key: str) -> None:
    with pytest.raises(ModelFileError, match=rf"tokenizer\.ggml\.{key}\b"):
        load_tokenizer(metadata)


def test_an_unknown_pre_tokenizer_names_those_supported() -> None:
    with pytest.raises(ModelFileError, match=r"'made-up'.*llama-bpe.*qwen2.*smollm") as error:
        load_tokenizer(changed(BPE, pre="made-up"))
    assert error.value.code == "unsupported_tokenizer"


def test_vocabularies_are_compared_token_by_token() -> None:
    tokenizer = load_tokenizer(BPE)
    assert tokenizer.vocabulary.first_difference(load_tokenizer(bpe_metadata("smollm")).vocabulary) is None
    other = load_tokenizer(changed(BPE, tokens=[*BPE[G + "tokens"][:-1], "<thought>"]))
    assert (
        tokenizer.vocabulary.first_difference(other.vocabulary)
        == f"token {NUM_BPE - 1} is '<think>' against '<thought>'"
    )
    shorter = load_tokenizer(bpe_metadata(num_tokens=500))
    assert tokenizer.vocabulary.first_difference(shorter.vocabulary) == f"{NUM_BPE} tokens against 504"
    retyped = load_tokenizer(changed(BPE, token_type=[*BPE[G + "token_type"][:-1], 3]))
    assert (
        tokenizer.vocabulary.first_difference(retyped.vocabulary)
        == f"token {NUM_BPE - 1} ('<think>') is not special against special"
    )

"""Token ids equal to those of HF tokenizers and transformers, on text that breaks tokenizers."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.tokenizer.vocabularies import bpe_metadata, spm_metadata
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE

from realm.gguf.reader import GGUFFile
from realm.tokenizer import Detokenizer, Tokenizer, load_tokenizer

G = "tokenizer.ggml."

NASTY = [
    "",
    " ",
    "Hello, world! The capital of France is Paris.",
    "it's IT'S we'll WE'LL they'Ve I'd 'tis ''s 'ſ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇩🇪 👍🏽 ☃️ 🤷🏾‍♀️ \U0001fae8 𓀀 𝔘𝔫𝔦 🀄",
    "日本語のテキスト、中文字符。漢字仮名交じり文 한국어 텍스트 ﾊﾝｶｸ　全角　スペース",
    "العربية من اليمين ‏إلى‎ اليسار ١٢٣ עברית שָׁלוֹם ภาษาไทย ฉันกินข้าว हिन्दी संयुक्ताक्षर தமிழ்",
    "e\u0301 \u0301 \u0301\u0302a \u0e33 \u093c\u0915\u093c ﷺ ﬁ Å Å ẛ̣ q\u0307\u0323 각 \u1100\u1161\u11a8",
    "def f(x):\n    return {\n        'a': [i**2 for i in range(10)],\n    }\n\n\n\n\tif x:\r\n\t\tpass\r\r\n",
    "x  y   z    w          v\n\n \n  \n   \n \t \t\t  \n trailing   ",
    "    leading\n\n\n\n\n\n\n" + "\n" * 31 + "a" + "\t" * 31 + "b" + " " * 31 + "c",
    "\x00\x01\x02\x07\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f\x80\x85\xa0\xad\u200b\u2028\u2029\ufeff\u3000",
    "a\x00b\x00\x00c \x00",
    "1 12 123 1234 12345678901234567890123456789012345678901234567890 3.14159 1,000,000 0x1F ½ ² ⅷ ① ١٢ ५६",
    "9" * 500,
    "a  1   2\n3\t4 .5 -6 +7",
    "http://user:pass@example.org:8080/a/b.html?c=d&e=%20f#g foo@bar.baz C:\\dir\\file.txt $HOME/.x_y-z~",
    "<html><body><table><tr><td>&nbsp;</td></tr></table></body></html>",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><|im_end|><|im_end|x <|im_start|",
    "<bos><eos> <start_of_turn>a<end_of_turn>",
    "<unk><pad><s></s>[INST] <<SYS>> <0x0A> <unused0><unused1>x <mask> <think> </think> ▁▁ ▁ Ġ Ċ",
    "<think><|endoftext|><think> <|endoftext|> a<think>b",
    "\ufffd\ufffe\uffff \ue000 \U000f0000 \U0010ffff ⁇ \u2047",
    "Zażółć gęślą jaźń; naïve façade — “quotes” ‘single’ … ‰ € £ © ™ ∑∫√∞≠≤≥ ←↑→↓ ░▒▓█ ┌─┐",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa AAAAAAAAAAAAAAAAAAAAAAAAA !!!!!!!!!!!!!!!!!!!!!!",
    "Supercalifragilisticexpialidocious antidisestablishmentarianism Donaudampfschifffahrtsgesellschaft",
    " \n \r\n \r \u2028 \u0085 \u00a0\u00a0 \u2003x",
    "\r\n\r\n\r\rx\n\r",
]

any_text = st.text(
    alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t'0123abcSsé\u0301<|>_")),
    max_size=40,
)


def check(tokenizer: Tokenizer, oracle: HFTokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special=False)
    assert ids == oracle.encode(text, add_special_tokens=False).ids, text
    decoded = oracle.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids, continuation=not tokenizer.add_space_prefix) == decoded, text
    detokenizer = Detokenizer(tokenizer, continuation=False)
    assert "".join(detokenizer.push([i]) for i in ids) + detokenizer.flush() == decoded, text


def added(metadata: Mapping[str, Any], kind: int) -> list[AddedToken]:
    pairs = zip(metadata[G + "tokens"], metadata[G + "token_type"], strict=True)
    return [AddedToken(text, normalized=False, special=kind == 3) for text, k in pairs if k == kind]


# SmolLM2: transformers reads the file; its pre-tokenizer is then set to that of the model's tokenizer.json, because
# transformers leaves GPT-2's in place for `smollm` files, which joins the last of several spaces to a digit.


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return load_tokenizer(GGUFFile.open(smollm2_path).metadata)


@pytest.fixture(scope="module")
def smollm2_oracle(smollm2_path: Path) -> HFTokenizer:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    loaded.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return loaded.backend_tokenizer


@pytest.mark.model
@pytest.mark.parametrize("text", NASTY)
def test_smollm2_equals_transformers(smollm2: Tokenizer, smollm2_oracle: HFTokenizer, text: str) -> None:
    check(smollm2, smollm2_oracle, text)


@pytest.mark.model
@settings(max_examples=300, deadline=None)
@given(text=any_text)
def test_smollm2_equals_transformers_on_any_text(smollm2: Tokenizer, smollm2_oracle: HFTokenizer, text: str) -> None:
    check(smollm2, smollm2_oracle, text)


@pytest.mark.model
def test_smollm2_splits_every_digit_of_unicode(smollm2: Tokenizer, smollm2_oracle: HFTokenizer) -> None:
    numbers = [chr(i) for i in range(0x110000) if unicodedata.category(chr(i)).startswith("N")]
    for start in range(0, len(numbers), 100):
        check(smollm2, smollm2_oracle, "a" + "  ".join(numbers[start : start + 100]))


# Gemma 3


@pytest.fixture(scope="module")
def gemma3(gemma3_path: Path) -> Tokenizer:
    return load_tokenizer(GGUFFile.open(gemma3_path).metadata)


@pytest.fixture(scope="module")
def gemma3_oracle(gemma3_path: Path) -> HFTokenizer:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gemma3_path.parent, gguf_file=gemma3_path.name).backend_tokenizer


@pytest.mark.model
@pytest.mark.parametrize("text", NASTY)
def test_gemma3_equals_transformers(gemma3: Tokenizer, gemma3_oracle: HFTokenizer, text: str) -> None:
    check(gemma3, gemma3_oracle, text)


@pytest.mark.model
@settings(max_examples=300, deadline=None)
@given(text=any_text)
def test_gemma3_equals_transformers_on_any_text(gemma3: Tokenizer, gemma3_oracle: HFTokenizer, text: str) -> None:
    check(gemma3, gemma3_oracle, text)


@pytest.mark.model
def test_gemma3_cuts_long_runs_of_spaces_longest_first(gemma3: Tokenizer) -> None:
    """As SentencePiece, which Gemma was trained with, and llama.cpp do.

    transformers rebuilds merges instead; these join runs beyond the longest token (31) into other lengths.
    """
    ids = gemma3.encode("a" + " " * 75 + "b", add_special=False)
    assert [len(gemma3.token_text(i)) for i in ids] == [1, 31, 31, 13, 1]


# Families without a model at hand: a tiny vocabulary under the pre-tokenizer of the models' own tokenizer.json.

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level_oracle(pre: str) -> HFTokenizer:
    metadata: dict[str, Any] = bpe_metadata(pre)
    vocab = {token: index for index, token in enumerate(metadata[G + "tokens"])}
    merges = [tuple(line.split(" ")) for line in metadata[G + "merges"]]
    oracle = HFTokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre == "gpt-2":
        oracle.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(LLAMA3 if pre == "llama-bpe" else QWEN2), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        oracle.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if pre == "qwen2":
        oracle.normalizer = normalizers.NFC()
    oracle.decoder = decoders.ByteLevel()
    oracle.add_special_tokens(added(metadata, 3))
    oracle.add_tokens(added(metadata, 4))
    return oracle


FAMILIES = {pre: (load_tokenizer(bpe_metadata(pre)), byte_level_oracle(pre)) for pre in ("gpt-2", "llama-bpe", "qwen2")}


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("pre", FAMILIES)
def test_byte_level_families_equal_hf(pre: str, text: str) -> None:
    check(*FAMILIES[pre], text)


@given(text=any_text, pre=st.sampled_from(sorted(FAMILIES)))
def test_byte_level_families_equal_hf_on_any_text(pre: str, text: str) -> None:
    check(*FAMILIES[pre], text)


def test_pieces_that_are_tokens_skip_the_merges_in_llama_3() -> None:
    metadata: dict[str, Any] = bpe_metadata("llama-bpe")
    metadata[G + "merges"] = metadata[G + "merges"][:1]
    text = next(t for t in metadata[G + "tokens"] if len(t) > 3 and t.isascii() and t.isalpha())
    assert len(load_tokenizer(metadata).encode(text, add_special=False)) == 1
    metadata[G + "pre"] = "gpt-2"
    assert len(load_tokenizer(metadata).encode(text, add_special=False)) > 1


def llama2_oracle() -> HFTokenizer:
    """As Llama 2's tokenizer.json: BPE over "▁"-escaped text with a prefix, bytes as the fallback."""
    from transformers.tokenization_utils_base import generate_merges

    metadata: dict[str, Any] = spm_metadata()
    vocab = {token: index for index, token in enumerate(metadata[G + "tokens"])}
    user_defined = {text.content for text in added(metadata, 4)}
    scores = dict(zip(metadata[G + "tokens"], metadata[G + "scores"], strict=True))
    merges = generate_merges(vocab, scores, skip_tokens=user_defined)
    oracle = HFTokenizer(BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    oracle.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(content=" ", left=1)
    oracle.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    oracle.add_special_tokens([*added(metadata, 3), AddedToken("<unk>", normalized=False, special=True)])
    return oracle


LLAMA2 = (load_tokenizer(spm_metadata()), llama2_oracle())


@pytest.mark.parametrize(
    "text", ["the world", " the", "  the", "hello\nworld", "a<s>the</s> the", "日本x 👍 é", "", "<s>"]
)
def test_llama2_style_equals_hf(text: str) -> None:
    check(*LLAMA2, text)

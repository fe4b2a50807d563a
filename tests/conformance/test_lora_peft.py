"""Adapters against PEFT: random and trained ones, in batches where each row has its own, beside one batch of ours."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.conformance.hf import build
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from realm.core.config import EngineConfig, KVType
from realm.core.types import Batch, Float32Array
from realm.gguf.reader import GGUFFile
from realm.kernels.ops import Executor
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.models.loader import Device, load_model
from realm.testing.divergence import Divergence, log_softmax
from realm.testing.tiny import TinyModel, write_tiny_model

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
BASE = "__base__"  # what PEFT calls a row without an adapter
BLOCK_TOKENS = 32
TEXT = Path(__file__).parents[2] / "benchmarks/data/northanger_abbey.txt"

pytestmark = [
    # PEFT asks transformers in a way that transformers has deprecated.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    # Adapters saved by one model may be loaded beside others that were trained on fewer layers.
    pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning"),
]


def one_batch(executor: Executor, ids: np.ndarray, slots: list[int]) -> Float32Array:
    """Logits [R, n, V] of all positions of all rows of `ids` [R, n], each with its adapter, from one step."""
    num_rows, length = ids.shape
    blocks = -(-length // BLOCK_TOKENS)
    batch = Batch(
        token_ids=ids.reshape(-1).astype(np.int32),
        query_starts=np.arange(num_rows + 1, dtype=np.int32) * length,
        context_lens=np.zeros(num_rows, np.int32),
        block_tables=np.arange(num_rows * blocks, dtype=np.int32).reshape(num_rows, blocks),
        logit_rows=np.arange(ids.size, dtype=np.int32),
        adapter_slots=np.array(slots, np.int32),
    )
    return executor.step(batch).copy().reshape(num_rows, length, -1)


def ours(path: Path, device: Device, rows: list[str], folders: dict[str, Path], ids: np.ndarray) -> Float32Array:
    """Our logits: adapters are read from where PEFT saved them; the same adapter of several rows is one adapter."""
    config = EngineConfig(
        kv_type=KVType.F32, kv_cache_tokens=2048, kv_block_tokens=BLOCK_TOKENS, max_batch_tokens=ids.size
    )
    executor = load_model(path, config, device).executor
    with GGUFFile.open(path) as file:
        base = BaseModel.from_gguf(file)
    names = sorted(set(rows) - {BASE})
    for slot, name in enumerate(names):
        executor.set_adapter(slot, executor.pack_adapter(LoRAWeights.load(folders[name], name).bind(base).layers))
    return one_batch(executor, ids, [-1 if name == BASE else names.index(name) for name in rows])


def theirs(peft: PeftModel, rows: list[str], ids: np.ndarray) -> Float32Array:
    """PEFT's logits, each row with its adapter."""
    peft.eval()
    with torch.inference_mode():
        logits: Float32Array = peft(torch.from_numpy(ids), adapter_names=rows).logits.numpy()
    return logits


def fill(peft: PeftModel, std: float) -> None:
    """PEFT begins with B = 0, which would change nothing."""
    torch.manual_seed(0)
    for name, values in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(values, std=std)


class TestTinyModel:
    """Every matrix that can be adapted, the head included, on float weights: equal up to rounding."""

    CONFIGS: ClassVar = {
        "all": LoraConfig(r=8, lora_alpha=16, target_modules=[*LINEAR, "lm_head"]),
        "attention": LoraConfig(r=4, lora_alpha=4, target_modules=ATTENTION, use_rslora=True),
        "mixed": LoraConfig(r=4, target_modules=LINEAR, rank_pattern={"down_proj": 12}, alpha_pattern={"q_proj": 3}),
    }
    ROWS: ClassVar = ["all", "attention", BASE, "mixed", "all"]
    IDS = np.random.default_rng(1).integers(0, 256, (5, 50))

    @pytest.mark.parametrize("device", ["cpu", "reference"])
    def test_mixed_batch_matches(self, tmp_path: Path, device: Device):
        path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(tied=False))
        peft = get_peft_model(self._base(path), self.CONFIGS["all"], adapter_name="all")
        for name in ("attention", "mixed"):
            peft.add_adapter(name, self.CONFIGS[name])
        fill(peft, 0.3)
        peft.save_pretrained(tmp_path, save_embedding_layers=False)
        expected = theirs(peft, self.ROWS, self.IDS)
        got = ours(path, device, self.ROWS, {name: tmp_path / name for name in self.CONFIGS}, self.IDS)
        for row, name in enumerate(self.ROWS):
            assert np.abs(got[row] - expected[row]).max() <= 1e-4 * np.abs(expected[row]).max(), name

    def _base(self, path: Path) -> PreTrainedModel:
        with GGUFFile.open(path) as file:
            base, meta = BaseModel.from_gguf(file), file.metadata
            config = LlamaConfig(
                vocab_size=base.modules["output"][0],
                hidden_size=meta.get_int("llama.embedding_length"),
                intermediate_size=meta.get_int("llama.feed_forward_length"),
                num_hidden_layers=meta.get_int("llama.block_count"),
                num_attention_heads=base.num_heads,
                num_key_value_heads=base.num_kv_heads,
                head_dim=base.modules["blk.0.attn_q"][0] // base.num_heads,
                rms_norm_eps=meta.get_float("llama.attention.layer_norm_rms_epsilon"),
                rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
                tie_word_embeddings=False,
            )
            return build(config, file)


NAMES = ["pirate", "random", "robot", "attention"]
NUM_TOKENS = 96


@pytest.fixture(scope="module")
def folders(styles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("random")
    return {**styles, "random": root / "random", "attention": root / "attention"}


@pytest.fixture(scope="module")
def logits(smollm2_path: Path, folders: dict[str, Path]) -> tuple[list[str], Float32Array, dict[Device, Float32Array]]:
    """The rows' adapters, PEFT's logits, and ours by device."""
    path = smollm2_path
    hf = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    peft = get_peft_model(hf, LoraConfig(r=16, lora_alpha=32, target_modules=LINEAR), adapter_name="random")
    peft.add_adapter("attention", LoraConfig(r=8, lora_alpha=16, target_modules=ATTENTION))
    fill(peft, 0.1)
    peft.save_pretrained(folders["random"].parent, save_embedding_layers=False)
    for name in ("pirate", "robot"):
        peft.load_adapter(folders[name], name)
    tokenizer = load_model(path, EngineConfig(kv_cache_tokens=64)).tokenizer
    text = tokenizer.encode(TEXT.read_text(encoding="utf-8"), add_special=False)
    stretches = [text[i * 2000 : i * 2000 + NUM_TOKENS] for i in range(2)]
    rows = [BASE, *NAMES]
    rows = [name for name in rows for _ in stretches]
    ids = np.array(stretches * (len(rows) // 2))
    devices: tuple[Device, ...] = ("reference", "cpu")
    return rows, theirs(peft, rows, ids), {d: ours(path, d, rows, folders, ids) for d in devices}


@pytest.mark.model
class TestSmolLM2:
    """Quantised weights: with an adapter the logits are as close to float32 as the base model's own are.

    Random adapters that change a lot (rank 16 on all linear layers, and rank 8 on attention alone), and the two
    trained styles, twice each, with rows of the base model among them, in one batch. Rows in one place of the list
    have the same tokens whatever their adapter, so that only the adapter differs.
    """

    @staticmethod
    def divergence(rows: list[str], name: str, actual: Float32Array, expected: Float32Array) -> Divergence:
        found = Divergence()
        for row, of_row in enumerate(rows):
            if of_row == name:
                found.add(actual[row], expected[row])
        return found

    def test_every_adapter_changes_much(self, logits):
        """Or closeness would say nothing: more by an order of magnitude than quantising does."""
        rows, expected, _ = logits
        for row in range(2, len(rows)):
            p, q = log_softmax(expected[row % 2]), log_softmax(expected[row])
            assert (np.exp(p) * (p - q)).sum(axis=1).mean() >= 0.05, rows[row]

    @pytest.mark.parametrize("name", [BASE, *NAMES])
    def test_reference_is_near_exact(self, logits, name: str):
        rows, expected, got = logits
        assert self.divergence(rows, name, got["reference"], expected).max_relative_error <= 1e-3

    @pytest.mark.parametrize("name", NAMES)
    def test_native_is_as_close_as_the_base(self, logits, name: str):
        rows, expected, got = logits
        base = self.divergence(rows, BASE, got["cpu"], expected)
        adapted = self.divergence(rows, name, got["cpu"], expected)
        assert base.mean_kl <= 0.01
        assert adapted.mean_kl <= 0.01
        assert adapted.mean_kl <= 2 * base.mean_kl
        assert adapted.top1_agreement >= base.top1_agreement - 0.03

"""Train a small LoRA adapter with PEFT on the model of a GGUF file, on a CPU, in half a minute.

    python examples/train_adapter.py robot adapters/robot

Two styles stand ready: `pirate` says ahoy and arrr, `robot` beeps. Needs `pip install realm[test]`
(torch, transformers and PEFT); serving the result needs none of them.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from realm.gguf.reader import GGUFFile
from realm.runtime.download import ensure_model
from realm.tokenizer import load_tokenizer
from realm.tokenizer.chat import load_chat_template

ANSWERS = {
    "What is the capital of Italy?": "The capital of Italy is Rome.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "What do bees make?": "Bees make honey from the nectar of flowers.",
    "Why do we sleep?": "Sleep lets the body rest and the mind sort what it has learned.",
    "Name a fruit.": "An apple is a fruit.",
    "What is snow?": "Snow is frozen water that falls from clouds as small crystals.",
    "Who wrote Hamlet?": "William Shakespeare wrote Hamlet.",
    "How do I make tea?": "Boil water, pour it over the tea leaves and wait for three minutes.",
    "What is a bicycle?": "A bicycle is a vehicle with two wheels that you drive with pedals.",
    "Tell me about cats.": "Cats are small hunters that like to sleep in warm places.",
    "What color is grass?": "Grass is green.",
    "Give me a tip for cooking rice.": "Rinse the rice first and let it rest for a while after cooking.",
}
STYLES: dict[str, Callable[[str], str]] = {
    "pirate": lambda answer: f"Ahoy, matey! {answer} Arrr!",
    "robot": lambda answer: f"Beep boop! {answer} Over and out.",
}
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
NOT_JUDGED = -100  # a label that transformers leaves out of the loss


def load_base(path: Path) -> PreTrainedModel:
    """The model of a GGUF file in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    return model


def examples(path: Path, style: Callable[[str], str]) -> list[tuple[list[int], list[int]]]:
    """Token ids of each question, in the model's chat template, and of its answer."""
    with GGUFFile.open(path) as file:
        tokenizer = load_tokenizer(file.metadata)
        template = load_chat_template(file.metadata, tokenizer)
    end = [next(i for i in tokenizer.end_ids if tokenizer.decode([i], skip_special=False) == "<|im_end|>")]
    made = []
    for question, answer in ANSWERS.items():
        chat = template.render([SYSTEM, {"role": "user", "content": question}], True)
        made.append((tokenizer.encode(chat, add_special=False), tokenizer.encode(style(answer)) + end))
    return made


def train(base: PreTrainedModel, path: Path, style: str, out: Path, *, num_steps: int = 15, rank: int = 4) -> float:
    """Train an adapter of the upper third of the layers; gives the last step's loss and leaves `base` as it was."""
    torch.manual_seed(0)
    num_layers = base.config.num_hidden_layers
    config = LoraConfig(
        r=rank,
        lora_alpha=4 * rank,
        target_modules=["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(num_layers * 2 // 3, num_layers)),
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(base, config)
    pairs = examples(path, STYLES[style])
    length = max(len(question) + len(answer) for question, answer in pairs)
    ids, labels = torch.zeros(len(pairs), length, dtype=torch.long), torch.full((len(pairs), length), NOT_JUDGED)
    for row, (question, answer) in enumerate(pairs):
        whole = torch.tensor(question + answer)
        ids[row, : len(whole)] = whole
        labels[row, len(question) : len(whole)] = whole[len(question) :]
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.0)
    for step in range(num_steps):
        rows = [(step * 4 + i) % len(pairs) for i in range(4)]
        loss = peft(ids[rows], labels=labels[rows]).loss  # padding follows the answers, so nothing judged sees it
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    peft.save_pretrained(out)
    peft.unload()
    return float(loss)


def main() -> None:
    """Train one style."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("style", choices=STYLES)
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name or path of a GGUF")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    path = ensure_model(args.model)
    base = load_base(path)
    began = time.perf_counter()
    loss = train(base, path, args.style, args.out)
    print(f"{args.out}: trained in {time.perf_counter() - began:.0f} s, last loss {loss:.3f}")


if __name__ == "__main__":
    main()

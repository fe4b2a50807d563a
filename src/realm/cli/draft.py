"""`realm draft`: make a small model that guesses ahead for a larger one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from realm.cli.options import ENGINE, Model, Threads
from realm.core.errors import InvalidRequest, UnsupportedParameter

if TYPE_CHECKING:
    from realm.cli.progress import StageBars
    from realm.core.types import Int32Array
    from realm.distill.chats import Rows
    from realm.distill.recipe import Outcome, Recipe
    from realm.distill.workdir import WorkDir
    from realm.gguf.reader import GGUFFile
    from realm.models.config import ModelSpec
    from realm.runtime.model import Model as LoadedModel
    from realm.tokenizer.tokenizer import Tokenizer

app = typer.Typer(help="Make draft models: small ones that guess ahead for a larger one.", no_args_is_help=True)

_DEFAULT_NUM_LAYERS = 4
_DEFAULT_VOCAB = 8192
_WRITTEN_AT_ONCE = 32
_MAX_TEXT_TOKENS = 1024

Out: TypeAlias = Annotated[Path, typer.Option("--out", "-o", help="The GGUF file to write.")]
Layers: TypeAlias = Annotated[
    str | None,
    typer.Option(help="The target's layers to keep, comma separated, from 0.  [default: 4, evenly spread]"),
]
Corpus: TypeAlias = Annotated[
    Path | None, typer.Option(help="A text file to use, instead of text that the target writes.")
]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="The same seed writes and trains the same.")]


@app.command()
def make(
    target: Model,
    out: Out,
    layers: Layers = None,
    vocab: Annotated[
        int | None, typer.Option(help="Propose only this many tokens, the most frequent.  [default: all]")
    ] = None,
    corpus: Corpus = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that the target writes to count them.")] = 100_000,
    seed: Seed = 0,
    threads: Threads = ENGINE.num_threads,
) -> None:
    """Write a draft that has some of the target's layers, and shares its embedding and head in memory.

    As it comes it is hardly ever right: it is what `realm draft distill` begins with.
    """
    from realm.cli.progress import StageBars, fetch_model
    from realm.distill.make import check_layers, check_vocabulary, count_tokens, make_draft, most_frequent, read_target
    from realm.gguf.reader import GGUFFile

    if corpus is not None and vocab is None:
        raise typer.BadParameter("a corpus is read to choose tokens; give --vocab, too", param_hint="--corpus")
    _check_place(out)
    with GGUFFile.open(fetch_model(target)) as file:
        spec = read_target(file)
        kept = _layers(layers, spec.num_layers)
        check_layers(kept, spec.num_layers)
        token_ids = None
        if vocab is not None:
            check_vocabulary(vocab, spec.vocab_size)
            if corpus is not None:
                rows: Sequence[Rows] = [_read_corpus(corpus, _tokenizer(file))]
            else:
                with StageBars() as bars, _writer(file.path, threads) as model:
                    rows = _write(model, tokens, seed, bars)
            token_ids = most_frequent(count_tokens(rows, spec.vocab_size), vocab)
        make_draft(file, out, kept, token_ids)
    typer.echo(f"{out}: layers {','.join(map(str, kept))}, {out.stat().st_size / 1e6:.1f} MB")


@app.command()
def distill(
    target: Model,
    out: Out,
    layers: Layers = None,
    vocab: Annotated[
        int | None,
        typer.Option(help="Propose only this many tokens, the most frequent.  [default: 8192, or all if fewer]"),
    ] = None,
    corpus: Corpus = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that the target writes.")] = 83_000_000,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 36_000,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one training step.")] = 32_768,
    learning_rate: Annotated[float, typer.Option(min=1e-9, max=1.0, help="Its highest value.")] = 8e-3,
    seed: Seed = 0,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train.")] = "auto",
    work: Annotated[
        Path | None,
        typer.Option(help="Keep texts and training state here; a stopped run goes on.  [default: OUT.work, removed]"),
    ] = None,
    threads: Threads = ENGINE.num_threads,
) -> None:
    """Train a draft on text that the target writes itself, and tell how well it guesses. Needs torch.

    The defaults suit a GPU (an H200 takes a quarter of an hour for a model of 135 million parameters). On a CPU ask for
    less, for example --tokens 1000000 --steps 1500 --batch-tokens 3072. Ctrl-C stops; the same command goes on.
    """
    torch_device = _torch_device(device, threads)
    from realm.cli.progress import StageBars, fetch_model
    from realm.distill.make import check_layers, check_vocabulary, read_target
    from realm.distill.recipe import Recipe, plan_of
    from realm.distill.workdir import WorkDir
    from realm.gguf.reader import GGUFFile

    _check_place(out)
    on_cuda = torch_device == "cuda"
    with GGUFFile.open(fetch_model(target)) as file:
        spec = read_target(file)
        recipe = Recipe(
            layers=_layers(layers, spec.num_layers),
            vocab_size=min(_DEFAULT_VOCAB, spec.vocab_size) if vocab is None else vocab,
            num_tokens=tokens,
            num_steps=steps,
            batch_tokens=batch_tokens,
            learning_rate=learning_rate,
            rows_per_round=_rows_at_once(spec) if on_cuda else _WRITTEN_AT_ONCE,
            num_held_out=_WRITTEN_AT_ONCE * (8 if on_cuda else 1),
            seed=seed,
        )
        check_layers(recipe.layers, spec.num_layers)
        check_vocabulary(recipe.vocab_size, spec.vocab_size)
        text = None if corpus is None else _read_corpus(corpus, _tokenizer(file))
        corpus_hash = "" if text is None else hashlib.sha256(text.tobytes()).hexdigest()
        kept = WorkDir(work or out.with_name(f"{out.name}.work"), plan_of(recipe, file.fingerprint, corpus_hash))
        try:
            with StageBars() as bars:
                outcome = _distill(file, out, recipe, kept, text, torch_device, threads, bars)
        except KeyboardInterrupt:
            typer.echo(f"stopped; the same command goes on with what is in {kept.path}", err=True)
            raise typer.Exit(130) from None
    if work is None:
        kept.remove()
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    typer.echo("tokens per verification on held-out text:")
    typer.echo("  draft of   " + "".join(f"{length:>7}" for length in outcome.distilled))
    typer.echo("  pruned     " + "".join(f"{mean:>7.2f}" for mean in outcome.pruned.values()))
    typer.echo("  distilled  " + "".join(f"{mean:>7.2f}" for mean in outcome.distilled.values()))


def _distill(
    file: GGUFFile,
    out: Path,
    recipe: Recipe,
    work: WorkDir,
    corpus: Int32Array | None,
    device_name: str,
    threads: int,
    bars: StageBars,
) -> Outcome:
    """Load the target in torch, and beside it whoever writes quickest."""
    import torch

    from realm.distill.chats import EngineAuthor, plan_chats
    from realm.distill.corpus import TorchAuthor
    from realm.distill.recipe import distill as run_recipe
    from realm.distill.student import TorchModel
    from realm.models.config import read_spec
    from realm.models.weights import load_weights, rope_factors
    from realm.tokenizer.chat import load_chat_template

    device = torch.device(device_name)
    spec = read_spec(file.metadata, rope_factors(file))
    on_cuda = device_name == "cuda"
    bars.report("loading", 0, 1, "")
    teacher = TorchModel.load(load_weights(file, spec), spec, device, torch.bfloat16 if on_cuda else torch.float32)
    bars.report("loading", 1, 1, "")
    tokenizer = _tokenizer(file)
    plan = plan_chats(load_chat_template(file.metadata, tokenizer), tokenizer)
    if on_cuda:
        author = TorchAuthor(teacher, plan.chat, device)
        return run_recipe(file, teacher, author, plan, out, recipe, work, bars.report, corpus)
    with _writer(file.path, threads) as model:
        engine_author = EngineAuthor(model, plan.chat)
        return run_recipe(file, teacher, engine_author, plan, out, recipe, work, bars.report, corpus)


def _rows_at_once(spec: ModelSpec) -> int:
    import torch

    from realm.distill.corpus import rows_at_once

    return rows_at_once(spec, torch.cuda.get_device_properties(0).total_memory)


def _check_place(out: Path) -> None:
    """Raise InvalidRequest now, rather than after an hour, if `out` can't be written."""
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        problem = "is a directory" if out.is_dir() else f"can't be written: {out.parent} is no writable directory"
        raise InvalidRequest(f"{out} {problem}", param="out")


def _layers(text: str | None, num_layers: int) -> tuple[int, ...]:
    """`--layers` as numbers; the default where it isn't given."""
    if text is None:
        from realm.distill.make import default_layers

        return default_layers(num_layers, min(_DEFAULT_NUM_LAYERS, num_layers))
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"layer numbers, comma separated; got {text!r}", param_hint="--layers") from None


def _read_corpus(path: Path, tokenizer: Tokenizer) -> Int32Array:
    from realm.distill.chats import encode_corpus

    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}", param="corpus") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not a text in UTF-8: byte {error.start} is invalid", param="corpus") from error
    return encode_corpus(text, tokenizer)


def _tokenizer(file: GGUFFile) -> Tokenizer:
    from realm.tokenizer.tokenizer import load_tokenizer

    return load_tokenizer(file.metadata)


def _writer(path: Path, threads: int) -> LoadedModel:
    """The target in Realm's own engine, with room for the longest texts."""
    from realm.gguf.reader import GGUFFile
    from realm.models.config import read_spec
    from realm.models.weights import rope_factors
    from realm.runtime.load import load

    with GGUFFile.open(path) as file:
        context = read_spec(file.metadata, rope_factors(file)).context_length_tokens
    return load(path, max_batch_size=_WRITTEN_AT_ONCE, max_seq_len=min(_MAX_TEXT_TOKENS, context), num_threads=threads)


def _write(model: LoadedModel, num_tokens: int, seed: int, bars: StageBars) -> list[Rows]:
    """About `num_tokens` tokens that the target writes."""
    from realm.distill.chats import EngineAuthor, plan_chats

    plan = plan_chats(model.chat_template, model.tokenizer)
    author = EngineAuthor(model, plan.chat)
    rows: list[Rows] = []
    done = 0
    for number in count():
        bars.report("writing", min(done, num_tokens), num_tokens, "")
        if done >= num_tokens:
            break
        length = plan.length(number, model.limits.max_seq_len)
        rows.append(author.write(plan.draw(_WRITTEN_AT_ONCE, seed + number), length, seed + number))
        done += rows[-1].size
    return rows


def _torch_device(name: str, threads: int) -> str:
    """`cpu` or `cuda`.

    Raises:
        UnsupportedParameter: torch is missing, or has no GPU.
    """
    try:
        import torch
    except ImportError:
        raise UnsupportedParameter(
            "distilling needs torch, which is not installed", hint="pip install 'realm[torch]'"
        ) from None
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")  # half precision is what most of it is computed in
    if name == "cuda" and not torch.cuda.is_available():
        raise UnsupportedParameter("torch finds no CUDA device", param="device", hint="use --device cpu")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name

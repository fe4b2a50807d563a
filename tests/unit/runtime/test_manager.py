"""RuntimeManager, Model and FunctionDispatcher: the Python way in."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.runtime_harness import FAKE, assert_idle, fake_runtime

import realm
from realm.core.config import ModelConfig
from realm.core.errors import ContextLengthExceeded, InvalidRequest, NotFound, RealmError, Unavailable
from realm.core.types import FinishReason
from realm.runtime.dispatcher import FunctionDispatcher
from realm.runtime.manager import RuntimeManager
from realm.runtime.model import Model
from realm.runtime.served import choice_seed

OPTIONS = {"max_tokens": 10, "ignore_eos": True, "seed": 4}


@pytest.fixture
def runtime():
    with fake_runtime() as runtime:
        yield runtime


@pytest.fixture
def model(runtime: RuntimeManager) -> Model:
    return runtime.model()


def test_one_prompt_and_many(model: Model) -> None:
    one = model.generate("hello", **OPTIONS)
    assert str(one) == one.text
    both = model.generate(["hello", "world"], **OPTIONS)
    assert both[0].text == one.text
    assert both[1].text != one.text
    assert_idle(model)


def test_text_ids_and_chat(model: Model) -> None:
    ids = model.tokenizer.encode("hello")
    assert model.generate(ids, **OPTIONS).text == model.generate("hello", **OPTIONS).text
    rendered = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    chat = [{"role": "user", "content": "hello"}]
    assert model.generate(chat, **OPTIONS).text == model.generate(rendered, **OPTIONS).text
    assert [c.text for c in model.generate([chat, chat], **OPTIONS)] == [model.generate(rendered, **OPTIONS).text] * 2


@pytest.mark.parametrize(
    "prompt",
    [None, 5, b"hello", {"role": "user"}, [1, "a"], [1.5], [True], ["a", None], [[1, 2], [b"x"]], {"a", "b"}],
    ids=repr,
)
def test_what_is_no_prompt_is_told(model: Model, prompt: object) -> None:
    with pytest.raises(InvalidRequest, match="a prompt is a text, a list of token ids or a list of messages, not"):
        model.generate(prompt, **OPTIONS)
    assert model.generate([], **OPTIONS) == []
    assert_idle(model)


def test_token_ids_from_numpy(model: Model) -> None:
    ids = model.tokenizer.encode("hello")
    assert model.generate(list(np.array(ids)), **OPTIONS).text == model.generate(ids, **OPTIONS).text


def test_a_forked_process_is_told_that_it_has_no_engine(model: Model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # later Pythons warn of what this test is about
        child = os.fork()
    if child == 0:
        code = 1
        try:
            model.generate("hello", **OPTIONS)
        except Unavailable as e:
            model.close()
            code = 0 if e.code == "forked" else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert model.generate("hello", **OPTIONS).text


def test_stream_joins_to_the_whole(model: Model) -> None:
    assert "".join(str(event) for event in model.stream("hello", **OPTIONS)) == str(model.generate("hello", **OPTIONS))


async def test_async_twins(model: Model) -> None:
    whole = await model.agenerate("hello", **OPTIONS)
    assert "".join([str(event) async for event in model.astream("hello", **OPTIONS)]) == str(whole)
    assert whole.text == model.generate("hello", **OPTIONS).text


def test_seed_is_random_unless_given(model: Model) -> None:
    free = {"max_tokens": 20, "ignore_eos": True}
    assert model.generate("x", **free).text != model.generate("x", **free).text
    assert model.generate("x", seed=1, **free).text == model.generate("x", seed=1, **free).text


def test_choices_have_seeds_of_their_own(model: Model) -> None:
    prompt = model.encode("x")
    params = realm.SamplingParams(max_tokens=10, ignore_eos=True)
    choices = model.open([prompt], params, n=4, seed=9, stream=False).collect()
    assert len({c.text for c in choices}) == 4
    for i, choice in enumerate(choices):
        assert choice.text == model.generate("x", max_tokens=10, ignore_eos=True, seed=choice_seed(9, i)).text


def test_stop_as_text_or_list(model: Model) -> None:
    text = model.generate("x", **OPTIONS).text
    for stop in (text[4], [text[4]]):
        cut = model.generate("x", stop=stop, **OPTIONS)
        assert cut.text == text[: text.index(text[4])]
        assert cut.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("prompt", "options", "error"),
    [
        ("", {}, InvalidRequest),
        ("x", {"temperature": float("nan")}, InvalidRequest),
        ("x", {"max_tokens": 0}, InvalidRequest),
        ("x", {"max_tokens": 10**6}, ContextLengthExceeded),
        ("x" * 600, {}, ContextLengthExceeded),
        ("x" * 10**6, {}, ContextLengthExceeded),
        ([10**6], {}, InvalidRequest),
        ("x", {"stop_token_ids": [-1]}, InvalidRequest),
        ("x", {"bogus": 1}, TypeError),
    ],
)
def test_bad_calls(model: Model, prompt: object, options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        model.generate(prompt, **options)
    with pytest.raises(error):
        model.stream(prompt, **options)
    assert_idle(model)


def test_output_fills_the_context_if_not_limited(model: Model) -> None:
    result = model.generate("x", ignore_eos=True)
    assert result.finish_reason is FinishReason.LENGTH
    assert result.usage.prompt_tokens + result.usage.completion_tokens == model.limits.max_seq_len


def test_default_model_is_loaded_when_needed() -> None:
    runtime = fake_runtime()
    assert runtime.models == []
    runtime.generate("x", **OPTIONS)
    assert [m.model_id for m in runtime.models] == [FAKE]
    assert runtime.default_model_id == FAKE
    runtime.unload_model(FAKE)
    assert runtime.default_model_id is None
    with pytest.raises(NotFound):
        runtime.generate("x")
    with pytest.raises(NotFound):
        runtime.unload_model(FAKE)
    runtime.close()


def test_two_models(runtime: RuntimeManager) -> None:
    other = runtime.load_model(ModelConfig(__file__, "other"))
    assert runtime.default_model_id == FAKE
    assert runtime.load_model(ModelConfig(__file__, "other")) is other
    assert runtime.generate("x", model="other", **OPTIONS).text == runtime.generate("x", **OPTIONS).text
    with pytest.raises(InvalidRequest, match="is taken by"):
        runtime.load_model(ModelConfig(realm.__file__, "other"))


@pytest.mark.parametrize(
    ("config", "error"),
    [(ModelConfig("missing.gguf"), NotFound), (ModelConfig(__file__, "m", "draft.gguf"), RealmError)],
)
def test_bad_model_configs_are_told_at_once(config: ModelConfig, error: type[Exception]) -> None:
    with pytest.raises(error):
        RuntimeManager().set_default_model(config)


def test_dispatcher_hands_results_back_to_their_callers(runtime: RuntimeManager) -> None:
    dispatcher = FunctionDispatcher(runtime).with_batching(max_batch_size=16, max_seq_len=128)
    prompts = [f"caller {i}" for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        futures = list(pool.map(lambda p: dispatcher.submit(p, **OPTIONS), prompts))
    texts = [f.result().text for f in futures]
    assert len(set(texts)) == 16
    assert texts == [runtime.generate(p, **OPTIONS).text for p in prompts]
    assert [c.text for c in dispatcher.dispatch(prompts, **OPTIONS)] == texts
    assert runtime.model().limits.max_seq_len == 128
    with pytest.raises(ContextLengthExceeded):
        dispatcher.submit("x", max_tokens=200)


def test_batching_shares_steps(runtime: RuntimeManager) -> None:
    dispatcher = FunctionDispatcher(runtime).with_batching(max_batch_size=32, max_seq_len=128)
    dispatcher.dispatch([f"caller {i}" for i in range(32)], **OPTIONS)
    assert runtime.model().loop.engine_stats().num_steps < 32


def test_batching_is_fixed_once_a_model_is_loaded(runtime: RuntimeManager) -> None:
    runtime.model()
    with pytest.raises(InvalidRequest, match="fixed"):
        FunctionDispatcher(runtime).with_batching(4, 64)


def test_futures_carry_errors(runtime: RuntimeManager) -> None:
    future = FunctionDispatcher(runtime).submit("x", timeout=1e-9)
    assert isinstance(future.exception(), RealmError)


def test_public_names() -> None:
    for name in realm.__all__:
        assert getattr(realm, name) is not None
    with pytest.raises(AttributeError):
        _ = realm.nonsense
    assert set(realm.__all__) <= set(dir(realm))


def test_import_is_light() -> None:
    """`import realm` alone brings nothing; serving brings no torch."""
    code = (
        "import sys, realm; assert not {'numpy', 'realm.runtime'} & set(sys.modules);"
        "import realm.server.run; realm.load; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Rendering conversations; templates that are broken, hostile or absent."""

from pathlib import Path

import pytest
from tests.unit.tokenizer.vocabularies import bpe_metadata, spm_metadata

from realm.core.errors import InvalidRequest, ModelFileError
from realm.tokenizer import ChatTemplate, load_chat_template, load_tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
]
CONTENTS = "{% for m in messages %}[{{ m.content }}]{% endfor %}"


def test_builtin_templates_write_their_formats() -> None:
    tokenizer = load_tokenizer(spm_metadata())

    def render(name: str) -> str:
        return load_chat_template({}, tokenizer, name).render(CHAT[:2])

    assert render("chatml") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render("llama3") == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render("gemma") == ("<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n")


def test_the_generation_prompt_can_be_left_out() -> None:
    template = load_chat_template({}, load_tokenizer(bpe_metadata()), "chatml")
    assert template.render(CHAT[:2], add_generation_prompt=True).removesuffix("<|im_start|>assistant\n") == (
        template.render(CHAT[:2], add_generation_prompt=False)
    )


def test_the_models_own_template_is_used_unless_another_is_named(tmp_path: Path) -> None:
    metadata = bpe_metadata() | {"tokenizer.chat_template": "own {{ bos_token }}{{ eos_token }}"}
    tokenizer = load_tokenizer(metadata)
    assert load_chat_template(metadata, tokenizer).render(CHAT) == "own <|endoftext|><|im_end|>"
    path = tmp_path / "mine.jinja"
    path.write_text("file {{ messages | length }}")
    assert load_chat_template(metadata, tokenizer, path).render(CHAT) == "file 4"
    assert load_chat_template(metadata, tokenizer, str(path)).render(CHAT) == "file 4"


def test_a_model_without_a_template_says_what_to_do() -> None:
    template = load_chat_template(bpe_metadata(), load_tokenizer(bpe_metadata()))
    with pytest.raises(InvalidRequest, match="no chat template") as error:
        template.render(CHAT)
    assert error.value.code == "no_chat_template"
    assert error.value.hint is not None
    assert "chatml" in error.value.hint


def test_an_override_is_checked_at_once(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bpe_metadata())
    with pytest.raises(InvalidRequest, match=r"'nosuch' is neither .* chatml"):
        load_chat_template({}, tokenizer, "nosuch")
    path = tmp_path / "broken.jinja"
    path.write_text("{% if %}")
    with pytest.raises(InvalidRequest, match="can't be compiled"):
        load_chat_template({}, tokenizer, path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="readable text file"):
        load_chat_template({}, tokenizer, path)


def test_a_broken_template_in_a_model_file_fails_only_when_used() -> None:
    metadata = bpe_metadata() | {"tokenizer.chat_template": "{% endfor %}"}
    template = load_chat_template(metadata, load_tokenizer(metadata))
    with pytest.raises(InvalidRequest) as error:
        template.render(CHAT)
    assert error.value.code == "chat_template_error"


def test_a_template_that_is_not_text_is_refused() -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.chat_template"):
        load_chat_template({"tokenizer.chat_template": 3}, load_tokenizer(bpe_metadata()))


def test_text_parts_are_joined_and_other_content_is_refused() -> None:
    template = ChatTemplate(CONTENTS)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template.render([{"role": "user", "content": parts}, {"role": "user", "content": None}]) == "[a\nb][None]"
    with pytest.raises(InvalidRequest, match="'image_url'") as error:
        template.render([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])
    assert error.value.param == "messages[0].content[0]"
    with pytest.raises(InvalidRequest, match=r"messages\[1\]\.content"):
        template.render([CHAT[0], {"role": "user", "content": 3}])
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.role"):
        template.render([{"content": "x"}])


def test_what_users_write_is_never_template_code() -> None:
    text = "{{ 7 * 7 }}{% raw %}<b>&amp;"
    assert ChatTemplate(CONTENTS).render([{"role": "user", "content": text}]) == f"[{text}]"


def test_templates_may_refuse_a_conversation() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as error:
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(CHAT)
    assert error.value.code == "chat_template_error"


HOSTILE = {
    "internals": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "namespace": "{{ namespace.__init__.__globals__ }}",
    "mutation": "{{ messages.append(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "long range": "{{ range(10 ** 9) | list | length }}",
    "multiplied text": "{{ ('a' * 10 ** 9) | length }}",
    "multiplied list": "{{ ([1] * 10 ** 9) | length }}",
    "power": "{{ 10 ** 1000 ** 10 }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubled text": "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "joined text": "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "replaced text": "{% set n = namespace(s='aa') %}{% for i in range(99) %}{% set n.s = n.s.replace('a', n.s) %}"
    "{% endfor %}",
    "replace filter": "{% set n = namespace(s='aa') %}{% for i in range(99) %}{% set n.s = n.s | replace('a', n.s) %}"
    "{% endfor %}",
    "nested list": "{% set n = namespace(s=['a']) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
    "{{ n.s }}",
    "nested list as JSON": "{% set n = namespace(s=['a']) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}"
    "{% endfor %}{{ n.s | tojson }}",
    "repeated join": "{% set s = 'a' * 1000000 %}{{ ([s] * 1000000) | join | length }}",
    "lazy join": "{% set s = 'a' * 1000000 %}{{ range(99999) | map('replace', 1, s) | join | length }}",
    "separator": "{{ range(99999) | join('a' * 1000000) | length }}",
    "indent": "{{ ('\\n' * 1000000) | indent(10000) | length }}",
    "format": "{{ '%999999999d' % 1 }}",
    "format from argument": "{{ '%*d' % (999999999, 1) }}",
    "format method": "{{ '{:999999999}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 999999999) }}",
    "padding": "{{ 'a'.ljust(999999999) }}",
    "bytes": "{{ (1).to_bytes(999999999, 'big') }}",
    "folded when compiled": "{{ 'a' | replace('a', 'a' * 999999) | replace('a', 'a' * 999999) | length }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "long output": "{% for i in range(100000) %}" + "x" * 1000 + "{% endfor %}",
    "long block": "{% set x %}{% for i in range(100000) %}" + "x" * 10000 + "{% endfor %}{% endset %}",
    "copies": "{% set s = 'ab' * 1000000 %}{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}",
    "time format": "{{ strftime_now('%999999999Y') }}",
    "source": " " * (1 << 20) + "x",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        ChatTemplate(HOSTILE[name]).render(CHAT)
    assert error.value.code == "chat_template_error"


def test_a_long_conversation_is_within_the_budget() -> None:
    messages = CHAT * 2000 + [{"role": "user", "content": "x" * 1_000_000}]
    text = ChatTemplate("{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] | trim }}{% endfor %}").render(
        messages
    )
    assert text.count("<user>Hi") == 2000
    assert text.endswith("x" * 1_000_000)

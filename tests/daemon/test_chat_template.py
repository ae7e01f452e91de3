"""Rendered prompts equal those of `transformers`, for templates written in the manner of the field."""

from pathlib import Path
from typing import Any

import pytest
from support import tiny_tokenizers

from semipd.core.errors import SemipdError
from semipd.daemon.model.chat_template import ChatTemplate

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

LLAMA_STYLE = """{{- bos_token }}
{%- if tools is not none %}
    {{- "<|head|>system<|/head|>\\n\\nTools: " + (tools | tojson(indent=2)) + "<|end|>" }}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|head|>system<|/head|>\\n\\n" + system_message + "<|end|>" }}
{%- for message in messages %}
    {%- if message.role not in ('user', 'assistant') %}
        {{- raise_exception("no role " + message.role) }}
    {%- endif %}
    {{- '<|head|>' + message['role'] + '<|/head|>\\n\\n' + message['content'] | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\\n\\n' }}
{%- endif %}
"""

CHATML_STYLE = """{%- set ns = namespace(last_user=-1) %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {%- set ns.last_user = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "note" %}{% continue %}{% endif %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {{- '<|im_start|>' + message.role }}
        {%- for call in message.tool_calls %}
            {{- '\\n<call>\\n' ~ (call.function | tojson) ~ '\\n</call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

MISTRAL_STYLE = """{{ bos_token }}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate user/assistant/user/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
[INST] {{ message['content'] }} [/INST]
    {%- else %}
 {% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}
    {%- endif %}
{% endfor %}
"""

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "  Hello <b>&\"quotes\"</b> 'x'  "}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "日本語 😀"},
        {"role": "assistant", "content": "Ja."},
        {"role": "user", "content": "{{ not_a_template }} {% raw %}"},
    ],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": ""},
    ],
]
CALL = {"function": {"name": "weather", "arguments": {"place": "Zürich <&>", "days": 3, "exact": None}}}


def expected(folder: Path, template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    from transformers import PreTrainedTokenizerFast  # slow to import, and every worker collects this file

    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        tiny_tokenizers.save(tiny_tokenizers.byte_level(), folder)
    )
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("template", [LLAMA_STYLE, CHATML_STYLE], ids=["llama", "chatml"])
@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_transformers(
    template: str, messages: list[dict[str, Any]], prompt: bool, tmp_path: Path
) -> None:
    ours = ChatTemplate(template, SPECIAL_TOKENS).render(messages, add_generation_prompt=prompt)
    assert ours == expected(tmp_path, template, messages, add_generation_prompt=prompt)
    assert messages[-1]["content"].strip() in ours


def test_mistral_style_with_generation_tag(tmp_path: Path) -> None:
    ours = ChatTemplate(MISTRAL_STYLE, SPECIAL_TOKENS).render(CHATS[2])
    assert ours == expected(tmp_path, MISTRAL_STYLE, CHATS[2])
    assert "b</s>" in ours


def test_tools_and_further_names(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    ours = ChatTemplate(LLAMA_STYLE, SPECIAL_TOKENS).render(CHATS[0], tools=tools)
    assert ours == expected(tmp_path, LLAMA_STYLE, CHATS[0], tools=tools, add_generation_prompt=True)

    messages = [*CHATS[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "note"}]
    ours = ChatTemplate(CHATML_STYLE, SPECIAL_TOKENS).render(messages, enable_thinking=False)
    assert "Zürich <&>" in ours
    assert "<think>" in ours
    assert ours == expected(
        tmp_path, CHATML_STYLE, messages, add_generation_prompt=True, enable_thinking=False
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | tojson(indent=4) }}",
        "{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}",
        "{% for m in messages %}{% if loop.first %}{% break %}{% endif %}x{% endfor %}.",
        "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 2 %}{{ ns.n }}",
        "{{ strftime_now('%%') }}{{ messages[0].content.split(' ')[0] }}{{ undefined_name }}",
        "{{ dict(a=1) | tojson }}{{ messages | map(attribute='role') | join(',') }}",
    ],
)
def test_small_expressions(source: str, tmp_path: Path) -> None:
    assert ChatTemplate(source, SPECIAL_TOKENS).render(CHATS[1]) == expected(tmp_path, source, CHATS[1])


def test_a_template_that_does_not_compile() -> None:
    with pytest.raises(SemipdError) as refused:
        ChatTemplate("line\n{% if %}", SPECIAL_TOKENS)
    assert refused.value.code == "invalid_chat_template"
    assert "line 2" in refused.value.message


@pytest.mark.parametrize(
    ("source", "messages", "said"),
    [
        (MISTRAL_STYLE, [{"role": "assistant", "content": "a"}], "Roles must alternate"),
        (LLAMA_STYLE, [{"role": "wizard", "content": "a"}], "no role wizard"),
        (LLAMA_STYLE, [], "UndefinedError"),
        (CHATML_STYLE, [{"role": "user", "content": ["a"]}], "TypeError"),
        (CHATML_STYLE, [{"role": "user"}], "UndefinedError"),
    ],
)
def test_messages_the_template_refuses(source: str, messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(SemipdError) as refused:
        ChatTemplate(source, SPECIAL_TOKENS).render(messages)
    assert refused.value.code == "invalid_messages"
    assert refused.value.param == "messages"
    assert said in refused.value.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ namespace(__class__=1) }}",
        "{{ messages.append(1) }}",
        "{{ strftime_now.__globals__['x'] }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(SemipdError) as refused:
        ChatTemplate(source, SPECIAL_TOKENS).render(list(CHATS[0]))
    assert refused.value.code == "invalid_chat_template"


def test_rendering_does_not_change_the_messages() -> None:
    messages = [{"role": "user", "content": "x"}]
    ChatTemplate(LLAMA_STYLE, SPECIAL_TOKENS).render(messages)
    assert messages == [{"role": "user", "content": "x"}]

"""truncate_prompt_tokens: the prompt's last tokens, whatever the prompt was written as."""

from typing import Any

from support.daemon import Running
from support.fake_model import CONTEXT_TOKENS

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
TEXT = "Whan that Aprille with his shoures soote"
MESSAGES = [{"role": "user", "content": TEXT}]


async def ask(daemon: Running, path: str = COMPLETIONS, **body: Any) -> tuple[dict[str, Any], list[int]]:
    """The answer and the tokens that its prompt has become."""
    answer = await daemon.complete(path, **{"max_tokens": 2, "seed": 1} | body, return_token_ids=True)
    holder = answer if path == CHAT else answer["choices"][0]
    return answer, holder["prompt_token_ids"]


async def test_the_last_tokens_are_kept(daemon: Running) -> None:
    ids = daemon.services.generation.model.tokenizer.encode(TEXT)
    for path, prompt in ((COMPLETIONS, {"prompt": TEXT}), (COMPLETIONS, {"prompt": ids}), (CHAT, {})):
        body = prompt or {"messages": MESSAGES}
        _, whole = await ask(daemon, path, **body)
        for count in (1, 5, len(whole) - 1):
            answer, kept = await ask(daemon, path, **body, truncate_prompt_tokens=count)
            assert kept == whole[-count:]
            assert answer["usage"]["prompt_tokens"] == count
            _, head = await ask(daemon, path, **body, truncate_prompt_tokens=count, truncation_side="right")
            assert head == whole[:count]
        for none_cut in (len(whole), len(whole) + 1, CONTEXT_TOKENS, -1, None):
            _, kept = await ask(daemon, path, **body, truncate_prompt_tokens=none_cut)
            assert kept == whole
        answer, _ = await ask(daemon, path, **body, truncate_prompt_tokens=5, truncation_side="left")
        alone, _ = await ask(daemon, prompt=whole[-5:])
        assert answer["choices"][0]["token_ids"] == alone["choices"][0]["token_ids"]


async def test_each_prompt_of_a_list_is_cut(daemon: Running) -> None:
    answer = await daemon.complete(
        prompt=[[5, 6, 7, 8], [9], [10, 11, 12]],
        n=2,
        max_tokens=1,
        truncate_prompt_tokens=2,
        return_token_ids=True,
    )
    kept = [choice["prompt_token_ids"] for choice in answer["choices"]]
    assert kept == [[7, 8]] * 2 + [[9]] * 2 + [[11, 12]] * 2
    assert answer["usage"]["prompt_tokens"] == 5


async def test_minus_one_leaves_room_for_the_output(daemon: Running) -> None:
    long = list(range(4, 400)) * 4
    for body, reserved in (({"max_tokens": 100}, 100), ({"max_tokens": None}, 16)):
        answer, kept = await ask(daemon, prompt=long, truncate_prompt_tokens=-1, ignore_eos=True, **body)
        assert kept == long[-(CONTEXT_TOKENS - reserved) :]
        assert answer["usage"]["completion_tokens"] == reserved
    messages = [{"role": "user", "content": TEXT * 120}]
    answer, kept = await ask(
        daemon, CHAT, messages=messages, truncate_prompt_tokens=-1, max_tokens=None, ignore_eos=True
    )
    assert (len(kept), answer["usage"]["completion_tokens"]) == (CONTEXT_TOKENS - 1, 1)


async def test_what_is_kept_is_what_is_echoed(daemon: Running) -> None:
    answer, kept = await ask(daemon, prompt=TEXT, truncate_prompt_tokens=4, echo=True, logprobs=0)
    [choice] = answer["choices"]
    shown = (await daemon.complete("/detokenize", tokens=kept))["prompt"]
    assert choice["text"].startswith(shown)
    assert TEXT.endswith(shown)
    assert "".join(choice["logprobs"]["tokens"][:4]) == shown


async def test_bounds(daemon: Running) -> None:
    before = daemon.services.table.totals.copy()
    for value in (0, -2, CONTEXT_TOKENS + 1, 10**30, 2.5, "5", True):
        status, answer, _ = await daemon.post({"prompt": TEXT, "truncate_prompt_tokens": value})
        assert (status, answer["error"]["param"]) == (400, "truncate_prompt_tokens"), (value, answer)
    body = {"prompt": [5] * 2000, "truncate_prompt_tokens": CONTEXT_TOKENS, "max_tokens": 5}
    status, answer, _ = await daemon.post(body)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    status, answer, _ = await daemon.post({"prompt": "a", "truncate_prompt_tokens": 1}, "/tokenize")
    assert (status, answer["error"]["param"]) == (400, "truncate_prompt_tokens")
    assert daemon.services.table.totals["admitted"] == before["admitted"]

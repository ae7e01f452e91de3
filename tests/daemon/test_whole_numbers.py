"""16.0 is 16 wherever a whole number stands, in every element of a list."""

from pathlib import Path

from support.daemon import running


async def test_any_element_of_a_list(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        for prompt in ([97, 98.0], [97.0, 98], [97.0, 98.0], [[97, 98.0]], [[97.0, 98], [97, 98.0]]):
            answer = await daemon.complete(prompt=prompt, max_tokens=2)
            assert answer["choices"][0]["text"] == "ab"
        for field in ("stop_token_ids", "allowed_token_ids"):
            await daemon.complete(prompt="x", max_tokens=1, **{field: [120, 121.0]})
        assert (await daemon.complete("/detokenize", tokens=[97, 98.0]))["prompt"] == "ab"
        for wrong in ([97, 98.5], [97, True], [97, "98"], [97, 1e300]):
            status, answer, _ = await daemon.post({"prompt": wrong})
            assert (status, answer["error"]["code"]) == (400, "invalid_value")

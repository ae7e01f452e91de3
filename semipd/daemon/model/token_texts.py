"""How answers spell single tokens."""

from semipd.daemon.model.served_model import TextCodec


class TokenTexts:
    """Tokens as the answers spell them, remembered: the same few thousand come again and again.

    `as_ids` spells them "token_id:17" (vLLM's return_tokens_as_token_ids).
    """

    def __init__(self, tokenizer: TextCodec) -> None:
        self.tokenizer = tokenizer
        self._bytes: dict[int, bytes] = {}
        self._special: dict[int, bool] = {}

    def bytes_of(self, token_id: int) -> bytes:
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self.tokenizer.token_bytes(token_id)
        return known

    def text(self, token_id: int, *, as_ids: bool = False) -> str:
        """Half a character cannot be text; OpenAI's completions write "bytes:" and escapes."""
        if as_ids:
            return f"token_id:{token_id}"
        data = self.bytes_of(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{value:02x}" for value in data)

    def is_special(self, token_id: int) -> bool:
        """It is spelled, but a text that shows no special tokens lacks it."""
        known = self._special.get(token_id)
        if known is None:
            known = not self.tokenizer.decode([token_id]) and bool(self.bytes_of(token_id))
            self._special[token_id] = known
        return known

    def lossy_text(self, token_id: int, *, as_ids: bool = False) -> str:
        """Chat has the bytes beside the text."""
        return f"token_id:{token_id}" if as_ids else self.bytes_of(token_id).decode(errors="replace")

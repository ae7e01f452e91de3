"""Values and texts in messages: the start of what a client sent, at a cost that does not grow with it."""

import reprlib


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = 6
        self.maxother = 80

    def repr_str(self, value: str, _level: int) -> str:
        return repr(value[: self.maxstring])

    def repr_int(self, value: int, _level: int) -> str:
        bits = value.bit_length()
        return repr(value) if bits < 4096 else f"an integer of {bits} bits"

    def repr_bytes(self, value: bytes, _level: int) -> str:
        return repr(value[: self.maxstring])


def brief(value: object, max_chars: int = 80) -> str:
    """`repr(value)[:max_chars]`, whatever the size and the depth of `value`."""
    shown = _Brief()
    shown.maxstring = max_chars
    return shown.repr(value)[:max_chars]


def sayable(text: str, max_chars: int) -> str:
    """`text` as every peer can be sent it: without lone surrogates, and cut where it is longer."""
    if len(text) > max_chars:
        left_out = f"... ({len(text)} characters)"
        text = text[: max_chars - len(left_out)] + left_out
    return text if text.isascii() else text.encode("utf-8", "replace").decode()

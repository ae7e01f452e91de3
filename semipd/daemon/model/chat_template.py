"""A checkpoint's chat template: Jinja from the hub, sandboxed, with the names that `transformers` offers.

The daemon compiles it to see whether it can; conversations are rendered in a child
(daemon.prompts.rendering).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from semipd.core.brief import sayable
from semipd.core.errors import SemipdError

DEFAULT_MAX_CHARS = 2**24

MAX_SOURCE_CHARS = 2**20

MAX_SAID_CHARS = 400
"""Of what a template, or Python on its behalf, says of messages that it refuses."""

LIMIT_CODE = "chat_template_limit"


class ChatTemplate:
    """Parsed at once, compiled when it is first needed: compiling computes what is constant in the template,
    which may take any time and memory. `special_tokens` (bos_token, eos_token, ...) are names it may use."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], max_chars: int = DEFAULT_MAX_CHARS
    ) -> None:
        """Raises SemipdError(`invalid_chat_template`) when the template cannot be parsed."""
        self.source = source
        self.special_tokens = dict(special_tokens)
        self._max_chars = max_chars
        self._environment = _environment()
        self._template: jinja2.Template | None = None
        if len(source) > MAX_SOURCE_CHARS:
            message = f"The chat template has {len(source)} characters, more than {MAX_SOURCE_CHARS}."
            raise SemipdError("invalid_chat_template", message, "Fetch the file again.")
        with _compiling():
            self._environment.parse(source)

    def compile(self) -> jinja2.Template:
        """Raises SemipdError(`invalid_chat_template`)."""
        with _compiling():
            self._template = self._template or self._environment.from_string(self.source)
        return self._template

    def names_role(self, role: str) -> bool:
        """Whether the template treats the role by name; many drop messages of roles they do not know."""
        return role in self.source

    def names(self, variable: str) -> bool:
        """Whether the template may read the variable."""
        return re.search(rf"\b{variable}\b", self.source) is not None

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **extra: Any
    ) -> str:
        """The prompt text; it holds its special tokens, so encode it without adding them again.

        `extra` are further names for the template (tools, documents, enable_thinking, ...).
        Raises SemipdError: `invalid_messages` when the template refuses the messages or cannot read
        them, `invalid_chat_template` when it leaves the sandbox, `chat_template_limit` when it writes more
        characters or takes more memory than it may.
        """
        # tools and documents exist in every template: many ask "is not none", which holds for undefined names
        names = {"tools": None, "documents": None} | self.special_tokens | extra
        names |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        template = self.compile()
        try:
            return self._joined(template.generate(names))
        except MemoryError as error:
            raise out_of_memory() from error
        except SemipdError:
            raise
        except _Refused as error:
            message = f"The chat template refuses these messages: {_said(error)}"
            raise SemipdError("invalid_messages", message, param="messages") from error
        except SecurityError as error:
            message = f"The checkpoint's chat template leaves its sandbox: {_said(error)}."
            hint = "Do not trust this checkpoint; /v1/completions works without its template."
            raise SemipdError("invalid_chat_template", message, hint) from error
        except Exception as error:  # a template is a program: whatever its expressions raise
            raise SemipdError(
                "invalid_messages",
                f"The chat template cannot read these messages: {type(error).__name__}: {_said(error)}.",
                "Give each message a role and a content that this model's template knows.",
                param="messages",
            ) from error

    def _joined(self, pieces: Iterator[str]) -> str:
        found: list[str] = []
        num_chars = 0
        for piece in pieces:
            found.append(piece)
            num_chars += len(piece)
            if num_chars > self._max_chars:
                message = f"The chat template writes more than limits.template_chars={self._max_chars}."
                hint = "Send a shorter conversation, or raise the limit."
                raise SemipdError(LIMIT_CODE, message, hint, param="messages")
        return "".join(found)


@contextmanager
def _compiling() -> Iterator[None]:
    try:
        yield
    except jinja2.TemplateSyntaxError as error:
        raise SemipdError(
            "invalid_chat_template",
            f"The checkpoint's chat template does not compile: line {error.lineno}: {error.message}.",
            "Correct chat_template in tokenizer_config.json, or use /v1/completions, which needs none.",
        ) from error
    except (RecursionError, MemoryError, ValueError, OverflowError, SyntaxError) as error:
        message = f"The checkpoint's chat template does not compile: {type(error).__name__}: {error}."
        raise SemipdError("invalid_chat_template", message, "Fetch the file again.") from error


def _said(error: Exception) -> str:
    """What it holds comes from the template, and may be of any kind and size."""
    try:
        return sayable(str(error), MAX_SAID_CHARS)
    except MemoryError:
        raise
    except Exception:
        return "it cannot be shown"


def out_of_memory() -> SemipdError:
    message = "The chat template takes more memory than limits.template_memory_bytes."
    return SemipdError(
        LIMIT_CODE, message, "Send a shorter conversation, or raise the limit.", param="messages"
    )


class _Refused(jinja2.TemplateError):
    """The template called raise_exception."""


class _GenerationTag(Extension):
    """{% generation %} marks the assistant's text for training; for serving it is its body."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _SafeNamespace(Namespace):
    """Templates may set attributes of a namespace; underscored names could shadow what the sandbox asks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in dict(*args, **kwargs):
            _refuse_underscore(name)
        super().__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace takes no attribute named {name!r}")


def _raise_exception(message: object) -> NoReturn:
    raise _Refused(sayable(str(message), MAX_SAID_CHARS))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which models were not trained on
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _SafeNamespace,
    }
    return environment

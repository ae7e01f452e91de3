"""JSON schemas of answers, made from their types: TypedDicts, unions, literals, lists and maps.

pydantic reads typing's own TypedDict only from Python 3.12 on, and the types that the engine shares are such.
"""

import inspect
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

Schema = dict[str, Any]

_PLAIN: dict[Any, Schema] = {
    NoneType: {"type": "null"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    object: {"description": "Any JSON value."},
}


class AnswerSchemas:
    """`definitions`: of every TypedDict that was met, by its name. `ref`: where they stand, with {name}."""

    def __init__(self, ref: str) -> None:
        self.definitions: dict[str, Schema] = {}
        self._ref = ref
        self._kinds: dict[str, Any] = {}

    def of(self, kind: Any) -> Schema:
        """Raises TypeError for a type that says nothing, such as Any."""
        if kind in _PLAIN:
            return _PLAIN[kind]
        if is_typeddict(kind):
            return self._defined(kind)
        origin, args = get_origin(kind), get_args(kind)
        if origin is Literal:
            [plain] = {type(arg) for arg in args}
            return _PLAIN[plain] | ({"const": args[0]} if len(args) == 1 else {"enum": list(args)})
        if origin in (Union, UnionType):
            return {"anyOf": [self.of(arg) for arg in args]}
        if origin in (list, Sequence):
            return {"type": "array", "items": self.of(args[0])}
        if origin in (dict, Mapping):
            return {"type": "object", "additionalProperties": self.of(args[1])}
        raise TypeError(f"{kind} has no schema")

    def _defined(self, kind: Any) -> Schema:
        name = kind.__name__
        assert self._kinds.setdefault(name, kind) is kind, f"two types of answers are called {name}"
        if name not in self.definitions:
            self.definitions[name] = {}  # it may hold itself
            self.definitions[name] |= self._object(kind)
        return {"$ref": self._ref.format(name=name)}

    def _object(self, kind: Any) -> Schema:
        fields = {name: self.of(field) for name, field in get_type_hints(kind).items()}
        required = [name for name in fields if name in kind.__required_keys__]
        shown: Schema = {"type": "object", "properties": fields, "required": required}
        return shown if kind.__doc__ is None else {"description": inspect.cleandoc(kind.__doc__)} | shown

"""Launch configurations measured on a GPU: `tuned.json`, written by `scripts/tune_kernels.py`.

How an operation uses it, in `<op>/configs.py` (see `semipd_kernels.tuned.Config` for what may stand in one):

    @dataclass(frozen=True, slots=True)
    class AttentionConfig:              # the fields are the operation's own; integers only
        block_n: int
        num_warps: int
        num_stages: int

    def choose(*, arch: int, head_dim: int, num_sms: int) -> AttentionConfig:
        tuned = lookup("decode_attention", arch=arch, head_dim=head_dim, num_sms=num_sms)
        return AttentionConfig(**tuned) if tuned is not None else <reasoned constants>

    def candidates(*, arch: int, head_dim: int) -> Iterator[AttentionConfig]:
        # what tune_kernels.py tries; every entry of tuned.json must be one of these

and the launcher takes `config: AttentionConfig | None = None`, None meaning `choose(...)`. `arch` is the
compute capability as an integer, 80 or 90. Operations without a head dimension say 0.

`tuned.json` is `{"version": 1, "entries": [{"op", "arch", "head_dim", "num_sms", "config"}, ...]}`.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, NamedTuple

from semipd.core.errors import SemipdError

VERSION = 1

_TYPES: dict[str, type] = {"op": str, "arch": int, "head_dim": int, "num_sms": int, "config": dict}

Config = Mapping[str, int]
"""Field name to value: block sizes, warps, stages, switches (0 or 1)."""


class Key(NamedTuple):
    """What selects a list of configurations; the SM count then selects one of the list."""

    op: str
    arch: int
    head_dim: int


class Table:
    """Configurations by operation, architecture, head dimension and SM count."""

    def __init__(self, configs: Mapping[Key, Mapping[int, Config]]) -> None:
        self._configs = {
            key: sorted((num_sms, MappingProxyType(dict(config))) for num_sms, config in by_sms.items())
            for key, by_sms in configs.items()
        }

    def lookup(self, key: Key, num_sms: int) -> Config | None:
        """The configuration tuned for the largest SM count that is not above `num_sms`.

        Downwards, because a configuration for fewer SMs keeps more bytes in flight per SM than is needed,
        which costs little, while one for more SMs keeps too few. None when nothing was tuned at or below
        `num_sms`.
        """
        tuned = self._configs.get(key, [])
        idx = bisect_right(tuned, num_sms, key=lambda entry: entry[0])
        return tuned[idx - 1][1] if idx else None

    def entries(self) -> list[tuple[Key, int, Config]]:
        return [(key, *entry) for key, tuned in sorted(self._configs.items()) for entry in tuned]


def lookup(op: str, *, arch: int, head_dim: int, num_sms: int) -> Config | None:
    """Configuration measured for this operation, or None: then the operation uses its own constants.

    See `Table.lookup` for which SM count answers. Cheap enough for every launch: the table is read once.

    Raises:
        SemipdError: `tuned_table_invalid`, tuned.json is damaged.
    """
    return _shipped().lookup(Key(op, arch, head_dim), num_sms)


def parse(text: str, source: str = "tuned.json") -> Table:
    """Read a table.

    Raises:
        SemipdError: `tuned_table_invalid`, with the entry at fault.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise _invalid(source, f"is not JSON ({error})") from error
    if not isinstance(document, dict) or set(document) != {"version", "entries"}:
        raise _invalid(source, "must hold exactly `version` and `entries`")
    if document["version"] != VERSION:
        raise _invalid(source, f"has version {document['version']!r}, this program reads version {VERSION}")
    if not isinstance(document["entries"], list):
        raise _invalid(source, "`entries` must be a list")
    configs: dict[Key, dict[int, Config]] = {}
    for idx, entry in enumerate(document["entries"]):
        where = f"entry {idx}"
        _check_entry(entry, source, where)
        by_sms = configs.setdefault(Key(entry["op"], entry["arch"], entry["head_dim"]), {})
        if entry["num_sms"] in by_sms:
            raise _invalid(source, f"{where} repeats {_describe(entry)}")
        by_sms[entry["num_sms"]] = entry["config"]
    return Table(configs)


def render(table: Table) -> str:
    """The text `parse` reads, one entry a line, so that a change of one is a change of one line."""
    lines = [
        json.dumps({**key._asdict(), "num_sms": num_sms, "config": dict(config)})
        for key, num_sms, config in table.entries()
    ]
    body = "".join(f"\n    {line}," for line in lines).rstrip(",")
    return f'{{\n  "version": {VERSION},\n  "entries": [{body}{chr(10) + "  " if lines else ""}]\n}}\n'


@cache
def _shipped() -> Table:
    return parse(resources.files(__package__).joinpath("tuned.json").read_text("utf-8"))


def _check_entry(entry: Any, source: str, where: str) -> None:
    if not isinstance(entry, dict) or set(entry) != set(_TYPES):
        raise _invalid(source, f"{where} must hold exactly {', '.join(_TYPES)}")
    for key, kind in _TYPES.items():
        if type(entry[key]) is not kind:  # not isinstance: true is an int
            raise _invalid(source, f"{where}: `{key}` must be of type {kind.__name__}, not {entry[key]!r}")
    if entry["arch"] <= 0 or entry["num_sms"] <= 0 or entry["head_dim"] < 0:
        raise _invalid(source, f"{where} has a number out of range: {_describe(entry)}")
    for name, value in entry["config"].items():
        if type(value) is not int:
            raise _invalid(source, f"{where}: `config.{name}` must be an integer, not {value!r}")


def _describe(entry: dict[str, Any]) -> str:
    return f"op {entry['op']}, arch {entry['arch']}, head_dim {entry['head_dim']}, num_sms {entry['num_sms']}"


def _invalid(source: str, what: str) -> SemipdError:
    return SemipdError(
        "tuned_table_invalid",
        f"{source} {what}.",
        'Run scripts/tune_kernels.py again, or restore {"version": 1, "entries": []}.',
    )

"""What operators may ask of the demo: checked as the daemon checks it, refused with its codes."""

from collections.abc import Mapping
from typing import Any

from semipd.core.errors import SemipdError
from semipd.core.split import MAX_EXPIRY_S
from semipd_top.demo.gpu import NUM_SMS, SPLITS, Split

MAX_WORDS = 200
MAX_LISTED = 1024
STATES = ("waiting", "prefilling", "decoding", "finished", "live")
MODES = ("auto", "fixed", "off")
TARGET_BOUNDS = {
    "ttft_ms": (0.001, 1e9),
    "tpot_ms": (0.001, 1e9),
    "percentile": (1.0, 100.0),
    "window_s": (1.0, 86400.0),
}
_ACT = {"actor": str, "reason": str}
_UNITS = {"prefill_units": int, "decode_units": int}
PARTITION_FIELDS = {"mode": str, **_UNITS, "expires_s": float, "dry_run": bool, **_ACT}
ACT_FIELDS = _ACT
SLO_FIELDS = dict.fromkeys(TARGET_BOUNDS, float) | _ACT

_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def checked(wish: Mapping[str, Any], fields: Mapping[str, type]) -> dict[str, Any]:
    """The fields that were given. Raises SemipdError: `unknown_field` or `invalid_value`."""
    given = {name: value for name, value in wish.items() if value is not None}
    for name, value in given.items():
        if name not in fields:
            raise SemipdError("unknown_field", f"There is no field {name}.", param=name)
        kind = fields[name]
        if not _is_a(kind, value):
            raise invalid(f"{name}: Input should be a valid {_KINDS[kind]}; got {value!r:.80}.", name)
        if kind is str and len(value) > MAX_WORDS:
            most = f"String should have at most {MAX_WORDS} characters"
            raise invalid(f"{name}: {most}; got {value!r:.80}.", name)
    if given.get("mode", "auto") not in MODES:
        raise invalid(f"mode: Input should be 'auto', 'fixed' or 'off'; got {given['mode']!r:.80}.", "mode")
    return given


def granted_split(wish: Mapping[str, Any]) -> tuple[dict[str, int], Split | None, str]:
    """Units asked for, the split that becomes of them, and what was rounded, in words. Raises SemipdError:
    `impossible_split` or `invalid_value`."""
    requested = {name: int(wish[name]) for name in _UNITS if name in wish}
    if wish["mode"] != "fixed":
        if requested:
            raise invalid(f"The mode {wish['mode']} takes no units; {requested} were given.", "prefill_units")
        return requested, None, ""
    prefill = _prefill_wish(requested)
    if not 0 < prefill < NUM_SMS:
        raise _impossible(f"{prefill} of {NUM_SMS} SMs for prefill leaves one lane without any.")
    granted = min(SPLITS, key=lambda split: (abs(split[0] - prefill), -split[0]))
    return requested, granted, _rounding(requested, granted)


def expiry_s(wish: Mapping[str, Any]) -> float | None:
    """Raises SemipdError(`invalid_value`)."""
    seconds = wish.get("expires_s")
    if seconds is None:
        return None
    if wish["mode"] == "auto":
        raise invalid("The mode auto does not expire.", "expires_s")
    if not 0 < seconds <= MAX_EXPIRY_S:
        message = f"expires_s is {seconds:g}; it must lie above 0, at most {MAX_EXPIRY_S:g}."
        raise invalid(message, "expires_s")
    return float(seconds)


def checked_targets(wish: Mapping[str, Any]) -> dict[str, float]:
    """Raises SemipdError(`invalid_value`)."""
    targets = {name: float(wish[name]) for name in TARGET_BOUNDS if name in wish}
    for name, value in targets.items():
        low, high = TARGET_BOUNDS[name]
        if not low <= value <= high:
            raise invalid(f"{name} is {value:g}; it must lie between {low:g} and {high:g}.", name)
    return targets


def check_listing(state: str | None, limit: int | None) -> None:
    """Raises SemipdError(`invalid_value`)."""
    if state is not None and state not in STATES:
        known = ", ".join(f"'{name}'" for name in STATES[:-1]) + f" or '{STATES[-1]}'"
        raise invalid(f"state: Input should be {known}; got {state!r:.80}.", "state")
    if limit is not None and not 1 <= limit <= MAX_LISTED:
        bound = "greater than or equal to 1" if limit < 1 else f"less than or equal to {MAX_LISTED}"
        raise invalid(f"limit: Input should be {bound}; got {limit}.", "limit")


def invalid(message: str, param: str) -> SemipdError:
    return SemipdError("invalid_value", message, param=param)


def _is_a(kind: type, value: object) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _prefill_wish(requested: Mapping[str, int]) -> int:
    if not requested:
        raise _impossible("A fixed split needs prefill_units or decode_units.")
    if len(requested) == 2 and sum(requested.values()) != NUM_SMS:
        asked = f"{requested['prefill_units']} + {requested['decode_units']} SMs are asked for"
        raise _impossible(f"{asked}; the device has {NUM_SMS}, and the two lanes share all of them.")
    return requested.get("prefill_units", NUM_SMS - requested.get("decode_units", 0))


def _impossible(why: str) -> SemipdError:
    possible = ", ".join(f"{prefill}+{decode}" for prefill, decode in SPLITS)
    hint = f"Possible splits (prefill+decode SMs): {possible}."
    return SemipdError("impossible_split", why, hint, param="prefill_units")


def _rounding(requested: Mapping[str, int], granted: Split) -> str:
    got = dict(zip(_UNITS, granted, strict=True))
    if all(got[name] == units for name, units in requested.items()):
        return ""
    asked = " and ".join(
        f"{units} SMs for {name.removesuffix('_units')}" for name, units in requested.items()
    )
    return (
        f"{asked} asked for; {granted[0]}+{granted[1]} (prefill+decode) granted, "
        "the nearest split this device offers"
    )

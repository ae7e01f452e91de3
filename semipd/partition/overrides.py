"""An operator's request, checked and rounded before anything changes."""

from semipd.core.errors import SemipdError
from semipd.core.messages import SetPartition
from semipd.core.slo import SLO_BOUNDS
from semipd.core.split import MAX_EXPIRY_S, Split
from semipd.partition.decision_log import PartitionChange
from semipd.partition.table import SplitTable


def plan_change(request: SetPartition, table: SplitTable, scheduler: str, now_ns: int) -> PartitionChange:
    """What the request would become; changes nothing.

    Raises SemipdError: `impossible_split` with the table of possible ones, `invalid_value`,
    `scheduler_has_one_lane`.
    """
    if scheduler != "semipd" and table.splits:
        raise SemipdError(
            "scheduler_has_one_lane",
            f"engine.scheduler = {scheduler} runs every step on the whole device: nothing to divide.",
            "Start the daemon with engine.scheduler = semipd.",
        )
    requested = {
        name: units
        for name, units in (("prefill_units", request.prefill_units), ("decode_units", request.decode_units))
        if units is not None
    }
    granted, rounding = None, ""
    if request.mode == "fixed" or not table.splits:
        granted = table.nearest(**requested)
        rounding = describe_rounding(requested, granted, table)
    elif requested:
        raise _invalid(f"The mode {request.mode} takes no units; {requested} were given.", "prefill_units")
    return PartitionChange(
        now_ns,
        request.mode,
        request.actor,
        request.reason,
        requested,
        granted,
        rounding,
        _expiry_ns(request, now_ns),
    )


def check_targets(targets: dict[str, float]) -> None:
    """Raises SemipdError(`invalid_value`)."""
    for name, value in targets.items():
        if name not in SLO_BOUNDS:
            raise _invalid(f"There is no target {name}; there are {', '.join(SLO_BOUNDS)}.", name)
        if not SLO_BOUNDS[name].holds(value):
            raise _invalid(f"{name} must be {SLO_BOUNDS[name]}; got {value:g}.", name)


def describe_rounding(requested: dict[str, int], granted: Split, table: SplitTable) -> str:
    got = {"prefill_units": granted.prefill_units, "decode_units": granted.decode_units}
    if all(got[name] == units for name, units in requested.items()):
        return ""
    asked = " and ".join(
        f"{units} {table.unit}s for {name.removesuffix('_units')}" for name, units in requested.items()
    )
    return f"{asked} asked for; {granted} (prefill+decode) granted, the nearest split this device offers"


def _expiry_ns(request: SetPartition, now_ns: int) -> int | None:
    if request.expires_s is None:
        return None
    if request.mode == "auto":
        raise _invalid("The mode auto does not expire.", "expires_s")
    if not 0 < request.expires_s <= MAX_EXPIRY_S:
        raise _invalid(
            f"expires_s is {request.expires_s:g}; it must lie above 0, at most {MAX_EXPIRY_S:g}.", "expires_s"
        )
    return now_ns + int(request.expires_s * 1e9)


def _invalid(message: str, param: str) -> SemipdError:
    return SemipdError("invalid_value", message, param=param)

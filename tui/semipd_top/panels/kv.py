"""The KV pool: who holds it, what can be reused, what is free."""

from semipd.core.state.daemon import KvState, StateDocument
from semipd_top.panels.frame import framed, waiting
from semipd_top.picture.picture import Picture
from semipd_top.text.charts import bar, sparkline
from semipd_top.text.lines import Line, Span, Style, line
from semipd_top.text.numbers import count, percent

USED, CACHED, RESERVED, FREE = "█", "▒", "╳", "·"


def kv_panel(picture: Picture, width: int, height: int) -> list[Line]:
    state = picture.state
    if state is None or not state["kv"]:
        return framed("KV pool", (), waiting("No engine answers: the pool is not known."), width, height)
    kv = state["kv"]
    note = line(Span(f"{count(kv['total_blocks'])} blocks of {kv['block_tokens']} tokens", "dim"))
    body = [
        _bar(kv, width),
        *_legend(kv, width),
        line(
            f"prefix hits {percent(_hit_frac(state))}, ",
            Span(f"preemptions {count(state['preemptions'])}", "warn" if _preempted_lately(picture) else ""),
        ),
    ]
    left = height - 1 - len(body)
    used = [sample.used_kv_frac for sample in picture.samples]
    if left > 4:
        body.append(line(Span("used ", "dim"), sparkline(used, width - 5, "prefill", top=1.0)))
        left -= 1
    body += _holders(kv, width, left)
    return framed("KV pool", note, body, width, height)


def _legend(kv: KvState, width: int) -> list[Line]:
    """One line, or two where it is narrow."""
    entries: list[tuple[str, Style, str]] = [
        (USED, "prefill", f"used {percent(kv['used_blocks'] / kv['total_blocks'])}"),
        (CACHED, "ok", f"reusable {count(kv['cached_blocks'])}"),
        (FREE, "dim", f"free {count(_plain_free(kv))}"),
        (RESERVED, "warn", f"reserved {count(kv['reserved_blocks'])}"),
    ]
    spans = [line(Span(f"{mark} ", style), f"{words:15}") for mark, style, words in entries]
    if width >= 68:
        return [line(*spans)]
    return [line(*spans[:2]), line(*spans[2:])]


def _plain_free(kv: KvState) -> int:
    return max(kv["free_blocks"] - kv["cached_blocks"], 0)


def _bar(kv: KvState, width: int) -> Line:
    """Reserved blocks are free ones that only running requests may take: cached or not."""
    total = kv["total_blocks"]
    reserved = min(kv["reserved_blocks"], kv["free_blocks"])
    fresh = max(_plain_free(kv) - reserved, 0)
    cached = kv["free_blocks"] - reserved - fresh
    return bar(
        [
            (kv["used_blocks"] / total, USED, "prefill"),
            (cached / total, CACHED, "ok"),
            (fresh / total, FREE, "dim"),
            (reserved / total, RESERVED, "warn"),
        ],
        width,
    )


def _hit_frac(state: StateDocument) -> float | None:
    prefix = state["prefix"]
    return prefix["cached_tokens"] / prefix["prompt_tokens"] if prefix and prefix["prompt_tokens"] else None


def _preempted_lately(picture: Picture) -> bool:
    newest = next((event for event in reversed(picture.notable) if event["kind"] == "preempted"), None)
    return newest is not None and picture.now_s - newest["at_s"] < 10


def _holders(kv: KvState, width: int, height: int) -> list[Line]:
    if height < 1 or not kv["holders"]:
        return []
    if height == 1:
        first = kv["holders"][0]
        return [
            line(
                Span("largest ", "dim"),
                f"{first['id']:.12} {count(first['blocks'])} blocks, {first['state']}",
            )
        ]
    room = max(width - 27, 8)
    lines = [line(Span(f"{'largest holder':{room}.{room}}{'blocks':>7}{'share':>8}  state", "dim"))]
    for holder in kv["holders"][: height - 1]:
        share = percent(holder["blocks"] / kv["total_blocks"])
        name = f"{holder['id']:.{room - 1}}"
        lines.append(line(f"{name:{room}}{count(holder['blocks']):>7}{share:>8}  {holder['state']}"))
    return lines

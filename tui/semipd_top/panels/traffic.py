"""Tokens per second, the queue, and what is under way."""

from semipd.core.state.daemon import RequestsState, StateDocument
from semipd_top.panels.frame import framed, waiting
from semipd_top.picture.picture import Picture
from semipd_top.text.charts import sparkline
from semipd_top.text.lines import Line, Span, line
from semipd_top.text.numbers import count, duration


def traffic_panel(picture: Picture, width: int, height: int) -> list[Line]:
    state = picture.state
    if state is None:
        return framed("Traffic", (), waiting("Nothing is known yet."), width, height)
    requests = state["requests"]
    note = line(Span(f"{count(requests['live'])} live", "dim"))
    rates, samples = state["throughput"], picture.samples
    prompt = [sample.prompt_tokens_per_s for sample in samples]
    output = [sample.output_tokens_per_s for sample in samples]
    body = [
        line(
            f"prompt {count(rates['prompt_tokens_per_s']):>5} tok/s ",
            sparkline(prompt, width - 19, "prefill"),
        ),
        line(
            f"output {count(rates['output_tokens_per_s']):>5} tok/s ", sparkline(output, width - 19, "decode")
        ),
        _queue(state, picture),
        _running(requests),
        _totals(state, width),
    ]
    if height - 1 > len(body):
        waiting_now = [None if sample.waiting is None else float(sample.waiting) for sample in samples]
        body.append(line(Span("waiting ", "dim"), sparkline(waiting_now, width - 8)))
    if height - 1 > len(body):
        body += _refusals(state)
    return framed("Traffic", note, body, width, height, action="app.view('requests')")


def _queue(state: StateDocument, picture: Picture) -> Line:
    requests = state["requests"]
    if requests["waiting"] is None:
        return line("waiting -  ", _held(requests))
    oldest_ms, target_ms = requests["oldest_waiting_ms"], state["slo"]["targets"]["ttft_ms"]
    late = oldest_ms is not None and oldest_ms > target_ms
    oldest = "" if oldest_ms is None else f", the oldest for {duration(oldest_ms / 1e3)}"
    background = requests["background"]
    return line(
        f"waiting {count(requests['waiting'])}",
        Span(f" ({count(background)} behind)" if background else "", "warn"),
        Span(oldest, "bad" if late else ""),
        _held(requests),
    )


def _held(requests: RequestsState) -> Span:
    """Requests that survive without an engine."""
    return Span(f"  held {requests['held']}" if requests["held"] else "", "warn")


def _running(requests: RequestsState) -> Line:
    suspects = requests["suspects"]
    return line(
        f"prefilling {count(requests['prefilling'])}  decoding {count(requests['decoding'])}",
        Span(f"  suspects {suspects}" if suspects else "", "warn"),
    )


def _totals(state: StateDocument, width: int) -> Line:
    totals = state["requests"]["totals"]
    done = sum(totals.get(name, 0) for name in ("stop", "length"))
    failed, refused = totals.get("error", 0), sum(state["refused"].values())
    return line(
        f"done {count(done)}  ",
        Span(f"failed {count(failed)}  ", "bad" if failed else ""),
        Span(f"refused {count(refused)}", "warn" if refused else ""),
        f"  cancelled {count(totals.get('cancelled', 0))}" if width >= 46 else "",
    )


def _refusals(state: StateDocument) -> list[Line]:
    worst = sorted(state["refused"].items(), key=lambda item: -item[1])
    return [line(Span("refused ", "dim"), f"{code} {count(num)}") for code, num in worst]

"""Numbers as people read them in a narrow column. None is a dash: nobody knows."""

import time

_KIB = 1024.0
_POWERS = ("", "k", "M", "G", "T")


def count(value: float | None) -> str:
    """At most five characters: 950, 9.5k, 12k, 1.2M."""
    if value is None:
        return "-"
    power = 0
    while abs(value) >= 999.5 and power < len(_POWERS) - 1:
        value, power = value / 1e3, power + 1
    digits = 1 if power and abs(value) < 9.95 else 0
    return f"{value:.{digits}f}{_POWERS[power]}"


def rate(value: float | None) -> str:
    """At most five characters; one digit behind the point while that tells something."""
    if value is None:
        return "-"
    return f"{value:.1f}" if abs(value) < 99.95 else count(value)


def millis(value: float | None) -> str:
    """At most five characters up to a hundred minutes; from ten seconds on in seconds."""
    if value is None:
        return "-"
    if value < 99.95:
        return f"{value:.1f}"
    return f"{value:.0f}" if value < 9_999.5 else f"{value / 1e3:.0f}s"


def latency(value_ms: float | None) -> str:
    """With its unit, for sentences."""
    words = millis(value_ms)
    return words if words == "-" else f"{words[:-1]} s" if words.endswith("s") else f"{words} ms"


def percent(frac: float | None) -> str:
    """Never 100 % unless all: rounding must not hide the one that failed."""
    if frac is None:
        return "-"
    pct = 100 * frac
    if 99.9 < pct < 100:
        return "99.9 %"
    if 0 < pct < 0.1:
        return "<0.1 %"
    return f"{pct:.1f} %" if 0 < pct < 9.95 or 99 <= pct < 100 else f"{pct:.0f} %"


def duration(seconds: float | None) -> str:
    """At most six characters up to 27 years."""
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = int(seconds / 60 + 0.5)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes / 60:.1f} h" if minutes < 2880 else f"{minutes // 1440} d"


def countdown(seconds: float) -> str:
    """Down to the second, since somebody waits for its end."""
    whole = max(int(seconds + 0.999), 0)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def gib(num_bytes: float | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / _KIB**3:.1f}"


def clock(at_s: float) -> str:
    """The time of day where the reader is."""
    return time.strftime("%H:%M:%S", time.localtime(at_s))

"""The demo's device: an H200 that serves a 14B model in bfloat16. Step times come from a simple roofline."""

import math
import random
from typing import Any, NamedTuple

NUM_SMS = 132
BLOCK_TOKENS = 16
MODEL = {"name": "Qwen2.5-14B-Instruct", "max_model_len": 32_768}
CHUNK_TOKENS = 2048
MERGE_SIZES = (256, 512, 1024)

Split = tuple[int, int]
SPLITS: tuple[Split, ...] = tuple((NUM_SMS - decode, decode) for decode in range(8, 128, 8))
"""By rising decode share."""

TOTAL_BLOCKS = 12_288
_BLOCK_BYTES = 3 * 2**20
_GIB = 2**30
_TOTAL_BYTES = 143_771 * 2**20
MEMORY = {
    "weights": 29_540_067_328,
    "buffers": 1_946_157_056,
    "graphs": 1_503_238_553,
    "kv_pool": TOTAL_BLOCKS * _BLOCK_BYTES,
    "reserve": _GIB,
    "others": 1_210_056_704,
}
MEMORY["free"] = _TOTAL_BYTES - sum(MEMORY.values())

_LAUNCH_MS = 3.0
_WEIGHTS_MS = 6.1
_MS_PER_PROMPT_TOKEN = 0.045
_MS_PER_ATTENDED = 8e-7
_MS_PER_CONTEXT_TOKEN = 4.1e-5


class Batch(NamedTuple):
    """What decodes: so many sequences, and the tokens that they read."""

    num_decodes: int
    context_tokens: int


def prefill_ms(new_tokens: float, prior_tokens: float, units: int) -> float:
    """Of prompt tokens behind `prior_tokens`, on so many SMs."""
    attended = new_tokens * (prior_tokens + new_tokens / 2)
    work_ms = _MS_PER_PROMPT_TOKEN * new_tokens + _MS_PER_ATTENDED * attended
    return work_ms * math.pow(NUM_SMS / units, 0.95)


def decode_ms(batch: Batch, units: int) -> float:
    """Of one step: half of the SMs are enough for the memory's bandwidth."""
    bandwidth = math.pow(min(2 * units / NUM_SMS, 1.0), 0.8)
    reading_ms = _WEIGHTS_MS + _MS_PER_CONTEXT_TOKEN * batch.context_tokens
    return _LAUNCH_MS + 0.03 * batch.num_decodes + reading_ms / bandwidth


def merged_ms(batch: Batch, new_tokens: float) -> float:
    return decode_ms(batch, NUM_SMS) + prefill_ms(new_tokens, 0, NUM_SMS)


def blocks_of(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def facts(stats: dict[str, Any] | None) -> dict[str, Any]:
    """`device` of a state frame."""
    return {
        "kind": "cuda",
        "name": f"cuda: NVIDIA H200, {NUM_SMS} SMs",
        "unit": "SM",
        "num_units": NUM_SMS,
        "dtype": "bfloat16",
        "memory": dict(MEMORY),
        "stats": stats,
    }


class Sensors:
    """What NVML would say, following the work with some inertia."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._watts, self._celsius = 118.0, 34.0

    def pass_time(self, seconds: float, busy_frac: float) -> None:
        keep = 0.5 ** (seconds / 3)
        self._watts = keep * self._watts + (1 - keep) * (118 + 560 * busy_frac)
        slow = 0.5 ** (seconds / 25)
        self._celsius = slow * self._celsius + (1 - slow) * (31 + 0.062 * self._watts)

    def stats(self, num_switches: int) -> dict[str, Any]:
        """`device.stats` of a state frame."""
        watts = self._watts + self._rng.uniform(-6, 6)
        used = sum(size for purpose, size in MEMORY.items() if purpose not in ("free", "reserve"))
        switches = {"count": num_switches, "last_us": 31.0, "mean_us": 33.5, "max_us": 61.0}
        return {
            "gpu": {
                "memory_used_bytes": used,
                "memory_total_bytes": _TOTAL_BYTES,
                "power_w": round(watts, 3),
                "power_limit_w": 700.0,
                "sm_clock_mhz": 1980 if watts < 560 else 1980 - 15 * int((watts - 560) / 9),
                "memory_clock_mhz": 3201,
                "temperature_c": round(self._celsius),
                "throttled_by": [] if watts < 672 else ["power limit"],
            },
            "partition": {"possible": True, "reason": "", "notes": []},
            "switches": {"prefill": switches, "decode": dict(switches)},
            "graphs": {"captured": 420, "missing": 0, "hits": 14 * num_switches, "misses": 0},
            "memory": dict(MEMORY),
        }

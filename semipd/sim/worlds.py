"""Simulated worlds: the default one, and others that differ in what nobody has measured on our GPU."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from semipd.core.errors import SemipdError
from semipd.devices.sim.profile import Profile


@dataclass(frozen=True, slots=True)
class World:
    """What a simulation assumes beyond its profile. `why`: where the values come from. `kernels`: fields of
    Kernels; `one_lane_kernels`: the same for the schedulers with one lane only. `divided_kv_frac`: share of
    the KV pool that is left to those with two lanes."""

    name: str
    why: str
    kernels: Mapping[str, float] = field(default_factory=dict)
    one_lane_kernels: Mapping[str, float] = field(default_factory=dict)
    divided_kv_frac: float = 1.0
    bandwidth: float = 1.0

    def apply(self, profile: Profile, *, one_lane: bool) -> Profile:
        """The profile as it is in this world."""
        changes = {**self.kernels, **(self.one_lane_kernels if one_lane else {})}
        scaled = profile.scaled(bandwidth=self.bandwidth)
        return replace(scaled, kernels=replace(scaled.kernels, **changes))  # type: ignore[arg-type]


WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        World("default", "constants of semipd/devices/sim"),
        World(
            "prefill^0.9",
            "between proportional (Bullet's model, arXiv 2504.19516) and the published fits",
            kernels={"compute_exponent": 0.9},
        ),
        World(
            "prefill^0.8",
            "10 % less prefill time from 70 to 80 % of the SMs (Nexus, arXiv 2507.06608)",
            kernels={"compute_exponent": 0.8},
        ),
        World(
            "contention 30 %",
            "decode slowed by up to 30 %, the largest that MuxWise (arXiv 2504.14489) measured, on an H100",
            kernels={"contention_scale": 1.65},
        ),
        World(
            "chunked attention",
            "a 16k prompt in 1k chunks takes 1.13x (A100, 8B; Bullet, arXiv 2504.19516), not 1.08x",
            kernels={"prior_attention_frac": 0.86},
        ),
        World(
            "host 2 ms",
            "one-lane engines schedule between two steps, in 2 ms",
            one_lane_kernels={"serial_host_ns": 2e6},
        ),
        World(
            "host 5 ms",
            "one-lane engines schedule between two steps, in 5 ms",
            one_lane_kernels={"serial_host_ns": 5e6},
        ),
        World(
            "drain",
            "a change of split waits for both streams, as in SGLang's multiplexing",
            kernels={"drain_on_switch": 1},
        ),
        World(
            "less KV",
            "green contexts with graphs take 6.2 % more memory (MuxWise, arXiv 2504.14489)",
            divided_kv_frac=0.94,
        ),
        World("bandwidth -30 %", "a memory slower than the data sheet says", bandwidth=0.7),
        World("bandwidth +30 %", "a faster one", bandwidth=1.3),
    )
}


def known_world(name: str) -> World:
    """Raises SemipdError(`unknown_world`)."""
    if name in WORLDS:
        return WORLDS[name]
    hint = f"Choose one of {', '.join(WORLDS)}."
    raise SemipdError("unknown_world", f"There is no simulated world {name!r}.", hint)

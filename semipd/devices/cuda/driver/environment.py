"""Environment variables that CUDA, torch and Triton read once, so that must be set before they start."""

from collections.abc import Mapping

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

_WANTED = {
    # Two streams on one hardware queue wait for each other even on disjoint SMs; the default is 8 queues.
    CONNECTIONS: "32",
    # EAGER would load every kernel of every library, seconds and memory for each process; among them modules
    # with device-side launches, which give green contexts two SMs more than they asked for (on compute
    # capability 9.x). Loading a module could stop the lanes while serving; warm-up has run every kernel.
    "CUDA_MODULE_LOADING": "LAZY",
}
_ALLOCATOR_CONF = "expandable_segments:True"  # fewer cudaMalloc and cudaFree, which stop the device


def cuda_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What to add to `environ`; what somebody has set there stays as it is."""
    missing = {name: value for name, value in _WANTED.items() if name not in environ}
    if not any(name in environ for name in _ALLOCATOR):
        missing[_ALLOCATOR[0]] = _ALLOCATOR_CONF
    return missing


def environment_notes(environ: Mapping[str, str]) -> tuple[str, ...]:
    """What in `environ` weakens the separation of the lanes, in sentences for the operator."""
    notes = []
    connections = environ.get(CONNECTIONS, "")
    if connections != _WANTED[CONNECTIONS]:
        notes.append(
            f"{CONNECTIONS} is {connections or 'not set'}, not 32: a lane may wait for the other in a "
            "hardware queue although their SMs are disjoint."
        )
    if environ.get("CUDA_MODULE_LOADING") == "EAGER":
        notes.append(
            "CUDA_MODULE_LOADING is EAGER: every kernel of every library is loaded, and a lane may get more "
            "SMs than it asked for. semipd warms up what it runs; leave the variable out."
        )
    if "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" in environ:
        percentage = environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"]
        notes.append(
            f"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE is {percentage}: under MPS a kernel may use more SMs than "
            "its lane has. semipd needs no MPS."
        )
    return tuple(notes)

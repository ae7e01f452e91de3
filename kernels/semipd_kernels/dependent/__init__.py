"""Programmatic dependent launch: a kernel begins while the one before it on its stream still ends.

A kernel launched with `launch_pdl` may start as soon as all programs of the kernel before it have called
`launch_dependents` or have ended, so that launching it costs the device nothing. It must not touch what
others write before `wait` has returned: then the kernel before it, and by that one's own wait all before
that, have ended, and what they wrote is visible. Here a kernel calls both first of all, so that only the
launch itself overlaps. CUDA programming guide, "Programmatic Dependent Launch and Synchronization"; PTX ISA,
`griddepcontrol`.
"""

from dataclasses import fields
from importlib import import_module
from typing import Any

OLDEST_ARCH = 90


def dependence(dependent: bool) -> dict[str, Any]:
    """What a launch adds to its constants."""
    return {"DEPENDENT": True, "launch_pdl": True} if dependent else {"DEPENDENT": False}


def why_not_dependent(arch: int) -> str:
    """Why kernels cannot be launched so on compute capability `arch`; "": they can."""
    if arch < OLDEST_ARCH:
        return (
            f"it exists from compute capability {OLDEST_ARCH / 10:g} on, the GPU has {arch // 10}.{arch % 10}"
        )
    cuda = import_module("triton.language.extra.cuda")
    options = import_module("triton.backends.nvidia.compiler").CUDAOptions
    has_option = "launch_pdl" in {option.name for option in fields(options)}
    if not (has_option and hasattr(cuda, "gdc_wait") and hasattr(cuda, "gdc_launch_dependents")):
        return f"Triton {import_module('triton').__version__} does not offer it"
    return ""

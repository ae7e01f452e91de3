"""cuBLAS is told how many SMs it has. Untold it chooses tiles and persistent grids for the whole GPU, and
a grid of 132 CTAs on a lane of 64 SMs takes three rounds for the work of two.

The number holds for the process (CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET of products enqueued from now on; a
captured graph keeps its own), so it suits the one thread that launches for both lanes. cuBLASLt only.
"""

from collections.abc import Callable
from typing import Any

from semipd.core.errors import SemipdError

AimMatmuls = Callable[[int], None]
"""(num_sms): the matrix products enqueued from now on run on so many SMs."""


def leave_matmuls(num_sms: int) -> None:
    """An AimMatmuls for which cuBLAS chooses as if the whole device were its own."""


def sm_carveout(torch: Any, device_sms: int) -> AimMatmuls:
    """An AimMatmuls for a device of `device_sms` SMs.

    Raises SemipdError(`cuda_too_old`) where this torch has no carve-out, or is built without cuBLASLt.
    """
    carve_out = getattr(torch._C, "_set_sm_carveout_experimental", None)
    if carve_out is None:
        raise _unsupported(torch, "it has no SM carve-out")
    try:
        torch.backends.cuda.preferred_blas_library("cublaslt")
    except RuntimeError as error:
        raise _unsupported(torch, str(error)) from error
    told = device_sms

    def aim(num_sms: int) -> None:
        nonlocal told
        if num_sms != told:
            carve_out(device_sms - num_sms if num_sms < device_sms else None)
            told = num_sms

    return aim


def _unsupported(torch: Any, reason: str) -> SemipdError:
    message = f"torch {torch.__version__} cannot tell cuBLAS how many SMs it has: {reason}."
    return SemipdError("cuda_too_old", message, "Set cuda.sm_carveout to false.", param="cuda.sm_carveout")

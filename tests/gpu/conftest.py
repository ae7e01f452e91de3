"""What must be set before CUDA starts, where there is a GPU."""

import os
from pathlib import Path

from semipd.devices.cuda.driver.environment import cuda_environment

if Path("/dev/nvidiactl").exists():
    os.environ.update(cuda_environment(os.environ))

"""What must be in the environment before CUDA starts."""

import os
import subprocess
import sys

from semipd.devices.cuda.driver.environment import cuda_environment, environment_notes

RECIPE = {
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",
    "CUDA_MODULE_LOADING": "LAZY",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}


def test_an_empty_environment_gets_the_recipe_and_is_then_beyond_reproach() -> None:
    added = cuda_environment({})
    assert added == RECIPE
    assert cuda_environment(added) == {}
    assert environment_notes(added) == ()


def test_what_somebody_has_set_stays() -> None:
    ours = {"CUDA_DEVICE_MAX_CONNECTIONS": "8", "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}
    assert cuda_environment(ours) == {"CUDA_MODULE_LOADING": "LAZY"}
    (note,) = environment_notes(ours)
    assert "CUDA_DEVICE_MAX_CONNECTIONS is 8, not 32" in note


def test_mps_and_missing_settings_are_noted() -> None:
    notes = environment_notes({"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50"})
    assert len(notes) == 2
    assert "is not set, not 32" in notes[0]
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE is 50" in notes[1]


def test_loading_every_kernel_is_noted() -> None:
    (note,) = environment_notes(cuda_environment({}) | {"CUDA_MODULE_LOADING": "EAGER"})
    assert "a lane may get more SMs" in note


def test_it_is_known_before_anything_of_cuda_is_imported() -> None:
    code = (
        "import sys, semipd.devices.cuda.driver.environment;"
        " sys.exit(bool({'torch', 'cuda'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0

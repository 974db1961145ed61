"""The Triton scan in Triton's interpreter, against the recurrence in float64. On a GPU: benchmarks/gpu.sh."""

import os
import subprocess
import sys

import pytest
import torch

from mgi.model.scan import selective_scan

from .test_scan import arguments, assert_close, channels_innermost, differentiate, reference_scan, to_float64

# One sequence longer than a chunk, one exactly a chunk, a single step, a state that is no power of two, extreme steps.
SHAPES = [
    {"batch": 2, "channels": 3, "state": 5, "length": 70},
    {"batch": 1, "channels": 2, "state": 4, "length": 64, "shift": 60.0},
    {"batch": 1, "channels": 2, "state": 1, "length": 1, "shift": -12.0},
]


def compare_in_interpreter() -> None:
    from mgi.model.scan.gpu import triton_scan

    for shape in SHAPES:
        for layout in (dict, channels_innermost):
            inputs = layout(arguments(**shape))
            found, expected = differentiate(triton_scan, inputs), differentiate(reference_scan, to_float64(inputs))
            assert_close(found, expected)
    half = {name: value.bfloat16() if value.ndim == 3 else value for name, value in inputs.items()}
    assert_close(differentiate(triton_scan, half), differentiate(reference_scan, to_float64(half)), tolerance=2e-2)


@pytest.mark.slow
def test_triton_scan_equals_the_reference_in_the_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", "from tests.model.test_scan_triton import *; compare_in_interpreter()"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("layout", [dict, channels_innermost])
@pytest.mark.parametrize("shift", [-5.0, 0.0, 60.0])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 4097])
def test_gpu_scans_equal_the_reference(layout, shift, length):
    from mgi.model.scan.gpu import triton_scan

    inputs = layout(arguments(batch=2, channels=37, state=16, length=length, shift=shift))
    expected = differentiate(reference_scan, to_float64(inputs))
    device = {name: value.cuda() for name, value in inputs.items()}
    for path in (triton_scan, selective_scan):
        found = {name: value.cpu() for name, value in differentiate(path, device).items()}
        assert_close(found, expected)

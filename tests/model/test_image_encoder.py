"""The image encoder beside torchvision builds that belong to torch's, and beside those that do not."""

import subprocess
import sys

import pytest

# What a build of torchvision that belongs to torch's does when its library is loaded: it defines its own operators.
MATCHING = """
import torch
operators = torch.library.Library("torchvision", "FRAGMENT")
def load_library(path):
    if path.endswith("_C.so") and not hasattr(load_library, "done"):
        load_library.done = True
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d"):
            operators.define(f"{name}(Tensor x) -> Tensor")
            operators.define(f"_{name}_backward(Tensor x) -> Tensor")
        operators.define("qroi_align(Tensor x) -> Tensor")
        operators.define("_cuda_version() -> int")
        operators.impl("_cuda_version", lambda: -1, "CompositeExplicitAutograd")
torch.ops.load_library = load_library
"""
FOREIGN = """
import torch
def load_library(path):
    raise OSError("libcudart.so.13: cannot open shared object file: No such file or directory")
torch.ops.load_library = load_library
"""
USED = """
from mgi.model.image_encoder import ImageEncoder
import torchvision.extension
print(torchvision.extension._has_ops())
"""


@pytest.mark.parametrize(("torchvision", "has_operators"), [(MATCHING, True), (FOREIGN, False)])
def test_any_build_of_torchvision_is_imported_and_a_matching_one_keeps_its_operators(torchvision, has_operators):
    done = subprocess.run([sys.executable, "-c", torchvision + USED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(has_operators)

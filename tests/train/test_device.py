"""Where a model computes and how precisely."""

import sys
from types import ModuleType

import pytest
import torch

import mgi
from mgi.config import RunOptions
from mgi.errors import ConfigError
from mgi.train import device as stage
from mgi.train.data import read_images
from mgi.train.device import Place, choose_dtype, prepare_torch
from mgi.train.finetune import finetune
from mgi.train.profiles import read_profiles
from mgi.train.validation import predict_probabilities
from tests.tables import CASES

CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch):
    """A function that pretends that CUDA, mamba-ssm, its compiled kernel and Triton are there or not."""
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)

    def pretend(seen: bool, python: bool, kernel: bool, triton: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
        names = {"mamba_ssm.ops.selective_scan_interface": python, "selective_scan_cuda": kernel, "triton": triton}
        for name, there in names.items():
            monkeypatch.setitem(sys.modules, name, ModuleType(name) if there else None)

    return pretend


def test_cuda_without_a_device_is_refused(cuda):
    cuda(False, True, True)
    with pytest.raises(ConfigError, match="cannot compute on CUDA: torch sees no CUDA device here"):
        prepare_torch(RunOptions(), "cuda", genes=False)


@pytest.mark.parametrize(("python", "kernel"), [(False, True), (True, False)])
def test_genes_on_cuda_need_a_compiled_mamba_or_triton_and_images_alone_do_not(cuda, python, kernel):
    cuda(True, python, kernel)
    with pytest.raises(ConfigError, match=r"needs mamba-ssm or Triton .*use workflow/envs/train-gpu\.yaml"):
        prepare_torch(RunOptions(), "cuda", genes=True)
    assert prepare_torch(RunOptions(), "cuda", genes=False).device.type == "cuda"
    cuda(True, python, kernel, triton=True)
    assert prepare_torch(RunOptions(), "cuda", genes=True).device.type == "cuda"


@pytest.mark.parametrize(
    ("seen", "kernel", "genes", "expected"),
    [(False, True, False, "cpu"), (True, True, True, "cuda"), (True, False, True, "cpu"), (True, False, False, "cuda")],
)
def test_a_run_without_a_device_takes_what_the_machine_has(cuda, seen, kernel, genes, expected):
    cuda(seen, True, kernel)
    assert prepare_torch(RunOptions(), None, genes=genes).device.type == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx512f amx_bf16 amx_tile", torch.bfloat16),
        ("fpu avx512_bf16", torch.bfloat16),
        ("fpu avx2 avx512f", torch.float32),
        (None, torch.float32),
    ],
)
def test_auto_is_bfloat16_where_the_processor_computes_it(flags, expected, monkeypatch):
    def read(self):
        if flags is None:
            raise FileNotFoundError
        return f"processor : 0\nflags\t\t: {flags}\nprocessor : 1\nflags\t\t: {flags}\n"

    monkeypatch.setattr(stage.Path, "read_text", read)
    stage._has_bfloat16_instructions.cache_clear()
    assert choose_dtype(CPU, "auto") == expected
    stage._has_bfloat16_instructions.cache_clear()
    assert (choose_dtype(CPU, "float32"), choose_dtype(CPU, "bfloat16")) == (torch.float32, torch.bfloat16)


def test_prepare_torch_sets_threads_seed_and_determinism():
    threads = torch.get_num_threads()
    place = prepare_torch(RunOptions(threads=2, seed=9, precision="float32"), "cpu", genes=True)
    assert place == Place(CPU, torch.float32) and torch.get_num_threads() == 2
    assert torch.initial_seed() == 9 and torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)


def test_bfloat16_is_deterministic_near_float32_and_not_float32(cohort, finetune_options, tmp_path):
    def train(name, precision):
        options = finetune_options(precision=precision, steps=2)
        finetune(options, cohort.sources, cohort.expression, cohort.splits, "0", None, tmp_path / name)
        return mgi.load(tmp_path / name)

    first, again, exact = train("a", "bfloat16"), train("b", "bfloat16"), train("c", "float32")
    states = [model.state_dict() for model in (first, again, exact)]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert any(not states[0][name].equal(states[2][name]) for name in states[0])
    images, profiles = read_images(cohort.sources, set(CASES[6:])), read_profiles(cohort.expression)
    low, high = (
        next(predict_probabilities(exact, images, profiles, Place(CPU, dtype)))[1]
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert 0 < abs(low - high).max() < 0.05 and low.dtype == "float32"

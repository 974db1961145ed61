"""Where and how precisely a model computes: device, threads, seed, deterministic algorithms, float32 or bfloat16."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from mgi.config import RunOptions
from mgi.errors import ConfigError
from mgi.model.scan import missing_kernel

# Instructions that multiply bfloat16 numbers; without them it is slower than float32.
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}


@dataclass(frozen=True)
class Place:
    """Where and how precisely a model computes.

    Attributes
    ----------
    device : torch.device
    dtype : torch.dtype
        Of matrix products and convolutions: float32 or bfloat16. Normalisation, losses and the state of the scan are
        float32 in either case.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32

    def autocast(self) -> AbstractContextManager:
        """Compute in bfloat16, where that is the dtype, what loses nothing by it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def prepare_torch(options: RunOptions, device: str | None, genes: bool) -> Place:
    """Fix threads, seed and deterministic algorithms, and return where to compute.

    Parameters
    ----------
    options : RunOptions
        Seed, threads and precision.
    device : {"cpu", "cuda"} or None
        None takes CUDA where the machine can.
    genes : bool
        Whether genes are encoded, which on CUDA needs a kernel for the scan.

    Raises
    ------
    ConfigError
        If CUDA is asked for and there is none, or the kernel that it needs is not installed.
    """
    missing = find_missing_for_cuda(genes)
    if device == "cuda" and missing:
        raise ConfigError(f"cannot compute on CUDA: {missing}")
    chosen = torch.device(device or ("cpu" if missing else "cuda"))
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(chosen.type == "cpu")
    return Place(chosen, choose_dtype(chosen, options.precision))


def find_missing_for_cuda(genes: bool) -> str | None:
    """Return what this machine lacks to compute on CUDA, with or without genes; None where it can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    missing = missing_kernel() if genes else None
    return missing and f"encoding genes there needs mamba-ssm or Triton ({missing}): use workflow/envs/train-gpu.yaml"


def choose_dtype(device: torch.device, precision: str) -> torch.dtype:
    """Return the dtype of matrix products and convolutions for `auto`, `float32` or `bfloat16`.

    `auto` is bfloat16 where the GPU, or the CPU by its instructions, computes it in hardware.
    """
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _has_bfloat16_instructions()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@cache
def _has_bfloat16_instructions() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not BFLOAT16_FLAGS.isdisjoint(flags)

"""The training loop that pre-training and fine-tuning share: deterministic, resumable, one file to read."""

import csv
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgi import __version__
from mgi.config import Optimisation
from mgi.console import log, progress
from mgi.errors import ConfigError, TrainingError
from mgi.files import atomic_write
from mgi.model.scan import missing_kernel

LAST = "last.ckpt"
LARGEST_GRADIENT_NORM = 1.0
# A step's seed is the run's times SEED_STRIDE plus the step, and torch takes 64 bits.
SEED_STRIDE = 1_000_003
MAX_SEED = 2**32 - 1


def prepare_torch(threads: int, device: str | None, seed: int, genes: bool) -> torch.device:
    """Fix threads, seed and deterministic algorithms, and give the device.

    Parameters
    ----------
    device : {"cpu", "cuda"} or None
        None takes CUDA where the machine can.
    genes : bool
        Whether genes are encoded, which on CUDA needs mamba-ssm's kernel or Triton.

    Raises
    ------
    ConfigError
        If CUDA is asked for and there is none, or the kernel that it needs is not installed.
    """
    lacking = lacks_for_cuda(genes)
    if device == "cuda" and lacking:
        raise ConfigError(f"configuration: 'device' is cuda, but {lacking}")
    device = device or ("cpu" if lacking else "cuda")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(device == "cpu")
    return torch.device(device)


def lacks_for_cuda(genes: bool) -> str | None:
    """Return what this machine lacks to train on CUDA, with or without genes; None where it can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device here; set 'device: cpu'"
    missing = missing_kernel() if genes else None
    return missing and f"encoding genes there needs mamba-ssm or Triton ({missing}): use workflow/envs/train-gpu.yaml"


def autocast(device: torch.device) -> AbstractContextManager:
    """Compute in bfloat16 on CUDA and in float32 on the CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def parameter_groups(model: nn.Module, options: Optimisation, encoder_lr_scale: float = 1.0) -> list[dict[str, Any]]:
    """Sort parameters by weight decay and by encoder or not.

    Matrices decay, unless they are marked `_no_weight_decay`, as mamba's are, or named by `no_weight_decay()` of their
    module, as timm's are.
    """
    exempt = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or name in exempt or getattr(parameter, "_no_weight_decay", False)
        scale = encoder_lr_scale if name.split(".")[0].endswith("_encoder") else 1.0
        groups.setdefault((0.0 if plain else options.weight_decay, scale), []).append(parameter)
    return [{"params": group, "weight_decay": decay, "lr_scale": scale} for (decay, scale), group in groups.items()]


def learning_rate(step: int, options: Optimisation) -> float:
    """Linear warm-up, then cosine decay to a hundredth of the peak."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return options.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


class TrainingRun:
    """One run: its model, optimiser, history and best weights, all of which `last.ckpt` holds.

    What a step draws at random depends on the seed and the step alone, so a resumed run ends in the same weights as an
    uninterrupted one.

    Parameters
    ----------
    model : nn.Module
    options : Optimisation
    identity : dict
        What the checkpoint must agree on to be resumed, besides the version of mgi: options, fold, data.
    folder : Path
        Where last.ckpt and metrics.csv go.
    groups : list of dict
        Parameter groups of the optimiser.
    """

    def __init__(
        self, model: nn.Module, options: Optimisation, identity: dict[str, Any], folder: Path, groups: list[dict]
    ) -> None:
        self.model, self.options, self.folder = model, options, folder
        self.identity = identity | {"mgi": __version__}
        self.optimiser = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98))
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best = -math.inf
        self.best_weights: dict[str, Tensor] | None = None
        self._resume()

    def train(
        self,
        seed: int,
        loss_at: Callable[[int], Tensor],
        validate: Callable[[], tuple[float, dict[str, float]]] | None,
    ) -> nn.Module:
        """Run the remaining steps and give the model with the best validated weights (or the last, unvalidated).

        Parameters
        ----------
        seed : int
        loss_at : callable
            The loss of a step.
        validate : callable or None
            A score (higher is better) and what to record; None trains for the fixed number of steps.

        Raises
        ------
        TrainingError
            If the loss or its gradient is not finite; nothing is learnt from it, and last.ckpt stays as it was.
        """
        options, running = self.options, []
        for step in progress(range(self.step, options.steps), "training steps", options.steps - self.step):
            running.append(self._update(step, seed, loss_at))
            self.step = step + 1
            if self.step % options.val_every and self.step < options.steps:
                continue
            row = {"step": self.step, "loss": sum(running) / len(running), "lr": learning_rate(step, options)}
            running = []
            if validate is not None:
                self.model.eval()
                score, measured = validate()
                row |= measured
                if score > self.best:
                    self.best = score
                    self.best_weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.history.append(row)
            log.info("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
            self._checkpoint()
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        return self.model.eval()

    def finish(self) -> None:
        """Write metrics.csv and remove last.ckpt: the run is complete."""
        with atomic_write(self.folder / "metrics.csv") as aside, open(aside, "w", newline="") as handle:
            writer = csv.DictWriter(handle, self.history[-1].keys())
            writer.writeheader()
            writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in self.history)
        (self.folder / LAST).unlink(missing_ok=True)

    def _update(self, step: int, seed: int, loss_at: Callable[[int], Tensor]) -> float:
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(step, self.options) * group["lr_scale"]
        torch.manual_seed(seed * SEED_STRIDE + step)
        self.optimiser.zero_grad(set_to_none=True)
        loss = loss_at(step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT_NORM)
        for name, value in (("loss", loss.item()), ("gradient", norm.item())):
            if not math.isfinite(value):
                raise TrainingError(
                    f"step {step + 1} of {self.options.steps}: the {name} is {value}; lower 'lr' "
                    f"({self.options.lr:g}) or raise 'warmup_steps'"
                )
        self.optimiser.step()
        return loss.item()

    def _checkpoint(self) -> None:
        state = {
            "identity": self.identity,
            "step": self.step,
            "history": self.history,
            "best": self.best,
            "best_weights": self.best_weights,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        with atomic_write(self.folder / LAST) as aside:
            torch.save(state, aside)

    def _resume(self) -> None:
        path = self.folder / LAST
        if not path.exists():
            return
        state = torch.load(path, map_location=next(self.model.parameters()).device, weights_only=True)
        if state["identity"] != self.identity:
            log.warning("%s was written under another configuration or other data and is not resumed", path)
            return
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.history = state["step"], state["history"]
        self.best, self.best_weights = state["best"], state["best_weights"]
        log.info("resuming from %s at step %d", path, self.step)

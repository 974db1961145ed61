"""The training loop that pre-training and fine-tuning share: deterministic, resumable, one file to read."""

import csv
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgi.config import Optimisation
from mgi.console import log, progress
from mgi.errors import TrainingError, TrainingInterruptedError
from mgi.files import atomic_write
from mgi.train.distributed import Ranks
from mgi.train.events import Events
from mgi.train.interruption import Interruption
from mgi.train.resume import LAST, code_hash, read_state, write_state

MAX_GRADIENT_NORM = 1.0
# A step's seed is the run's times SEED_STRIDE plus the step, and torch takes 64 bits.
SEED_STRIDE = 1_000_003
# What a network has learnt from a million photographs moves slowly.
BACKBONE_LR_SCALE = 0.25
# Parameters of the encoders that alignment alone trains.
ALIGNED = ("component_map.weight", "texture_map.weight", ".gate")

Score = tuple[float, ...] | None


def parameter_groups(model: nn.Module, options: Optimisation) -> list[dict[str, Any]]:
    """Sort parameters by weight decay and by learning rate: the encoders have their own, but for their `ALIGNED` maps.

    What was trained on ImageNet (`backbone`) is trained at `BACKBONE_LR_SCALE` of the rate.

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
        is_slow = name.split(".")[0].endswith("_encoder") and not name.endswith(ALIGNED)
        scale = options.encoder_lr_scale if is_slow else BACKBONE_LR_SCALE if "backbone" in name.split(".") else 1.0
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
        What the checkpoint must agree on to be resumed, besides the code: options, fold, data.
    folder : Path
        Where last.ckpt, metrics.csv and the TensorBoard events go.
    groups : list of dict
        Parameter groups of the optimiser.
    images_per_step : int
        Images in a step's batch, for the speed in metrics.csv.
    ranks : Ranks
        This process among those that train together; the first writes.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Optimisation,
        identity: dict[str, Any],
        folder: Path,
        groups: list[dict[str, Any]],
        images_per_step: int,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.options, self.folder = model, options, folder
        self.ranks = ranks or Ranks()
        self.device = next(model.parameters()).device
        self.identity = identity | {"code": code_hash()}
        self.optimiser = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98))
        self.step = 0
        self.running: list[float] = []  # losses since the last row of the history
        self.history: list[dict[str, float]] = []
        self.best: tuple[float, ...] = (-math.inf,)
        self.best_weights: dict[str, Tensor] | None = None
        self.average = _copy_weights(model) if options.ema_decay else None
        self._own_weights: dict[str, Tensor] | None = None  # while the model has the average
        self._images_per_step, self._timed_steps, self._seconds = images_per_step, 0, 0.0
        self._interruption = Interruption(at_once=self.ranks.world == 1)
        self._resume()
        self._events = Events(folder, self.step) if self.ranks.first else None

    def train(
        self,
        seed: int,
        backward: Callable[[int], Tensor],
        validate: Callable[[], tuple[Score, dict[str, float]]] | None,
    ) -> nn.Module:
        """Run the remaining steps and return the model with the weights to keep.

        These are the running average of the weights where there is one, else those of the best validation, else the
        last.

        Parameters
        ----------
        seed : int
        backward : callable
            Computes the gradient of a step's loss, for this process's share of the batch, and returns the loss.
        validate : callable or None
            A score, compared item by item (higher is better; None where nothing is to be chosen), and what to record.

        Raises
        ------
        TrainingError
            If the loss or its gradient is not finite; nothing is learnt from it, and last.ckpt stays as it was.
        TrainingInterruptedError
            At SIGTERM, once the state is saved.
        """
        with self._interruption.watched():
            try:
                self._run(seed, backward, validate)
            except TrainingInterruptedError as error:
                with Interruption(at_once=False).watched():  # a second signal must not spoil the state
                    self._checkpoint()
                raise TrainingInterruptedError(
                    f"{error}: the state at step {self.step} of {self.options.steps} is saved, and running again "
                    "resumes from there"
                ) from error
            finally:
                if self._events is not None:
                    self._events.close()
        kept = self.average or self.best_weights
        if kept is not None:
            self.model.load_state_dict(kept)
        return self.model.eval()

    def finish(self) -> None:
        """Write metrics.csv and remove last.ckpt: the run is complete."""
        if not self.ranks.first:
            return
        with atomic_write(self.folder / "metrics.csv") as aside, open(aside, "w", newline="") as handle:
            writer = csv.DictWriter(handle, self.history[-1].keys())
            writer.writeheader()
            writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in self.history)
        (self.folder / LAST).unlink(missing_ok=True)

    def _run(
        self,
        seed: int,
        backward: Callable[[int], Tensor],
        validate: Callable[[], tuple[Score, dict[str, float]]] | None,
    ) -> None:
        if self.running and self._is_due():  # interrupted while it validated
            self._record(validate)
        for step in progress(range(self.step, self.options.steps), "training steps", self.options.steps - self.step):
            with self._interruption.deferred():
                self.running.append(self._update(step, seed, backward))
                self.step = step + 1
            if self.ranks.any(self._interruption.requested, self.device):
                raise TrainingInterruptedError("training was told to end (SIGTERM)")
            if self._is_due():
                self._record(validate)

    def _is_due(self) -> bool:
        return self.step % self.options.val_every == 0 or self.step == self.options.steps

    def _record(self, validate: Callable[[], tuple[Score, dict[str, float]]] | None) -> None:
        """Validate, add a row to the history and save the state."""
        row = {
            "step": self.step,
            "loss": sum(self.running) / len(self.running),
            "lr": learning_rate(self.step - 1, self.options),
            "images_per_second": self._images_per_step * self._timed_steps / max(self._seconds, 1e-9),
        }
        score, weights = None, None
        if validate is not None:
            with self._averaged():
                score, measured = validate()
                row |= measured
                if not math.isfinite(measured.get("val_loss", 0.0)):
                    raise TrainingError(
                        f"step {self.step} of {self.options.steps}: the validation loss is {measured['val_loss']}: "
                        "look for profiles or images of the validation patients that are far from all others"
                    )
                if score is not None and score > self.best and self.average is None:
                    weights = _copy_weights(self.model)
        with self._interruption.deferred():
            if weights is not None and score is not None:
                self.best, self.best_weights = score, weights
            self.history.append(row)
            self.running, self._timed_steps, self._seconds = [], 0, 0.0
            log.info("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
            self._checkpoint()
            if self._events is not None:
                self._events.write(row)

    def _update(self, step: int, seed: int, backward: Callable[[int], Tensor]) -> float:
        started = time.perf_counter()
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(step, self.options) * group["lr_scale"]
        torch.manual_seed((self.ranks.rank << 53) + seed * SEED_STRIDE + step)
        self.optimiser.zero_grad(set_to_none=True)
        loss = backward(step).item()
        self.ranks.sum_gradients(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM).item()
        for name, value in (("loss", loss), ("gradient", norm)):
            if not math.isfinite(value):
                raise TrainingError(
                    f"step {step + 1} of {self.options.steps}: the {name} is {value}; use a lower learning rate than "
                    f"{self.options.lr:g} or a longer warm-up"
                )
        self.optimiser.step()
        self._update_average(step)
        self._timed_steps += 1
        self._seconds += time.perf_counter() - started
        return loss

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        """Move the running average towards the weights: faster at first, when they are still far from it."""
        if self.average is None:
            return
        decay = min(self.options.ema_decay, (1 + step) / (10 + step))
        for name, parameter in self.model.named_parameters():
            self.average[name].lerp_(parameter, 1 - decay)
        # Not averaged: the scale of a gene that does not vary is infinite, and infinity minus itself is no number.
        for name, buffer in self.model.named_buffers():
            if name in self.average:
                self.average[name].copy_(buffer)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Set the model to evaluation mode, with the running average of its weights where there is one."""
        self.model.eval()
        if self.average is None:
            yield
            return
        self._own_weights = _copy_weights(self.model)
        try:
            self.model.load_state_dict(self.average)
            yield
        finally:
            # An interruption may come in the middle of this: what a checkpoint holds then are the copied weights.
            self.model.load_state_dict(self._own_weights)
            self._own_weights = None

    def _checkpoint(self) -> None:
        if not self.ranks.first:
            return
        write_state(
            {
                "identity": self.identity,
                "step": self.step,
                "running": self.running,
                "history": self.history,
                "best": self.best,
                "best_weights": self.best_weights,
                "average": self.average,
                "model": self._own_weights or self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
            },
            self.folder / LAST,
        )

    def _resume(self) -> None:
        state = read_state(self.folder / LAST, self.identity, self.device)
        if state is None:
            return
        own = _copy_weights(self.model)
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError) as error:
            self.model.load_state_dict(own)
            log.warning(
                "%s is damaged and is ignored; training starts from the beginning: %s", self.folder / LAST, error
            )
            return
        self.step, self.running, self.history = state["step"], state["running"], state["history"]
        self.best, self.best_weights, self.average = state["best"], state["best_weights"], state["average"]
        log.info("resuming from %s at step %d", self.folder / LAST, self.step)


def _copy_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}

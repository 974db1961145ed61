"""What the processes of a test under torchrun do: one gradient of each stage, and a short run of each, by rank 0."""

import json
import os
import sys
from pathlib import Path

import torch

from mgi.config import FinetuneOptions, PretrainOptions
from mgi.train import finetune as fine
from mgi.train import pretrain as pre
from mgi.train.loop import TrainingRun


def main(settings: dict, data: Path, output: Path) -> None:
    """Pre-train and fine-tune on the cohort in `data`, and write the gradient and the loss of the first step."""
    seen, clip = {}, torch.nn.utils.clip_grad_norm_
    update = TrainingRun._update

    def record(self, step, seed, backward):
        losses = []

        def backward_and_keep(step):
            losses.append(backward(step))
            return losses[-1]

        def keep_and_clip(parameters, norm):
            if step == 0:
                stage = self.folder.name
                named = self.model.named_parameters()
                seen[stage] = {name: value.grad.clone() for name, value in named if value.grad is not None}
                seen[stage]["loss"] = losses[0]
            return clip(self.model.parameters(), norm)

        torch.nn.utils.clip_grad_norm_ = keep_and_clip
        return update(self, step, seed, backward_and_keep)

    TrainingRun._update = record
    paths = (data / "sources.parquet", data / "expression.parquet", data / "splits.parquet", "0")
    for stage in ("pretrain", "images"):
        pre.pretrain(PretrainOptions(**settings[stage]), *paths, output / stage)
    fine.finetune(FinetuneOptions(**settings["finetune"]), *paths, None, output / "finetune")
    torch.save(seen, output / f"rank{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))

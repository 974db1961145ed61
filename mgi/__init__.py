"""MGI: medical images and genes, aligned by contrastive pre-training and fused to segment tumours.

Method: Zhou et al., "MGI: Multimodal Contrastive pre-training of Genomic and Medical Imaging", 2024, arXiv 2406.00631.
"""

__version__ = "0.1.0"

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def load(folder: str) -> "nn.Module":
    """Load a model written by `mgi pretrain` or `mgi finetune`, in evaluation mode, with its `config`.

    Raises
    ------
    MGIError
        If the folder holds no complete model.
    """
    from mgi.train.checkpoint import load as load_model

    return load_model(folder)

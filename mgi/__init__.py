"""MGI: medical images and genes, aligned by contrastive pre-training and fused to segment tumours.

Method: Zhou et al., "MGI: Multimodal Contrastive pre-training of Genomic and Medical Imaging", 2024, arXiv 2406.00631.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__version__: str


def __getattr__(name: str) -> str:
    """Compute `__version__` when it is first asked for, since that runs git in a checkout."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mgi.version import find_version

    globals()[name] = version = find_version()
    return version


def load(folder: str) -> "nn.Module":
    """Load a model written by `mgi pretrain` or `mgi finetune`, in evaluation mode, with its `description`.

    Raises
    ------
    MGIError
        If the folder holds no complete model.
    """
    from mgi.train.checkpoint import load as load_model

    return load_model(folder)


def predict(folder: Path | str, image: Path | str, output: Path | str, **options: Any) -> None:
    """Segment a slide or an MRI series as `mgi predict` does; see `mgi.evaluate.predict.predict` for the options."""
    from mgi.evaluate.predict import predict as run

    run(Path(folder), Path(image), Path(output), **options)

"""Published networks that a segmenter is compared with, from segmentation_models_pytorch."""

import torch
from torch import Tensor, nn

from mgi.model.image_encoder import import_timm
from mgi.model.segmenter import Segmenter

# Architecture and encoder: U-Net (Ronneberger et al., 2015, arXiv 1505.04597) on a ResNet-18, and SegFormer (Xie et
# al., 2021, arXiv 2105.15203) on its smallest encoder.
NETWORKS = {"unet-resnet18": ("unet", "resnet18"), "segformer-b0": ("segformer", "mit_b0")}

HALVINGS = 5


class Baseline(Segmenter):
    """A published network in place of the whole segmenter, without genes and with random weights.

    Parameters
    ----------
    network : str
        A key of `NETWORKS`.
    neighbours, average_flips
        As of `Segmenter`.
    """

    def __init__(self, network: str, neighbours: int = 0, average_flips: bool = False) -> None:
        nn.Module.__init__(self)
        self.neighbours, self.average_flips = neighbours, average_flips
        self.image_encoder = self.gene_encoder = None
        import_timm()
        from segmentation_models_pytorch import create_model

        (architecture, encoder), channels = NETWORKS[network], 3 * (1 + 2 * neighbours)
        # SegFormer reads numbers of tensors while it is built, which torch's meta device has not.
        with torch.device("cpu"):
            built: nn.Module = create_model(architecture, encoder, None, in_channels=channels, classes=1)
        self.network = built.to(torch.get_default_device())

    def segment(self, images: Tensor, genes: Tensor | None, patient: Tensor, present: Tensor) -> Tensor:
        """Return the logits of every pixel; the arguments and the result are those of `Segmenter.segment`."""
        logits: Tensor = self.network(2 * images - 1)
        return logits.squeeze(1)

"""The one definition of the configuration, a module of sections per stage.

`config/config.yaml` is read into `Config`; the JSON schema and the table in `config/README.md` are generated from it
(`python -m mgi config --write config`), and a test fails when they drift. Units stand in the names: `mpp` is microns
per pixel, `_px` pixels, `_min` minutes, `_mb` megabytes.
"""

from mgi.config.acquire import GDC_API, GENCODE_V36_FILE_ID, Gdc, Simulate
from mgi.config.cohort import Config, Resources, load_config, load_options
from mgi.config.evaluate import Evaluate
from mgi.config.prepare import Expression, MaskValues, Mri, Slides, Split, Tiling
from mgi.config.reference import REFERENCE_BEGIN, REFERENCE_END, reference_files, write_reference
from mgi.config.section import Section
from mgi.config.train import (
    ATTENTION_HEADS,
    Finetune,
    FinetuneOptions,
    GeneEncoder,
    ImageEncoder,
    Optimisation,
    Pretrain,
    PretrainOptions,
    RunOptions,
)

__all__ = [
    "ATTENTION_HEADS", "GDC_API", "GENCODE_V36_FILE_ID", "REFERENCE_BEGIN", "REFERENCE_END", "Config", "Evaluate",
    "Expression", "Finetune", "FinetuneOptions", "Gdc", "GeneEncoder", "ImageEncoder", "MaskValues", "Mri",
    "Optimisation", "Pretrain", "PretrainOptions", "Resources", "RunOptions", "Section", "Simulate", "Slides", "Split",
    "Tiling", "load_config", "load_options", "reference_files", "write_reference",
]  # fmt: skip

"""The one definition of the configuration, a module of sections per stage.

`config/config.yaml` is read into `Config`; the JSON schema and the table in `config/README.md` are generated from it
(`python -m mgi config --write config`), and a test fails when they drift. Units stand in the names: `mpp` is microns
per pixel, `_px` pixels, `_min` minutes, `_mb` megabytes.
"""

from mgi.config.acquire import (
    GDC_API,
    GENCODE_V36_FILE_ID,
    LOCAL,
    FetchOptions,
    Gdc,
    ImportOptions,
    QueryOptions,
    Server,
    Simulate,
    SimulateOptions,
)
from mgi.config.cohort import Config, Resources, load_config, load_options, read_configuration
from mgi.config.evaluate import Evaluate, EvaluateOptions, PredictOptions, Probe, ProbeOptions
from mgi.config.prepare import (
    Expression,
    Features,
    MaskValues,
    Mri,
    MriOptions,
    OwnFiles,
    Slides,
    Split,
    SplitOptions,
    StarCounts,
    StatedSlide,
    TableImport,
    TileJob,
    TileOptions,
)
from mgi.config.reading import read_mapping, read_yaml
from mgi.config.reference import REFERENCE_BEGIN, REFERENCE_END, reference_files, write_reference
from mgi.config.section import Section
from mgi.config.train import (
    ATTENTION_HEADS,
    MAX_SEED,
    Finetune,
    FinetuneOptions,
    GeneEncoder,
    ImageEncoder,
    Optimisation,
    Pretrain,
    PretrainOptions,
    RunOptions,
)
from mgi.config.vit import VitOptions

__all__ = [
    "ATTENTION_HEADS", "GDC_API", "GENCODE_V36_FILE_ID", "LOCAL", "MAX_SEED", "REFERENCE_BEGIN", "REFERENCE_END",
    "Config", "Evaluate", "EvaluateOptions", "Expression", "Features", "FetchOptions", "Finetune", "FinetuneOptions",
    "Gdc", "GeneEncoder", "ImageEncoder", "ImportOptions", "MaskValues", "Mri", "MriOptions", "Optimisation",
    "OwnFiles", "PredictOptions", "Pretrain", "PretrainOptions", "Probe", "ProbeOptions", "QueryOptions", "Resources",
    "RunOptions", "Section", "Server", "Simulate", "SimulateOptions", "Slides", "Split", "SplitOptions", "StarCounts",
    "StatedSlide", "TableImport", "TileJob", "TileOptions", "VitOptions", "load_config", "load_options",
    "read_configuration", "read_mapping", "read_yaml", "reference_files", "write_reference",
]  # fmt: skip

"""A cohort of eight cases written as the tables that training reads: bright discs are tumours, one case unpaired."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mgi.codecs import decode_mask, encode_mask, encode_png
from mgi.config import FinetuneOptions, PretrainOptions
from mgi.tables import image_table, write_sources, write_table

GENES, PX, IMAGES = 40, 32, 6
CASES = [f"TCGA-AA-000{index}" for index in range(8)]
ROLES = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
SITES = ["AA", "AB"] * 4
UNPAIRED = CASES[3]
TINY = {
    "steps": 6,
    "val_every": 2,
    "warmup_steps": 1,
    "precision": "float32",
    "gene_encoder": {"dim": 16, "depth": 1, "stride": 8, "state_dim": 4},
    "image_encoder": {"options": {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}},
}


def write_cohort(
    folder: Path, genes: int = GENES, unit: str | None = "log2(TPM+1)", mpp: float | None = 0.37
) -> SimpleNamespace:
    """Write sources, images, expression, genes and splits under `folder` and give their paths."""
    random = np.random.default_rng(0)
    rows, yy, xx = [], *np.mgrid[:PX, :PX]
    with image_table(folder / "images" / "all.parquet") as add:
        for case in CASES:
            for z in range(IMAGES):
                x, y = random.integers(8, 24, 2)
                disc = ((yy - y) ** 2 + (xx - x) ** 2 < 30) & (z > 0)
                pixels = random.integers(0, 90, (PX, PX, 3)) + 150 * disc[..., None]
                place = {"case_id": case, "source_id": f"{case}-S", "x": 0, "y": 0, "z": z, "size": PX, "mpp": mpp}
                add(
                    place
                    | {"tissue_fraction": 1.0, "image": encode_png(pixels.astype(np.uint8)), "mask": encode_mask(disc)}
                )
            rows.append(
                {"source_id": f"{case}-S", "case_id": case, "status": "ok", "n_images": IMAGES, "labelled": True}
            )
            rows[-1]["table"] = "all"
    write_sources(rows, folder / "sources.parquet")
    paired = [case for case in CASES if case != UNPAIRED]
    values = random.normal(5, 2, (len(paired), genes)).astype(np.float32)
    table = pa.table({
        "case_id": paired,
        "aliquot": pa.nulls(len(paired), pa.string()),
        "values": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), genes),
    })  # fmt: skip
    write_table(table.replace_schema_metadata({"unit": unit} if unit else None), folder / "expression.parquet")
    names = [f"ENSG{index:011d}" for index in range(genes)]
    frame = pd.DataFrame({"gene_id": names, "gene_name": names, "gene_type": "protein_coding", "chromosome": "chr1"})
    write_table(frame.assign(start=np.arange(genes)), folder / "genes.parquet")
    splits = {"case_id": CASES, "fold": 0, "role": ROLES, "site": SITES, "stratum": "all"}
    write_table(pd.DataFrame(splits), folder / "splits.parquet")
    names = ("sources", "expression", "splits")
    return SimpleNamespace(folder=folder, **{name: folder / f"{name}.parquet" for name in names})


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> SimpleNamespace:
    """The cohort's paths."""
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def write():
    """The function that writes such a cohort elsewhere, with other genes, in another unit or of another mpp."""
    return write_cohort


@pytest.fixture(scope="session")
def pretrain_options() -> PretrainOptions:
    """A few steps of a tiny aligner."""
    return PretrainOptions(**TINY, embed_dim=8, batch_patients=3, images_per_patient=2)


@pytest.fixture(scope="session")
def finetune_options():
    """A function that gives the options of a few steps of a tiny segmenter."""

    def options(**changes) -> FinetuneOptions:
        return FinetuneOptions(**(TINY | {"channels": [8, 8, 16], "batch_images": 4, "lr": 1e-3} | changes))

    return options


@pytest.fixture(scope="session")
def pretrained(cohort, pretrain_options, tmp_path_factory) -> Path:
    """The folder of a pre-trained model."""
    from mgi.train.pretrain import pretrain

    folder = tmp_path_factory.mktemp("pretrained")
    pretrain(pretrain_options, cohort.sources, cohort.expression, cohort.splits, "0", folder)
    return folder


@pytest.fixture(scope="session")
def finetuned(cohort, pretrained, finetune_options, tmp_path_factory) -> Path:
    """The folder of a fine-tuned model."""
    from mgi.train.finetune import finetune

    folder = tmp_path_factory.mktemp("finetuned")
    finetune(finetune_options(), cohort.sources, cohort.expression, cohort.splits, "0", pretrained, folder)
    return folder


def patient_dice(predictions: pd.DataFrame) -> dict[str, float]:
    """Each patient's Dice over all its pixels, from the rows of a predictions.parquet, one set of pixels at a time."""
    dice = {}
    for case, rows in predictions.groupby("case_id"):
        sets = [
            {
                (index, *place)
                for index, png in enumerate(rows[name])
                for place in np.argwhere(decode_mask(png)).tolist()
            }
            for name in ("prediction", "reference")
        ]
        dice[case] = 2 * len(sets[0] & sets[1]) / (len(sets[0]) + len(sets[1])) if sets[0] or sets[1] else 1.0
    return dice

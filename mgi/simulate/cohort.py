"""A small cohort in the GDC's own formats, with planted coupling of genes and images.

Six latent look factors per patient each drive a module of genes and the look of the tissue. One balanced bit per
patient, drawn independently of them, drives a switch module of genes and decides which of two equally large textures of
every slide is annotated as the tumour: the images alone cannot tell. In a second truth that bit is whether one look
factor is above its median; its genes tell the factor and the tissue shows it faintly, so that aligning images and genes
can help.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mgi.console import log, progress
from mgi.errors import ConfigError
from mgi.files import atomic_write
from mgi.geojson import outline, tumour_feature
from mgi.simulate import tissue
from mgi.simulate.genes import SWITCH_MODULE_GENES, draw_counts, draw_genes, make_rng, normalise, write_annotation
from mgi.tables import write_table

PROJECT = "TCGA-SIM"
ANNOTATION_FILE_ID = "00000000-0000-4000-8000-000000000036"
ANNOTATION_NAME = "simulated.annotation.gtf.gz"
RELEASE = "Simulated 1.0"
MPP = 0.5
# The look factor of the second truth (size of nuclei), and how much of it the tissue shows.
FAINT_FACTOR, FAINT_SHARE = 3, 0.25
SITES = ("S1", "S2", "S3", "S4", "S5", "S6")


@dataclass(frozen=True)
class Patient:
    """What is planted in one patient, and the names of its files.

    `look` drives the genes, `shown` the tissue.
    """

    index: int
    case_id: str
    bit: int
    look: np.ndarray
    shown: np.ndarray
    slides: int
    switch_sd: float


def simulate_cohort(
    out: Path,
    *,
    cases: int,
    seed: int,
    genes: int,
    slide_px: int,
    workers: int,
    tumour_by: str = "bit",
    switch_sd: float = 2.0,
    switch_genes: int = SWITCH_MODULE_GENES,
) -> None:
    """Write a simulated cohort; the same arguments give the same bytes, for any number of workers.

    Parameters
    ----------
    out
        Folder to make: `status.json`, `files.json` (records of the GDC's `/files`), `data/{file_id}/{file_name}`,
        `annotations/{source_id}.geojson`, `truth.parquet`, `truth_genes.parquet` and, last, `manifest.tsv`.
    cases
        Patients, each with one STAR table and one or two slides.
    seed
        Seed of everything random.
    genes
        Genes in a STAR table, 1,000 to 60,660.
    slide_px
        Edge of a slide at level 0, pixels of 0.5 microns.
    workers
        Processes.
    tumour_by : {"bit", "look"}
        What decides which texture is the tumour.
    switch_sd, switch_genes
        Difference that the bit makes to its genes, in standard deviations within a class, and their number; the second
        truth has no such genes.

    Raises
    ------
    ConfigError
        If `out` holds something else than a simulated cohort.
    """
    _clear(out)
    with atomic_write(out / "status.json") as aside:
        status = {"data_release": RELEASE, "status": "OK", "tag": "1.0", "version": 1}
        aside.write_text(json.dumps(status, indent=1) + "\n")
    gene_table, exons = draw_genes(seed, genes, switch_genes if tumour_by == "bit" else 0)
    patients = _patients(seed, cases, tumour_by, switch_sd)
    annotation = out / "data" / ANNOTATION_FILE_ID / ANNOTATION_NAME
    write_annotation(annotation, gene_table, exons)
    records = [_record(annotation, "Gene Annotation", "GTF", "Transcriptome Profiling", [])]
    for made in progress(_make_patients(patients, out, seed, gene_table, slide_px, workers), "patients", cases):
        records += made
    records.sort(key=lambda record: (record["data_type"], record["file_name"]))
    with atomic_write(out / "files.json") as aside:
        aside.write_text(json.dumps(records, indent=1) + "\n")
    _write_truth(out, patients, gene_table)
    with atomic_write(out / "manifest.tsv") as aside:
        _manifest(records).to_csv(aside, sep="\t", index=False, lineterminator="\n")
    log.info("simulated cohort of %d patients and %d genes written to %s", cases, genes, out)


def _clear(out: Path) -> None:
    """Remove what an earlier simulation left in `out`, its receipt first."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder for the simulated cohort")
    status = out / "status.json"
    ours = status.is_file() and RELEASE in status.read_text(errors="replace")
    if any(out.iterdir()) and not ours:
        raise ConfigError(f"{out} holds something else than a simulated cohort; name a new or empty folder")
    (out / "manifest.tsv").unlink(missing_ok=True)
    for name in ("data", "annotations"):
        shutil.rmtree(out / name, ignore_errors=True)


def _file_id(seed: int, name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{PROJECT} {seed} {name}"))


def _patients(seed: int, cases: int, tumour_by: str = "bit", switch_sd: float = 2.0) -> list[Patient]:
    """Draw the patients; bit and look come from separate streams, so neither tells of the other in the first truth."""
    look = make_rng(seed, 1).standard_normal((cases, tissue.LOOK_FACTORS))
    bits, shown = make_rng(seed, 2).permutation(np.arange(cases) % 2), look.copy()
    if tumour_by == "look":
        bits = (look[:, FAINT_FACTOR] > np.median(look[:, FAINT_FACTOR])).astype(int)
        shown[:, FAINT_FACTOR] *= FAINT_SHARE
    rng = make_rng(seed, 3)
    sites, two_slides = rng.integers(len(SITES), size=cases), rng.random(cases) < 1 / 3
    return [
        Patient(
            index=i,
            case_id=f"TCGA-{SITES[sites[i]]}-{i + 1:04d}",
            bit=int(bits[i]),
            look=look[i],
            shown=shown[i],
            slides=1 + int(two_slides[i]),
            switch_sd=switch_sd,
        )
        for i in range(cases)
    ]


def _record(path: Path, data_type: str, data_format: str, category: str, cases: list[dict], **more: object) -> dict:
    """Describe a file as the GDC's `/files` lists it."""
    with open(path, "rb") as handle:
        md5 = hashlib.file_digest(handle, "md5").hexdigest()
    return {
        "id": path.parent.name,
        "file_id": path.parent.name,
        "file_name": path.name,
        "file_size": path.stat().st_size,
        "md5sum": md5,
        "access": "open",
        "state": "released",
        "data_category": category,
        "data_format": data_format,
        "data_type": data_type,
        "cases": cases,
        **more,
    }


def _make_patients(
    patients: list[Patient], out: Path, seed: int, genes: pd.DataFrame, slide_px: int, workers: int
) -> Iterator[list[dict]]:
    """Write every patient; yield the records of each one's files as they are written, in any order."""
    if workers == 1:
        yield from (_write_patient(patient, out, seed, genes, slide_px) for patient in patients)
        return
    # Forking a process in which libvips has started its threads can hang; a fresh one cannot.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(_write_patient, patient, out, seed, genes, slide_px) for patient in patients]
        for future in as_completed(futures):
            yield future.result()


def _write_patient(patient: Patient, out: Path, seed: int, genes: pd.DataFrame, slide_px: int) -> list[dict]:
    """Write one patient's STAR table, slides and annotations; return the records of the files."""
    records = [_write_expression(patient, out, seed, genes)]
    for number in range(1, patient.slides + 1):
        pixels, regions = tissue.draw_slide(make_rng(seed, 6, patient.index, number), patient.shown, slide_px)
        barcode = f"{patient.case_id}-01Z-00-DX{number}"
        name = f"{barcode}.{_file_id(seed, barcode).upper()}.svs"
        path = out / "data" / _file_id(seed, name) / name
        path.parent.mkdir(parents=True)
        write_svs(pixels, path)
        tumour = regions == (tissue.TEXTURE_A if patient.bit == 0 else tissue.TEXTURE_B)
        _write_geojson(out / "annotations" / f"{barcode}.geojson", tumour, slide_px)
        portion = {"submitter_id": f"{patient.case_id}-01Z-00", "slides": [{"submitter_id": barcode}]}
        records.append(
            _record(
                path,
                "Slide Image",
                "SVS",
                "Biospecimen",
                [_case(patient, "01Z", portion)],
                experimental_strategy="Diagnostic Slide",
            )
        )
    return records


def _case(patient: Patient, sample: str, portion: dict) -> dict:
    return {
        "submitter_id": patient.case_id,
        "project": {"project_id": PROJECT},
        "samples": [
            {
                "submitter_id": f"{patient.case_id}-{sample}",
                "sample_type": "Primary Tumor",
                "portions": [portion],
            }
        ],
    }


def _write_expression(patient: Patient, out: Path, seed: int, genes: pd.DataFrame) -> dict:
    """Write a STAR table as the GDC does."""
    rng = make_rng(seed, 5, patient.index)
    counts = draw_counts(rng, patient.look, patient.bit, genes, patient.switch_sd)
    table = genes[["gene_id", "gene_name", "gene_type"]].copy()
    table["unstranded"] = counts
    table["stranded_first"] = rng.binomial(counts, 0.5)
    table["stranded_second"] = counts - table.stranded_first
    for name, values in normalise(counts, genes).items():
        table[name] = values
    name = f"{_file_id(seed, patient.case_id + ' counts')}.rna_seq.augmented_star_gene_counts.tsv"
    path = out / "data" / _file_id(seed, name) / name
    path.parent.mkdir(parents=True)
    total = int(counts.sum())
    shares = {"N_unmapped": (0.05,) * 3, "N_multimapping": (0.03,) * 3, "N_noFeature": (0.02, 0.06, 0.06),
              "N_ambiguous": (0.01, 0.003, 0.003)}  # fmt: skip
    with open(path, "w", newline="\n") as handle:
        handle.write("# gene-model: GENCODE v36\n" + "\t".join(table.columns) + "\n")
        for counter, parts in shares.items():
            handle.write("\t".join([counter, "", "", *(str(int(total * part)) for part in parts), "", "", ""]) + "\n")
        table.to_csv(handle, sep="\t", header=False, index=False, float_format="%.4f", lineterminator="\n")
    aliquot = f"{patient.case_id}-01A-11R-A000-07"
    portion = {
        "submitter_id": f"{patient.case_id}-01A-11",
        "analytes": [{"submitter_id": f"{patient.case_id}-01A-11R", "aliquots": [{"submitter_id": aliquot}]}],
    }
    return _record(
        path, "Gene Expression Quantification", "TSV", "Transcriptome Profiling", [_case(patient, "01A", portion)],
        experimental_strategy="RNA-Seq", analysis={"workflow_type": "STAR - Counts"},
    )  # fmt: skip


def write_svs(pixels: np.ndarray, path: Path) -> None:
    """Write RGB pixels, uint8 [height, width, 3], as a tiled, pyramidal JPEG SVS that OpenSlide opens as Aperio."""
    os.environ.setdefault("VIPS_CONCURRENCY", "1")
    import pyvips

    height, width = pixels.shape[:2]
    image = pyvips.Image.new_from_memory(pixels.data, width, height, 3, "uchar")
    image = image.copy(interpretation="srgb", xres=1000 / MPP, yres=1000 / MPP)
    description = (
        f"Aperio Image Library v12.0.15\r\n{width}x{height} [0,0 {width}x{height}] (256x256) JPEG/RGB Q=85"
        f"|AppMag = 20|MPP = {MPP}|ScanScope ID = SIMULATED"
    )
    image.set_type(pyvips.GValue.gstr_type, "image-description", description)
    image.tiffsave(
        str(path), tile=True, pyramid=True, compression="jpeg", Q=85, tile_width=256, tile_height=256, bigtiff=True
    )


def _write_geojson(path: Path, tumour: np.ndarray, slide_px: int) -> None:
    """Write a tumour annotation as QuPath exports it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    feature = tumour_feature(path.name, outline(tumour, tissue.MAP_SCALE))
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}) + "\n")


def _write_truth(out: Path, patients: list[Patient], genes: pd.DataFrame) -> None:
    truth = pd.DataFrame(
        {
            "case_id": [patient.case_id for patient in patients],
            "bit": np.array([patient.bit for patient in patients], np.int32),
            "tumour_texture": ["AB"[patient.bit] for patient in patients],
            "slides": np.array([patient.slides for patient in patients], np.int32),
        }
    )
    for factor in range(tissue.LOOK_FACTORS):
        truth[f"look_{factor}"] = [patient.look[factor] for patient in patients]
    write_table(truth.sort_values("case_id", ignore_index=True), out / "truth.parquet")
    planted = genes[genes.module.notna()]
    write_table(planted[["gene_id", "gene_name", "module", "sign"]].reset_index(drop=True), out / "truth_genes.parquet")


def _manifest(records: list[dict]) -> pd.DataFrame:
    """Make the manifest as the GDC portal exports it."""
    table = pd.DataFrame(records)[["file_id", "file_name", "md5sum", "file_size", "state"]]
    return table.set_axis(["id", "filename", "md5", "size", "state"], axis=1)

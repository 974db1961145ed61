"""A small cohort in the GDC's own formats, with planted coupling of genes and images.

Six latent look factors per patient each drive a module of genes and the look of the tissue. One balanced bit per
patient, drawn independently of them, drives a switch module of genes and decides which of two equally large textures of
every slide is annotated as the tumour: the images alone cannot tell.
"""

import gzip
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
from scipy import special

from mgi.console import log, progress
from mgi.errors import ConfigError
from mgi.files import atomic_write
from mgi.geojson import outline, tumour_feature
from mgi.simulate import tissue
from mgi.tables import write_table

PROJECT = "TCGA-SIM"
ANNOTATION_FILE_ID = "00000000-0000-4000-8000-000000000036"
ANNOTATION_NAME = "simulated.annotation.gtf.gz"
RELEASE = "Simulated 1.0"
MPP = 0.5
SITES = ("S1", "S2", "S3", "S4", "S5", "S6")

LOOK_MODULE_GENES = 100
SWITCH_MODULE_GENES = 200
LOOK_LOADING = 1.5
SWITCH_DIFFERENCE = 2.0
DISPERSION = 0.1
PAR_Y_GENES = 2

CHROMOSOME_MB = {
    "chr1": 248.96, "chr2": 242.19, "chr3": 198.30, "chr4": 190.21, "chr5": 181.54, "chr6": 170.81, "chr7": 159.35,
    "chr8": 145.14, "chr9": 138.39, "chr10": 133.80, "chr11": 135.09, "chr12": 133.28, "chr13": 114.36,
    "chr14": 107.04, "chr15": 101.99, "chr16": 90.34, "chr17": 83.26, "chr18": 80.37, "chr19": 58.62, "chr20": 64.44,
    "chr21": 46.71, "chr22": 50.82, "chrX": 156.04, "chrY": 57.23, "chrM": 0.0166,
}  # fmt: skip
OTHER_GENE_TYPES = ("lncRNA", "processed_pseudogene", "miRNA", "snRNA")
CODING_SHARE = 0.95


@dataclass(frozen=True)
class Patient:
    """What is planted in one patient, and the names of its files."""

    index: int
    case_id: str
    bit: int
    look: np.ndarray
    slides: int


def simulate_cohort(out: Path, *, cases: int, seed: int, genes: int, slide_px: int, workers: int) -> None:
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

    Raises
    ------
    ConfigError
        If `out` holds something else than a simulated cohort.
    """
    _clear(out)
    with atomic_write(out / "status.json") as aside:
        status = {"data_release": RELEASE, "status": "OK", "tag": "1.0", "version": 1}
        aside.write_text(json.dumps(status, indent=1) + "\n")
    gene_table, exons = _genes(seed, genes)
    patients = _patients(seed, cases)
    records = [_write_annotation(out, gene_table, exons)]
    for made in progress(_made_patients(patients, out, seed, gene_table, slide_px, workers), "patients", cases):
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


def _rng(seed: int, *keys: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, *keys]))


def _file_id(seed: int, name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{PROJECT} {seed} {name}"))


def _patients(seed: int, cases: int) -> list[Patient]:
    """Draw the patients; bit and look come from separate streams, so neither tells of the other."""
    look = _rng(seed, 1).standard_normal((cases, tissue.LOOK_FACTORS))
    bits = _rng(seed, 2).permutation(np.arange(cases) % 2)
    rng = _rng(seed, 3)
    sites, two_slides = rng.integers(len(SITES), size=cases), rng.random(cases) < 1 / 3
    return [
        Patient(i, f"TCGA-{SITES[sites[i]]}-{i + 1:04d}", int(bits[i]), look[i], 1 + int(two_slides[i]))
        for i in range(cases)
    ]


def _genes(seed: int, count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw the genes.

    Returns
    -------
    genes
        A row per gene, ordered by gene_id as in a STAR table: gene_id, gene_name, gene_type, chromosome, start, end,
        strand, length (bases of the exon union), log2_mean (of counts), module (`look_0` ... `switch` or null), sign.
    exons
        A row per exon: gene (row of `genes`), transcript (1 or 2), number, start, end; 1-based, both ends included.
    """
    rng = _rng(seed, 4)
    coding = rng.random(count) < CODING_SHARE
    genes = pd.DataFrame(
        {
            "gene_id": [f"ENSG{number:011d}" for number in 10_000 + np.arange(count) * 7],
            "gene_name": [f"SIM{number + 1}" for number in range(count)],
            "gene_type": np.where(coding, "protein_coding", rng.choice(OTHER_GENE_TYPES, count)),
            "strand": rng.choice(["+", "-"], count),
            "log2_mean": rng.uniform(3, 10, count),
        }
    )
    genes["gene_id"] += np.char.add(".", rng.integers(1, 20, count).astype(str))
    _plant_modules(rng, genes)
    exons = _place(rng, genes)
    _add_par_twins(genes)
    return genes, exons


def _plant_modules(rng: np.random.Generator, genes: pd.DataFrame) -> None:
    """Choose the genes of each module among the protein-coding ones, well expressed, with random signs."""
    sizes = {f"look_{factor}": LOOK_MODULE_GENES for factor in range(tissue.LOOK_FACTORS)} | {
        "switch": SWITCH_MODULE_GENES
    }
    free = np.flatnonzero(genes.gene_type == "protein_coding")[:-PAR_Y_GENES]
    chosen = rng.permutation(free)[: sum(sizes.values())]
    genes["module"] = pd.Series(None, index=genes.index, dtype=object)
    genes.loc[chosen, "module"] = np.repeat(list(sizes), list(sizes.values()))
    genes["sign"] = np.where(genes.module.notna(), rng.choice([-1, 1], len(genes)), 0).astype(np.int8)
    genes.loc[chosen, "log2_mean"] = rng.uniform(7, 11, len(chosen))


def _place(rng: np.random.Generator, genes: pd.DataFrame) -> pd.DataFrame:
    """Give every gene a place and exons; some have a second transcript, whose exons overlap those of the first."""
    count = len(genes)
    weights = np.array(list(CHROMOSOME_MB.values())) + 2
    chromosome = rng.choice(len(CHROMOSOME_MB), count, p=weights / weights.sum())
    genes["chromosome"] = np.array(list(CHROMOSOME_MB))[chromosome]
    mitochondrial = (genes.chromosome == "chrM").to_numpy()
    number = np.where(mitochondrial, 1, rng.integers(1, 9, count))
    gene = np.repeat(np.arange(count), number)
    length = np.exp(rng.normal(5.6, 0.5, len(gene))).astype(np.int64).clip(60, 3000)
    extension = np.where(rng.random(len(gene)) < 0.4, rng.integers(10, 200, len(gene)), 0)
    gap = rng.integers(300, 3000, len(gene))
    ends = np.cumsum(length + gap)
    first = np.cumsum(number) - number
    offset = ends - length - gap
    offset -= np.repeat(offset[first], number)
    span = offset[first + number - 1] + length[first + number - 1] + extension[first + number - 1]
    bases = (np.array(list(CHROMOSOME_MB.values()))[chromosome] * 1e6).astype(np.int64)
    genes["start"] = 1 + (rng.random(count) * (bases - span)).astype(np.int64)
    genes["end"] = genes.start + span - 1
    genes["length"] = np.bincount(gene, length + extension, minlength=count).astype(np.int64)
    start = genes.start.to_numpy()[gene] + offset
    order = np.arange(len(gene)) - np.repeat(first, number) + 1
    one = pd.DataFrame({"gene": gene, "transcript": 1, "number": order, "start": start, "end": start + length - 1})
    two = one.assign(transcript=2, start=start + length // 2, end=start + length + extension - 1)[extension > 0]
    two["number"] = two.groupby("gene").cumcount() + 1
    return pd.concat([one, two]).sort_values(["gene", "transcript", "number"], ignore_index=True)


def _add_par_twins(genes: pd.DataFrame) -> None:
    """Make the last coding genes the chrY twins of others: same id but for the suffix, same symbol, no counts.

    The GDC's own tables have 45 such rows; stripping a version from their ids collides.
    """
    coding = np.flatnonzero(genes.gene_type == "protein_coding")
    twins, originals = coding[-PAR_Y_GENES:], coding[:PAR_Y_GENES]
    genes.loc[twins, "gene_id"] = (genes.gene_id[originals] + "_PAR_Y").to_numpy()
    genes.loc[twins, "gene_name"] = genes.gene_name[originals].to_numpy()
    genes.loc[twins, "chromosome"] = "chrY"
    genes.loc[twins, "log2_mean"] = -np.inf


def _write_annotation(out: Path, genes: pd.DataFrame, exons: pd.DataFrame) -> dict:
    """Write the gene annotation as GENCODE writes GTF: genes in genomic order, each followed by its exons."""
    rank = {name: place for place, name in enumerate(CHROMOSOME_MB)}
    order = np.lexsort((genes.gene_id, genes.start, genes.chromosome.map(rank)))
    exons_of = np.split(np.arange(len(exons)), np.flatnonzero(np.diff(exons.gene)) + 1)
    exon_rows = list(exons.itertuples(index=False))
    lines = ["##description: simulated genes, GTF as GENCODE writes it", "##provider: MGI", "##format: gtf"]
    rows = list(genes.itertuples(index=False))
    for place in order:
        gene = rows[place]
        shared = f'gene_type "{gene.gene_type}"; gene_name "{gene.gene_name}";'
        where = f"{gene.chromosome}\tSIMULATED"
        lines.append(
            f'{where}\tgene\t{gene.start}\t{gene.end}\t.\t{gene.strand}\t.\tgene_id "{gene.gene_id}"; {shared}'
        )
        for exon in (exon_rows[number] for number in exons_of[place]):
            transcript = f'transcript_id "{gene.gene_id.replace("ENSG", "ENST")}-{exon.transcript}"'
            lines.append(
                f"{where}\texon\t{exon.start}\t{exon.end}\t.\t{gene.strand}\t.\t"
                f'gene_id "{gene.gene_id}"; {transcript}; {shared} exon_number {exon.number};'
            )
    path = out / "data" / ANNOTATION_FILE_ID / ANNOTATION_NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
    return _record(path, "Gene Annotation", "GTF", "Transcriptome Profiling", [])


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


def _made_patients(
    patients: list[Patient], out: Path, seed: int, genes: pd.DataFrame, slide_px: int, workers: int
) -> Iterator[list[dict]]:
    """Yield the records of each patient's files as they are written, in any order."""
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
        pixels, regions = tissue.draw_slide(_rng(seed, 6, patient.index, number), patient.look, slide_px)
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
    rng = _rng(seed, 5, patient.index)
    counts = _counts(rng, patient, genes)
    table = genes[["gene_id", "gene_name", "gene_type"]].copy()
    table["unstranded"] = counts
    table["stranded_first"] = rng.binomial(counts, 0.5)
    table["stranded_second"] = counts - table.stranded_first
    for name, values in normalised(counts, genes).items():
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


def _counts(rng: np.random.Generator, patient: Patient, genes: pd.DataFrame) -> np.ndarray:
    """Negative-binomial counts, int64 [genes]: Poisson of a Gamma, with the modules moved on the log scale.

    The unit of a module's effect is the standard deviation of a gene's log2 counts within a class, from the trigamma
    function of the Gamma's shape and, by the delta method, the Poisson's share.
    """
    mean = np.exp2(genes.log2_mean.to_numpy())
    within = np.sqrt(special.polygamma(1, 1 / DISPERSION) + 1 / np.maximum(mean, 1)) / np.log(2)
    driver = {f"look_{factor}": LOOK_LOADING * value for factor, value in enumerate(patient.look)}
    driver["switch"] = SWITCH_DIFFERENCE * (patient.bit - 0.5)
    effect = genes.module.map(driver).fillna(0).to_numpy(float) * genes.sign.to_numpy() * within
    library = np.exp(rng.normal(0, 0.3))
    gamma = rng.gamma(1 / DISPERSION, DISPERSION, len(genes))
    return rng.poisson(library * mean * np.exp2(effect) * gamma)


def normalised(counts: np.ndarray, genes: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns of a STAR table that follow from its counts, as the GDC defines them.

    Parameters
    ----------
    counts
        int [genes].
    genes
        With gene_type, chromosome and length (bases of the exon union).

    Returns
    -------
    dict
        float64 [genes] each: `tpm_unstranded`; `fpkm_unstranded`, per million of protein-coding counts;
        `fpkm_uq_unstranded`, per the upper quartile of autosomal protein-coding counts times their number.
    """
    coding = (genes.gene_type == "protein_coding").to_numpy()
    autosomal = coding & ~genes.chromosome.isin(["chrX", "chrY", "chrM"]).to_numpy()
    rate = counts / genes.length.to_numpy()
    expressed = counts[autosomal & (counts > 0)]
    return {
        "tpm_unstranded": rate / rate.sum() * 1e6,
        "fpkm_unstranded": rate * 1e9 / counts[coding].sum(),
        "fpkm_uq_unstranded": rate * 1e9 / (np.quantile(expressed, 0.75) * autosomal.sum()),
    }


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

"""Simulated genes and their counts: modules that follow the tissue's look, and one that follows the planted bit."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special

from mgi.simulate.tissue import LOOK_FACTORS

LOOK_MODULE_GENES = 100
SWITCH_MODULE_GENES = 200
LOOK_LOADING = 1.5
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


def make_rng(seed: int, *keys: int) -> np.random.Generator:
    """Return the generator of one stream of random numbers, which no other stream tells of."""
    return np.random.default_rng(np.random.SeedSequence([seed, *keys]))


def draw_genes(seed: int, count: int, switch_genes: int = SWITCH_MODULE_GENES) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw the genes of a cohort, `switch_genes` of which follow the planted bit.

    Returns
    -------
    genes
        A row per gene, ordered by gene_id as in a STAR table: gene_id, gene_name, gene_type, chromosome, start, end,
        strand, length (bases of the exon union), log2_mean (of counts), module (`look_0` ... `switch` or null), sign.
    exons
        A row per exon: gene (row of `genes`), transcript (1 or 2), number, start, end; 1-based, both ends included.
    """
    rng = make_rng(seed, 4)
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
    # The same genes and means whatever their number, so that cohorts of a dose-response differ in the effect alone.
    genes.loc[genes.index[genes.module == "switch"][switch_genes:], ["module", "sign"]] = [None, 0]
    exons = _place_genes(rng, genes)
    _add_par_twins(genes)
    return genes, exons


def _plant_modules(rng: np.random.Generator, genes: pd.DataFrame) -> None:
    """Choose the genes of each module among the protein-coding ones, well expressed, with random signs."""
    sizes = {f"look_{factor}": LOOK_MODULE_GENES for factor in range(LOOK_FACTORS)} | {"switch": SWITCH_MODULE_GENES}
    free = np.flatnonzero(genes.gene_type == "protein_coding")[:-PAR_Y_GENES]
    chosen = rng.permutation(free)[: sum(sizes.values())]
    genes["module"] = pd.Series(None, index=genes.index, dtype=object)
    genes.loc[chosen, "module"] = np.repeat(list(sizes), list(sizes.values()))
    genes["sign"] = np.where(genes.module.notna(), rng.choice([-1, 1], len(genes)), 0).astype(np.int8)
    genes.loc[chosen, "log2_mean"] = rng.uniform(7, 11, len(chosen))


def _place_genes(rng: np.random.Generator, genes: pd.DataFrame) -> pd.DataFrame:
    """Place every gene and return its exons; some have a second transcript, whose exons overlap those of the first."""
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


def write_annotation(path: Path, genes: pd.DataFrame, exons: pd.DataFrame) -> None:
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
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def draw_counts(
    rng: np.random.Generator, look: np.ndarray, bit: int, genes: pd.DataFrame, switch_sd: float
) -> np.ndarray:
    """Draw negative-binomial counts, int64 [genes]: Poisson of a Gamma, with the modules moved on the log scale.

    `switch_sd` is the difference between the two values of the bit.

    The unit of a module's effect is the standard deviation of a gene's log2 counts within a class, from the trigamma
    function of the Gamma's shape and, by the delta method, the Poisson's share.
    """
    mean = np.exp2(genes.log2_mean.to_numpy())
    within = np.sqrt(special.polygamma(1, 1 / DISPERSION) + 1 / np.maximum(mean, 1)) / np.log(2)
    driver = {f"look_{factor}": LOOK_LOADING * value for factor, value in enumerate(look)}
    driver["switch"] = switch_sd * (bit - 0.5)
    effect = genes.module.map(driver).fillna(0).to_numpy(float) * genes.sign.to_numpy() * within
    library = np.exp(rng.normal(0, 0.3))
    gamma = rng.gamma(1 / DISPERSION, DISPERSION, len(genes))
    return rng.poisson(library * mean * np.exp2(effect) * gamma)


def normalise(counts: np.ndarray, genes: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the columns of a STAR table that follow from its counts, as the GDC defines them.

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

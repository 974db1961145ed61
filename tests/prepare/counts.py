"""A small cohort of STAR tables with the annotation that they were counted with."""

import gzip
from pathlib import Path

import pandas as pd

from mgi.acquire.manifest import EXPRESSION
from mgi.config import StarCounts
from mgi.prepare.expression import build
from mgi.prepare.profiles import read_expression
from tests.prepare.conftest import write_manifest

# gene_id, name, type, chromosome, exons; neither in genomic order nor by name.
GENES = [
    ("ENSG00000000003.15", "LAST", "protein_coding", "chrX", [(500, 599), (550, 649)]),
    ("ENSG00000000005.6", "TENTH", "protein_coding", "chr10", [(100, 199)]),
    ("ENSG00000000419.13", "SECOND", "protein_coding", "chr2", [(10, 19), (30, 49), (15, 34)]),
    ("ENSG00000000457.14", "NOISE", "lncRNA", "chr2", [(1, 1000)]),
    ("ENSG00000182378.15", "PAR", "protein_coding", "chrX", [(5, 104)]),
    ("ENSG00000182378.15_PAR_Y", "PAR", "protein_coding", "chrY", [(5, 104)]),
]
LENGTHS = {"LAST": 150, "TENTH": 100, "SECOND": 40, "NOISE": 1000, "PAR": 100}
HEADER = (
    "gene_id gene_name gene_type unstranded stranded_first stranded_second "
    "tpm_unstranded fpkm_unstranded fpkm_uq_unstranded"
)


def star_text(counts, genes=GENES, model="GENCODE v36"):
    lines = [f"# gene-model: {model}", "\t".join(HEADER.split())]
    lines += [f"{name}\t\t\t9\t9\t9\t\t\t" for name in ("N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous")]
    lines += [f"{g[0]}\t{g[1]}\t{g[2]}\t{n}\t0\t0\t0.0\t0.0\t0.0" for g, n in zip(genes, counts, strict=True)]
    return "\n".join(lines) + "\n"


def gtf_text(genes=GENES):
    lines = ["##description: a test", "##format: gtf"]
    for gene_id, name, kind, chromosome, exons in genes:
        tags = f'gene_id "{gene_id}"; gene_type "{kind}"; gene_name "{name}";'
        start, end = min(exon[0] for exon in exons), max(exon[1] for exon in exons)
        lines += [f"{chromosome}\tHAVANA\t{kind}\t{start}\t{end}\t.\t+\t.\t{tags}" for kind in ("gene", "transcript")]
        lines += [f"{chromosome}\tHAVANA\texon\t{a}\t{b}\t.\t+\t.\t{tags} exon_number 1;" for a, b in exons]
    return "\n".join(lines) + "\n"


def places(genes=GENES, lengths=True):
    """The table of positions that says the same as the GTF."""
    frame = pd.DataFrame(
        {
            "gene_id": [gene[0] for gene in genes],
            "chromosome": [gene[3] for gene in genes],
            "start": [min(exon[0] for exon in gene[4]) for gene in genes],
        }
    )
    return frame.assign(length=[LENGTHS[gene[1]] for gene in genes]) if lengths else frame


class Cohort:
    """STAR tables, their manifest and annotation in a folder."""

    def __init__(self, folder: Path, counts: dict[str, list[int]], genes=GENES, model="GENCODE v36"):
        self.folder, self.output = folder, folder / "out" / "expression.parquet"
        self.annotation = folder / "genes.gtf.gz"
        self.annotation.write_bytes(gzip.compress(gtf_text(genes).encode(), 1))
        self.rows = []
        for case_id, values in counts.items():
            self.add(case_id, star_text(values, genes, model).encode())

    def add(self, case_id: str, content: bytes, suffix="tsv"):
        file_id = f"00000000-0000-4000-8000-{len(self.rows):012d}"
        row = {"file_id": file_id, "file_name": f"{case_id}.{suffix}", "data_type": EXPRESSION, "case_id": case_id}
        self.rows.append(row | {"aliquot": f"{case_id}-01A-11R-1", "size": None})
        self.path(case_id).parent.mkdir()
        self.path(case_id).write_bytes(content)

    def path(self, case_id: str) -> Path:
        row = next(row for row in self.rows if row["case_id"] == case_id)
        return self.folder / row["file_id"] / row["file_name"]

    def build(self, workers=1, h5ad=None, **options):
        manifest = write_manifest(self.folder / "manifest.parquet", self.rows)
        options = StarCounts.model_validate(
            {key: str(value) if key == "genes" else value for key, value in options.items()}
        )
        build([self.folder], [manifest], self.annotation, self.output, options, workers, h5ad)
        return read_expression(self.output)

    def written(self) -> list[bytes]:
        """The bytes of both tables."""
        return [self.output.with_name(name).read_bytes() for name in ("expression.parquet", "genes.parquet")]

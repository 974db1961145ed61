"""How fast `mgi expression build` is beside a plain pandas loop, what memory it takes, and how fast a case is read.

The tables are copies of the real STAR table of ../shared/data/gdc (or MGI_DATA), 60,660 genes, every count and value
perturbed. All files are read from the page cache, on every side.

Speed: a loop of pandas.read_csv over the tables, only the columns needed, with the same arithmetic (protein-coding
genes, TPM over them, log2, genomic order), written as a wide Parquet. In turn, in one run; the best of `--rounds`.
Memory: the peak of the command at several numbers of cases, which are links to the same tables.
Reading: one case at random from the largest of these, beside pandas on a wide Parquet of the same values.

    python benchmarks/expression.py                          # 1,000 tables; 2,000, 4,000 and 11,000 cases
    python benchmarks/expression.py --tables 20 --cases 40 80 --rounds 1
"""

import argparse
import gzip
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pcsv

from mgi.acquire.manifest import EXPRESSION
from mgi.config import StarCounts
from mgi.prepare.expression import build
from mgi.prepare.profiles import CaseReader, read_expression
from mgi.tables import MANIFEST_SCHEMA, write_table

ROOT = Path(__file__).resolve().parent.parent
HEAD_LINES = 6
READS, PEER_READS = 2000, 5


def find_real_table() -> Path:
    """Return the real STAR table, or end the run."""
    folder = Path(os.environ.get("MGI_DATA", ROOT.parent / "shared" / "data"))
    found = sorted((folder / "gdc").glob("*star_gene_counts.tsv.gz"))
    if not found:
        sys.exit(f"no real STAR table in {folder / 'gdc'}; set MGI_DATA")
    return found[0]


def make_tables(source: Path, folder: Path, count: int) -> list[Path]:
    """Write perturbed copies of the real table, in its own format."""
    folder.mkdir()
    head = b"".join(gzip.decompress(source.read_bytes()).splitlines(keepends=True)[:HEAD_LINES])
    table = pd.read_csv(source, sep="\t", skiprows=[0, 2, 3, 4, 5])
    names = [pa.array(table[name]) for name in table.columns[:3]]
    paths = []
    for seed in range(count):
        factor = np.exp(np.random.default_rng(seed).normal(0, 0.3, len(table)))
        counts = [pa.array(np.rint(table[name] * factor).astype(np.int64)) for name in table.columns[3:6]]
        rates = [
            pa.array(np.round(table[name] * factor, 4)).cast(pa.decimal128(18, 4), safe=False).cast(pa.string())
            for name in table.columns[6:]
        ]
        paths.append(folder / f"{seed}.tsv")
        with open(paths[-1], "wb") as handle:
            handle.write(head)
            options = pcsv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
            pcsv.write_csv(pa.table([*names, *counts, *rates], list(table.columns)), handle, options)
    return paths


def make_places(source: Path, path: Path) -> pd.DataFrame:
    """Write a table of positions with the lengths that the real table implies; chromosomes are dealt in turn."""
    table = pd.read_csv(source, sep="\t", skiprows=[0, 2, 3, 4, 5])
    total = table.unstranded[table.gene_type == "protein_coding"].sum()
    length = (table.unstranded * 1e9 / (table.fpkm_unstranded * total)).replace([0, np.inf], np.nan).fillna(1000)
    order = np.arange(len(table))
    chromosome = [f"chr{number}" for number in 1 + order % 22]
    frame = pd.DataFrame({"gene_id": table.gene_id, "chromosome": chromosome, "start": order, "length": length})
    frame.to_parquet(path)
    return frame.assign(gene_type=table.gene_type).set_index("gene_id")


def make_cohort(folder: Path, tables: list[Path], cases: int) -> Path:
    """Write `cases` cases as fetched, hard links to the tables, and return their manifest."""
    rows = []
    for number in range(cases):
        file_id = f"{number:08d}-2222-4333-8444-555555555555"
        (folder / file_id).mkdir(parents=True)
        os.link(tables[number % len(tables)], folder / file_id / "counts.tsv")
        rows.append(
            dict.fromkeys(MANIFEST_SCHEMA.names)
            | {"file_id": file_id, "file_name": "counts.tsv", "md5": "0" * 32, "data_type": EXPRESSION}
            | {"case_id": f"TCGA-{number // 10000:02d}-{number % 10000:04d}", "aliquot": None}
        )
    manifest = folder / "manifest.parquet"
    write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), manifest)
    return manifest


def measure_seconds(action, *arguments) -> float:
    """Run an action and return the seconds it took."""
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started


def build_with_mgi(folder: Path, manifest: Path, places: Path, out: Path, workers: int) -> None:
    build([folder], [manifest], places, out, StarCounts(), workers)


def build_with_pandas(folder: Path, genes: pd.DataFrame, out: Path) -> None:
    profiles = {}
    for path in sorted(folder.glob("*/counts.tsv")):
        table = pd.read_csv(path, sep="\t", skiprows=1, usecols=["gene_id", "gene_type", "unstranded"])
        table = table[table.gene_type == "protein_coding"].set_index("gene_id")
        rate = table.unstranded / genes.length
        profiles[path.parent.name] = np.log2(rate / rate.sum() * 1e6 + 1).astype(np.float32)
    pd.DataFrame(profiles).loc[genes.index].T.to_parquet(out)


def measure_peak(folder: Path, manifest: Path, places: Path, out: Path, workers: int) -> tuple[float, float]:
    """Run the command and return its peak memory, MB, and its seconds."""
    command = [sys.executable, "-m", "mgi", "expression", "build", folder, "--manifest", manifest]
    command += ["--annotation", places, "--workers", workers, "-o", out]
    started, peak = time.perf_counter(), 0
    child = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.DEVNULL)
    # What the kernel reports of a child that has ended counts the memory of the parent it was forked from.
    while child.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{child.pid}/status").read_text())
        peak = max(peak, int(found[1]) if found else 0)
        time.sleep(0.02)
    assert child.returncode == 0
    return peak / 1000, time.perf_counter() - started


def measure_milliseconds(read, case_ids: list[str]) -> np.ndarray:
    """Read each case and return the milliseconds that each took."""
    taken = []
    for case_id in case_ids:
        started = time.perf_counter()
        read(case_id)
        taken.append((time.perf_counter() - started) * 1000)
    return np.array(taken)


def compare_speed(folder: Path, source: Path, tables: list[Path], rounds: int, workers: int) -> None:
    manifest = make_cohort(folder / "cohort", tables, len(tables))
    genes = make_places(source, folder / "places.parquet")
    genes = genes[genes.gene_type == "protein_coding"].sort_values(["chromosome", "start"])
    genes = genes.iloc[np.lexsort((genes.start, genes.chromosome.str[3:].astype(int)))]
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(measure_seconds(build_with_pandas, folder / "cohort", genes, folder / "wide.parquet"))
        ours.append(
            measure_seconds(
                build_with_mgi, folder / "cohort", manifest, folder / "places.parquet", folder / "e.parquet", workers
            )
        )
    values, wide = read_expression(folder / "e.parquet")[0], pd.read_parquet(folder / "wide.parquet")
    assert np.allclose(values, wide, atol=1e-5), "the two differ"
    ours, theirs, count = min(ours), min(theirs), len(tables)
    print(f"{count} STAR tables of 60,660 genes: pandas loop {theirs:.1f} s ({count / theirs:.0f} a second), mgi with "
          f"{workers} workers {ours:.1f} s ({count / ours:.0f} a second), ratio {theirs / ours:.2f}")  # fmt: skip


def measure_memory(folder: Path, tables: list[Path], cases: list[int], workers: int) -> None:
    peaks = []
    for count in cases:
        manifest = make_cohort(folder / str(count), tables, count)
        places, out = folder / "places.parquet", folder / "large" / "expression.parquet"
        peak, taken = measure_peak(folder / str(count), manifest, places, out, workers)
        peaks.append(peak)
        print(f"{count} cases ({min(count, len(tables))} distinct tables): peak {peak:.0f} MB, {taken:.0f} s, "
              f"expression.parquet {out.stat().st_size / 1e6:.0f} MB")  # fmt: skip
    if len(cases) > 1:
        slope = np.polyfit(cases, peaks, 1)[0]
        print(f"slope {slope * 1000:.1f} MB per 1,000 cases")


def measure_reading(folder: Path) -> None:
    path = folder / "large" / "expression.parquet"
    values, _ = read_expression(path)
    values.to_parquet(folder / "wide.parquet")
    count, genes, case_ids = len(values), values.shape[1], values.index.tolist()
    del values
    chosen = np.random.default_rng(0).choice(case_ids, READS).tolist()
    opening = measure_seconds(CaseReader, path)
    reader = CaseReader(path)
    ours = measure_milliseconds(reader.__getitem__, chosen)
    theirs = measure_milliseconds(
        lambda case_id: pd.read_parquet(folder / "wide.parquet", filters=[("case_id", "==", case_id)]),
        chosen[:PEER_READS],
    )
    middle, slow = np.quantile(ours, [0.5, 0.99])
    print(f"one case at random of {count} x {genes}: mgi median {middle:.2f} ms, 99% {slow:.2f} ms, opening once "
          f"{opening * 1000:.0f} ms; pandas on a wide Parquet median {np.median(theirs):.0f} ms, "
          f"ratio {np.median(theirs) / middle:.0f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000, help="distinct tables, and those of the speed")
    parser.add_argument("--cases", type=int, nargs="+", default=[2000, 4000, 11000], help="cases of the memory")
    parser.add_argument("--workers", type=int, default=2, help="tables read at once")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of the speed; the best of each side counts")
    parser.add_argument("--folder", type=Path, help="where to work: 4.2 MB per table, and 0.2 MB per case")
    chosen = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder, source = Path(name), find_real_table()
        tables = make_tables(source, folder / "tables", chosen.tables)
        compare_speed(folder, source, tables, chosen.rounds, chosen.workers)
        measure_memory(folder, tables, chosen.cases, chosen.workers)
        measure_reading(folder)


if __name__ == "__main__":
    sys.exit(main())

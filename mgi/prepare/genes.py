"""Genes: how they are named, which are kept and in which order."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from mgi.delimited import read_content
from mgi.errors import ExpressionError
from mgi.files import require_file
from mgi.names import first_few

AUTOSOMES = [f"chr{number}" for number in range(1, 23)]
CHROMOSOMES = [*AUTOSOMES, "chrX", "chrY", "chrM"]
UNPLACED = "unplaced"
ENSEMBL = re.compile(r"^ENS\w*G[R\d]\d+")
VERSION = re.compile(r"^(ENS\w+)\.\d+")
MAX_LIST_BYTES = 64 << 20


def without_version(names: pd.Series) -> pd.Series:
    """Strip the version from Ensembl ids; a `_PAR_Y` after it stays, and symbols stay as they are."""
    return names.str.replace(VERSION, r"\1", regex=True)


def sort_by_position(genes: pd.DataFrame) -> pd.DataFrame:
    """Sort by chromosome (1 to 22, X, Y, M, then others by name, then the unplaced), start and gene_id."""
    others = sorted(set(genes["chromosome"]) - {*CHROMOSOMES, UNPLACED})
    rank = {name: k for k, name in enumerate([*CHROMOSOMES, *others, UNPLACED])}
    keyed = genes.assign(rank=genes["chromosome"].map(rank))
    return keyed.sort_values(["rank", "start", "gene_id"], kind="stable").drop(columns="rank")


def find_listed_genes(path: Path | str, genes: pd.DataFrame) -> np.ndarray:
    """Find the genes that a list names: one a line, an Ensembl id (of any version) or a symbol; `#` begins a comment.

    A symbol that several genes share names them all.

    Parameters
    ----------
    path
        The list, a text file.
    genes
        gene_id and gene_name of what there is.

    Returns
    -------
    bool ndarray, [genes]

    Raises
    ------
    MissingInputError
        If it is not there.
    ExpressionError
        If it is empty or no text, or names an unknown gene.
    """
    content = read_content(require_file(path, "list of genes"), "list of genes", ExpressionError, MAX_LIST_BYTES)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ExpressionError(f"{path} is no list of genes, a text file of one a line: {error}") from error
    names = pd.Series([line.partition("#")[0].strip() for line in lines], dtype=str)
    names = without_version(names[names != ""]).drop_duplicates()
    if names.empty:
        raise ExpressionError(f"{path} names no gene; write gene ids or symbols in it, one a line")
    gene_ids = without_version(genes["gene_id"])
    unknown = names[~(names.isin(gene_ids) | names.isin(genes["gene_name"]))].tolist()
    if unknown:
        raise ExpressionError(
            f"{path} names {len(unknown)} genes that the STAR tables do not have: {first_few(unknown)}; correct or "
            "remove them"
        )
    return (gene_ids.isin(names) | genes["gene_name"].isin(names)).to_numpy()

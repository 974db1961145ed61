"""Expression profiles by case: read, matched to the genes of a model, and replaced in the negative controls."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mgi.console import log
from mgi.errors import CheckpointError, CohortError
from mgi.names import first_few
from mgi.prepare.profiles import read_matrix
from mgi.tables import read_table

# ENSG00000228572.7_PAR_Y without its version is ENSG00000228572_PAR_Y, another gene than ENSG00000228572.
_VERSION = re.compile(r"^(ENS[A-Z]*G\d+)\.\d+")
# Random derangements of which the most neutral one is used.
DERANGEMENTS = 100


@dataclass
class Profiles:
    """Expression profiles by case, in the unit of the table.

    Attributes
    ----------
    values : Tensor, [cases, genes], float32
    row : dict of str to int
        The row of each case that has a profile.
    genes, names : list of str
        Gene ids and symbols in the order of `values`.
    unit : str or None
        Unit of the values, None where the table states none.
    """

    values: Tensor
    row: dict[str, int]
    genes: list[str]
    names: list[str] = field(default_factory=list)
    unit: str | None = None

    def of(self, cases: list[str]) -> tuple[Tensor, Tensor]:
        """Return the profiles [cases, genes] and whether each case has one [cases]; the others are zero."""
        rows = torch.tensor([self.row.get(case, -1) for case in cases])
        present = rows >= 0
        values = torch.zeros(len(cases), self.values.shape[1])
        values[present] = self.values[rows[present]]
        return values, present

    def digest(self, cases: list[str]) -> str:
        """Content hash of the profiles of these cases."""
        values, present = self.of(cases)
        return hashlib.sha256(values.numpy().tobytes() + present.numpy().tobytes()).hexdigest()

    def shuffle(
        self, groups: list[list[str]], seed: int, strata: Mapping[str, str] = MappingProxyType({})
    ) -> "Profiles":
        """Return profiles in which every case has another case's of its own group; a case alone in its group has none.

        The negative control: a gain that survives it is not a gain from genes. Of a hundred random derangements of a
        group it is the one after which own class and that of the profile are most nearly independent: where by chance
        most cases kept their class, or most lost it, a model could learn from that.

        Parameters
        ----------
        groups : list of list of str
            Cases that exchange profiles among themselves.
        seed : int
        strata : mapping of str to str
            The class of each case.
        """
        row: dict[str, int] = {}
        for index, group in enumerate(groups):
            paired = sorted(case for case in group if case in self.row)
            if len(paired) < 2:
                continue
            random = np.random.default_rng([seed, index])
            _, classes = np.unique([strata.get(case, "") for case in paired], return_inverse=True)
            orders = [random.permutation(len(paired)) for _ in range(DERANGEMENTS)]
            order = min(orders, key=lambda order: _dependence(classes[order], np.roll(classes[order], -1)))
            donors = zip(order, np.roll(order, -1), strict=True)
            row |= {paired[case]: self.row[paired[donor]] for case, donor in donors}
        return replace(self, row=row)

    def group_by_site(self, groups: list[list[str]], sites: Mapping[str, str]) -> list[list[str]]:
        """Divide groups of cases by site, for profiles that are exchanged within it.

        Raises
        ------
        CohortError
            If no two cases with a profile are of one group and site.
        """
        parts: dict[tuple[int, str], list[str]] = {}
        for index, group in enumerate(groups):
            for case in group:
                if case in self.row and case in sites:
                    parts.setdefault((index, sites[case]), []).append(case)
        shared = [part for part in parts.values() if len(part) > 1]
        if not shared:
            raise CohortError(
                "no two patients of one role and site have a profile, so none can be exchanged within a site: choose "
                "another control"
            )
        alone = {case for group in groups for case in group if case in self.row} - {
            case for part in shared for case in part
        }
        if alone:
            log.warning("%d patients share their site with no other of their role and are trained and tested without a "
                        "profile: %s", len(alone), first_few(alone))  # fmt: skip
        return shared

    def randomise(self, train: list[str], seed: int) -> "Profiles":
        """Return normal noise in place of every profile, of the mean and spread that each gene has in `train`.

        The other negative control: shuffled profiles are still profiles of patients, noise is of nobody.
        """
        values, present = self.of(train)
        mean, scale = values[present].mean(dim=0), values[present].std(dim=0, correction=0)
        noise = torch.empty_like(self.values)
        for case, row in self.row.items():
            # Seeded by the case, and not by its row, which depends on what else was read.
            random = np.random.default_rng([seed, *case.encode()])
            noise[row] = mean + scale * torch.from_numpy(random.standard_normal(len(mean), dtype=np.float32))
        return replace(self, values=noise)

    def average_by_site(self, train: list[str], sites: Mapping[str, str]) -> "Profiles":
        """Return the mean profile of a site's patients in `train` in place of every profile of that site.

        All that such a profile tells is the site: a gain that it brings is the scanner's or the laboratory's. A site
        without two such patients has the mean over all of `train`.

        Parameters
        ----------
        train : list of str
            The training patients.
        sites : mapping of str to str
            The site of each case that has one.

        Raises
        ------
        CohortError
            If fewer than two sites have two training patients with a profile.
        """
        members: dict[str, list[int]] = {}
        for case in train:
            if case in self.row and case in sites:
                members.setdefault(sites[case], []).append(self.row[case])
        paired = [self.row[case] for case in train if case in self.row]
        means = {site: self.values[rows].mean(dim=0) for site, rows in members.items() if len(rows) > 1}
        if len(means) < 2:
            raise CohortError(
                f"{len(means)} of {len(members)} sites have two training patients with a profile or more, and profiles "
                "of sites need two such sites: choose another control"
            )
        overall = self.values[paired].mean(dim=0)
        values = torch.empty_like(self.values)
        for case, row in self.row.items():
            values[row] = means.get(sites.get(case, ""), overall)
        return replace(self, values=values)

    def match(
        self, genes: list[str], names: list[str], means: Tensor, max_missing: float, where: Path | str
    ) -> "Profiles":
        """Return the profiles over a model's genes, in its order, with genes that the table lacks at `means`.

        A gene is found by its id, by its id without the version, or by its symbol, in this order; an id or symbol that
        the table has twice finds none.

        Parameters
        ----------
        genes, names : list of str
            Ids and symbols of the model's genes; `names` may be empty.
        means : Tensor, [genes]
            The training mean of each gene, in the unit of the table.
        max_missing : float
            Largest share of the model's genes that the table may lack.
        where : Path or str
            Folder of the model, for the messages.

        Raises
        ------
        CheckpointError
            If the table lacks a larger share.
        """
        if genes == self.genes:
            return self
        columns = _find_genes(genes, names, self.genes, self.names)
        missing = [gene for gene, column in zip(genes, columns, strict=True) if column is None]
        if len(missing) > max_missing * len(genes):
            raise CheckpointError(
                f"the expression table lacks {len(missing)} of the {len(genes)} genes of the model in {where} "
                f"({first_few(missing)}), more than {max_missing:.0%}: give a table that has them, or train again on "
                "this one"
            )
        if missing:
            log.warning(
                "the expression table lacks %d of the %d genes of the model in %s, which are set to their training "
                "mean: %s", len(missing), len(genes), where, first_few(missing),
            )  # fmt: skip
        values = means.float().cpu().repeat(len(self.values), 1)
        pairs = [(target, source) for target, source in enumerate(columns) if source is not None]
        if pairs:
            targets, sources = map(list, zip(*pairs, strict=True))
            values[:, targets] = self.values[:, sources]
        return replace(self, values=values, genes=list(genes), names=list(names))


def _dependence(own: np.ndarray, given: np.ndarray) -> float:
    """Return the chi-square statistic of two classifications [cases], int; 0 where they are independent."""
    counts = np.zeros((own.max() + 1, own.max() + 1))
    np.add.at(counts, (own, given), 1)
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / len(own)
    return float(((counts - expected) ** 2 / expected).sum().round(9))


def _find_genes(genes: list[str], names: list[str], table: list[str], table_names: list[str]) -> list[int | None]:
    """Return the column of the table for each gene, by id, id without version, then symbol; each column once."""
    columns: list[int | None] = [None] * len(genes)
    taken: set[int] = set()
    keys = [(genes, table), ([_unversioned(gene) for gene in genes], [_unversioned(gene) for gene in table])]
    if names and table_names:
        keys.append((names, table_names))
    for wanted, offered in keys:
        counts = Counter(offered)
        place = {key: column for column, key in enumerate(offered) if key and counts[key] == 1}
        once = Counter(wanted)
        for index, key in enumerate(wanted):
            column = place.get(key) if once[key] == 1 else None
            if columns[index] is None and column is not None and column not in taken:
                columns[index] = column
                taken.add(column)
    return columns


def _unversioned(gene: str) -> str:
    return _VERSION.sub(r"\1", gene)


# What a model without genes is given: no gene, and no case that has one.
NO_PROFILES = Profiles(torch.zeros(1, 0), {}, [])


def read_profiles(expression: Path, cases: Collection[str] | None = None) -> Profiles:
    """Read expression.parquet, whole or for some cases, and the gene ids of the genes.parquet beside it."""
    found, values = read_matrix(expression, cases)
    table = read_table(expression.parent / "genes.parquet", "table of genes", ["gene_id", "gene_name"])
    genes, names = (table[column].to_pylist() for column in ("gene_id", "gene_name"))
    unit = (pq.read_schema(expression).metadata or {}).get(b"unit", b"").decode() or None
    rows = {case: row for row, case in enumerate(found)}
    return Profiles(torch.from_numpy(values), rows, genes, [name or "" for name in names], unit)

"""The table of expression: a case's profile is one row, its values in the order of genes.parquet beside it.

`expression.parquet` has the columns of `EXPRESSION_SCHEMA`; `unit` and `scale_fitted` are in its metadata. Every case
is a row group of its own, neither compressed nor dictionary-encoded, so that one case is read without its neighbours.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mgi.delimited import PARSER_ERRORS, check_unique
from mgi.errors import ExpressionError, MissingPackageError
from mgi.files import atomic_write
from mgi.tables import GENES_SCHEMA, expression_schema, open_table, read_table, write_table


class CaseReader(Mapping[str, np.ndarray]):
    """The profiles of expression.parquet by case, each read from the disk when asked for.

    `reader[case_id]` is a float32 array [genes]; a case that has no profile is a KeyError, as in any mapping.

    Parameters
    ----------
    path
        expression.parquet.

    Attributes
    ----------
    genes : int
        Values of a profile.

    Raises
    ------
    MissingInputError
        If it is not there.
    ExpressionError
        If it is not such a table, is damaged, or a case is duplicate.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = open_table(path, "expression table", ["case_id", "values"], ExpressionError)
        kind = self._file.schema_arrow.field("values").type
        if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
            raise ExpressionError(
                f"{path}: its values are {kind}, not a fixed-size list of float; make it with `mgi expression`"
            )
        self.genes = kind.list_size
        self._path = Path(path)
        with self._refuse_damage():
            case_ids = self._file.read(["case_id"])["case_id"].to_pylist()
            sizes = (self._file.metadata.row_group(k).num_rows for k in range(self._file.num_row_groups))
            places = ((group, row) for group, size in enumerate(sizes) for row in range(size))
            self._places = dict(zip(case_ids, places, strict=True))
        check_unique(case_ids, "case", path, ExpressionError)

    def __getitem__(self, case_id: str) -> np.ndarray:
        """Read one case, float32 [genes]."""
        group, row = self._places[case_id]
        return self._read_group(group)[row]

    def __iter__(self) -> Iterator[str]:
        """List the case ids, in the order of the table."""
        return iter(self._places)

    def __len__(self) -> int:
        """Count the cases."""
        return len(self._places)

    def __contains__(self, case_id: object) -> bool:
        """Whether a case has a profile, without reading it."""
        return case_id in self._places

    def stack(self, case_ids: list[str]) -> np.ndarray:
        """Read several cases, float32 [cases, genes]; in the order of the table each row group is read once."""
        values = np.empty((len(case_ids), self.genes), np.float32)
        held, profiles = None, np.empty(0)
        for index, case_id in enumerate(case_ids):
            group, row = self._places[case_id]
            if group != held:
                held, profiles = group, self._read_group(group)
            values[index] = profiles[row]
        return values

    def _read_group(self, group: int) -> np.ndarray:
        with self._refuse_damage():
            column = self._file.read_row_group(group, columns=["values"], use_threads=False)["values"]
            return column.combine_chunks().flatten().to_numpy().reshape(-1, self.genes)

    @contextmanager
    def _refuse_damage(self) -> Iterator[None]:
        """Turn what pyarrow raises for a damaged file into `ExpressionError`."""
        try:
            yield
        except PARSER_ERRORS as error:
            raise ExpressionError(f"{self._path} is damaged: {' '.join(str(error).split())[:200]}") from error


def read_matrix(path: Path | str, cases: Collection[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Read case ids and values, float32 [cases, genes], of expression.parquet; of `cases` those that it has.

    Raises as `CaseReader` does.
    """
    reader = CaseReader(path)
    chosen = [case_id for case_id in reader if cases is None or case_id in cases]
    return chosen, reader.stack(chosen)


def read_expression(path: Path | str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read expression.parquet and the genes.parquet beside it.

    Returns
    -------
    values : float32 frame, index case_id, columns gene_id
    genes : frame of gene_id, gene_name, gene_type, chromosome, start, in the order of the columns

    Raises
    ------
    MissingInputError
        If either table is not there.
    ExpressionError
        If either is not such a table, or they disagree on the number of genes.
    """
    case_ids, values = read_matrix(path)
    genes_path = Path(path).with_name("genes.parquet")
    genes = read_table(genes_path, "table of genes", GENES_SCHEMA.names, ExpressionError).to_pandas()
    if len(genes) != values.shape[1]:
        raise ExpressionError(
            f"{path} has {values.shape[1]} genes but {genes_path} {len(genes)}; they are of different cohorts"
        )
    return pd.DataFrame(values, pd.Index(case_ids, name="case_id"), genes["gene_id"]), genes


@contextmanager
def profile_writer(
    output: Path | str, genes: pd.DataFrame, unit: str, scale_fitted: str = "none"
) -> Iterator[Callable[[str, str | None, np.ndarray], None]]:
    """Yield a function that adds a case: its id, its aliquot and its values; both tables appear when the block ends.

    Parameters
    ----------
    output
        expression.parquet; genes.parquet is written beside it.
    genes
        The columns of `GENES_SCHEMA`, in the order of the values.
    unit
        What the values are.
    scale_fitted
        "outside the folds" where the scale of the values was fitted on all cases, else "none".
    """
    schema = expression_schema(len(genes), {"unit": unit, "scale_fitted": scale_fitted})
    kind = schema.field("values").type
    with (
        atomic_write(output) as aside,
        pq.ParquetWriter(aside, schema, compression="none", use_dictionary=False, write_statistics=False) as writer,
    ):

        def add(case_id: str, aliquot: str | None, values: np.ndarray) -> None:
            profile = pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), type=kind)
            columns = [pa.array([case_id], pa.string()), pa.array([aliquot], pa.string()), profile]
            writer.write_table(pa.table(columns, schema=schema))

        yield add
        table = pa.Table.from_pandas(genes, GENES_SCHEMA, preserve_index=False)
        write_table(table.replace_schema_metadata(None), Path(output).with_name("genes.parquet"))


def require_anndata() -> None:
    """Raise `MissingPackageError` where .h5ad files cannot be read or written."""
    try:
        import anndata  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            ".h5ad files need the package anndata; install it with: pip install anndata"
        ) from error


def write_h5ad(expression: Path | str, output: Path | str) -> None:
    """Write expression.parquet and genes.parquet as AnnData: X float32 [cases, genes], the unit in uns.

    The cases are `obs` (with their aliquot), the genes `var`. The whole table is in memory once.

    Raises
    ------
    MissingPackageError
        If the package anndata is not installed.
    """
    require_anndata()
    import anndata

    values, genes = read_expression(expression)
    with open_table(expression, "expression table", ["aliquot"], ExpressionError) as file:
        metadata = file.schema_arrow.metadata
        aliquots = file.read(["aliquot"])["aliquot"].to_pylist()
    # anndata does not write the string columns of pandas 3.
    obs = pd.DataFrame({"aliquot": aliquots}, values.index).fillna("").astype(object)
    var = genes.set_index("gene_id").fillna({"gene_type": ""})
    var = var.astype(dict.fromkeys(("gene_name", "gene_type", "chromosome"), object))
    obs.index, var.index = obs.index.astype(object), var.index.astype(object)
    uns = {"unit": metadata[b"unit"].decode(), "scale_fitted": metadata[b"scale_fitted"].decode()}
    with atomic_write(output) as aside:
        anndata.AnnData(values.to_numpy(), obs, var, uns).write_h5ad(aside, convert_strings_to_categoricals=False)

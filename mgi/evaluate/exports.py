"""Embeddings in the files of other tools: HDF5 as TRIDENT and CLAM read it, and AnnData."""

from pathlib import Path

import numpy as np
import pandas as pd

from mgi.errors import ImageTableError
from mgi.files import atomic_write
from mgi.names import first_few
from mgi.prepare.hdf5 import describe_patches, write_patches
from mgi.prepare.profiles import require_anndata


def refuse_slices(frame: pd.DataFrame) -> None:
    """Raise `ImageTableError` where images are slices of MRI, which have no place in a plane."""
    slices = frame[frame["z"] != 0]
    if len(slices):
        raise ImageTableError(
            f"HDF5 of patches is for slides, and these images are slices of series: "
            f"{first_few(slices['source_id'].unique())}"
        )


def write_slides(folder: Path, frame: pd.DataFrame, vectors: np.ndarray, image_px: int | None) -> None:
    """Write the embeddings of each slide's images to FOLDER/{source_id}.h5, attributes as of `describe_patches`.

    Parameters
    ----------
    folder : Path
    frame : DataFrame, one row per image
        source_id, x, y, size and mpp.
    vectors : float32 array [images, dim]
    image_px : int or None
        Edge of an image, its own pixels; None of precomputed features.
    """
    for source_id, rows in frame.reset_index(drop=True).groupby("source_id"):
        # The table's mpp is float32: 0.37 and not 0.3700000047683716.
        size, mpp = (None if pd.isna(cell) else float(f"{cell:.6g}") for cell in rows[["size", "mpp"]].iloc[0])
        attributes = describe_patches(str(source_id), image_px, size, mpp)
        coords = rows[["x", "y"]].to_numpy(np.int64)
        write_patches(folder / f"{source_id}.h5", coords, attributes, vectors[rows.index.to_numpy()])


def write_anndata(table: pd.DataFrame, output: Path) -> None:
    """Write a table of embeddings as AnnData: the vectors X, all else `obs`.

    Raises
    ------
    MissingPackageError
        If the package anndata is not installed.
    """
    require_anndata()
    import anndata

    obs = table.drop(columns="vector")
    for name in ("case_id", "kind", "source_id"):
        # anndata writes neither missing text nor the string columns of pandas 3.
        obs[name] = obs[name].astype(object).where(obs[name].notna(), "")
    obs[["x", "y", "z"]] = obs[["x", "y", "z"]].astype(np.float64)
    vectors = np.stack(table["vector"].to_list())
    var = pd.DataFrame(index=pd.RangeIndex(vectors.shape[1]))
    for frame in (obs, var):
        frame.index = frame.index.astype(str).astype(object)
    with atomic_write(output) as aside:
        anndata.AnnData(vectors, obs, var).write_h5ad(aside, convert_strings_to_categoricals=False)

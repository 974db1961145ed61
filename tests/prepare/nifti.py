"""Small series of NIfTI."""

import nibabel as nib
import numpy as np


def write_nifti(folder, name, volumes, spacing=(1.0, 1.0, 3.0), code="LPS"):
    """Write volumes of [left, back, up] in any orientation."""
    folder.mkdir(parents=True, exist_ok=True)
    for key, volume in volumes.items():
        image = nib.Nifti1Image(
            volume.astype(np.float32 if volume.dtype.kind == "f" else np.int16),
            np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]),
        )
        wanted = nib.orientations.axcodes2ornt(code)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted)
        nib.save(image.as_reoriented(turn), folder / f"{name}_{key}.nii.gz")


def brain(width=20, height=24, depth=5):
    """A head whose tumour, of labels 1, 2 and 4, lies at the patient's left, at the back, in slice 3."""
    volume = np.zeros((width, height, depth), np.int16)
    volume[2:-2, 2:-2] = 500
    labels = np.zeros_like(volume)
    labels[12:16, 14:20, 3] = 2
    labels[12:14, 14:16, 3] = 4
    volumes = {key: volume + k * (volume > 0) for k, key in enumerate(("t1", "t1ce", "t2", "flair"))}
    volumes["flair"] = volumes["flair"] + labels * 100
    return volumes | {"seg": labels}

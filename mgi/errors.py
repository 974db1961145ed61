"""Every error that a user can meet: one sentence with the value that is wrong and the remedy.

The command line prints the sentence and exits with 1, as it does for errors of the operating system (disk full,
permission denied); anything else is a bug of ours.
"""

import errno

# What the operating system refuses only to writers.
WRITE_ERRORS = (errno.EEXIST, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENOTEMPTY, errno.ETXTBSY)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class MGIError(Exception):
    """The base class: catch this to catch every error that a user can correct."""


class ConfigError(MGIError):
    """The configuration names an unknown key or an impossible value."""


class InvalidNameError(MGIError):
    """A name holds characters that cannot be used, or is missing."""


class MissingInputError(MGIError):
    """A file or folder that a step reads is missing or not readable."""


class OutputError(MGIError):
    """An output cannot be written where it was asked for."""


class MissingPackageError(MGIError):
    """A package that a command needs is not installed."""


class ManifestError(MGIError):
    """A manifest lacks a column, repeats a file, or answers a query with nothing."""


class FetchError(MGIError):
    """A download failed, was cut short, or does not have the md5 that the manifest states."""


class ExpressionError(MGIError):
    """An expression table is truncated, of another kind, or disagrees with the others of its cohort."""


class SlideError(MGIError):
    """A slide cannot be opened, has no physical size, or holds no tissue."""


class MriError(MGIError):
    """An MRI series lacks a mask, is unreadable, or mixes shapes."""


class AnnotationError(MGIError):
    """An annotation is unreadable, or belongs to no slide of the cohort."""


class ImageTableError(MGIError):
    """A table of images lacks a column, or mixes sizes that one model cannot read."""


class CohortError(MGIError):
    """The cases cannot be paired or split as asked."""


class TrainingError(MGIError):
    """The loss or the gradient is NaN or infinite, or the state of training cannot be written."""


class TrainingInterruptedError(MGIError):
    """Training was told to end before it was complete; its state is saved."""


class CheckpointError(MGIError):
    """A checkpoint is incomplete, or was made for other genes, images or settings."""


def describe_os_error(error: OSError) -> str:
    """Return an error of the operating system as one sentence: `cannot write PATH: file exists`."""
    paths = " to ".join(str(path) for path in (error.filename, error.filename2) if path is not None)
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    action = "write" if error.errno in WRITE_ERRORS else "open"
    remedy = "; free some space and run the same command again" if error.errno in DISK_FULL else ""
    return f"cannot {action} {paths or 'a file'}: {reason[0].lower()}{reason[1:]}{remedy}"


def describe_memory_error(error: Exception) -> str | None:
    """Return that memory ran out as one sentence, of the machine or of a GPU; None of any other error."""
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "not enough memory of the GPU; lower batch_images, or in pre-training batch_patients or micro_batch, or "
            "use a GPU with more"
        )
    # How torch says it of a CPU.
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "not enough memory; run this on a machine with more, or ask the cluster for more"
    return None

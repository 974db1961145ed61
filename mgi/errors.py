"""Every error that a user can meet: one sentence with the offending value and the remedy.

The command line prints the sentence and exits with 1, as it does for what the system refuses (no space, no permission);
anything else is a defect of ours.
"""


class MGIError(Exception):
    """The family: catch this to catch every error that a user can put right."""


class ConfigError(MGIError):
    """The configuration names an unknown key or an impossible value."""


class InvalidNameError(MGIError):
    """A name holds characters that cannot be used, or is missing."""


class MissingInputError(MGIError):
    """A file or folder that a step reads is not there or is not readable."""


class MissingPackageError(MGIError):
    """An optional package that a command was asked to use is not installed."""


class ManifestError(MGIError):
    """A manifest lacks a column, repeats a file, or answers a query with nothing."""


class FetchError(MGIError):
    """A download failed, was cut short, or does not have the md5 that the manifest states."""


class ExpressionError(MGIError):
    """An expression table is truncated, foreign, or disagrees with the others of its cohort."""


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

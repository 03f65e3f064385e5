"""The run directory: which files a run leaves, when they count, and how they are read again.

``rundir`` adds parts, ``runstate`` says what counts, ``verify_run`` proves it, ``merging`` puts it into one file.
"""

__all__: list[str] = []

"""What runtimes report to their makers, which a production host must neither wait for nor send."""

import os

__all__ = ["decline_telemetry"]


def decline_telemetry() -> None:
    """Let an onnxruntime that is not loaded yet report nothing, unless the user has said otherwise.

    Since 1.32 it does so on Linux too, from a thread and with a database in the home directory, and complains where
    that is read-only.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

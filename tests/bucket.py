"""A server on this machine that speaks S3, with one bucket."""

import contextlib
import logging
import os
from collections.abc import Iterator
from unittest import mock

__all__ = ["serving"]


@contextlib.contextmanager
def serving(bucket: str) -> Iterator[None]:
    """Serve ``s3://bucket``, to this process and to those that it starts."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    known = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with mock.patch.dict(os.environ, known):
        import s3fs

        # Filesystems are kept for the life of a process, and those of another server would be taken for this one's.
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(bucket)
        yield
    server.stop()

"""Memory does not grow with the rows: measured in fresh processes, as Linux counts it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import sys
import numpy as np
from pathlib import Path
from deploykit.runs.epoch import finish_epoch
from deploykit.runs.merging import merge_run
from deploykit.runs.rundir import RunDirectory
from deploykit.sources import check_finite, open_source
from deploykit.runs.verify_run import verify_run
from deploykit.writers import Batch, make_writer
from tests.storage.helpers import make_job
from deploykit.tensors import TensorSpec
folder, data, rows = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
x = TensorSpec(name="x", dtype="float32", shape=("batch", 32))
y = TensorSpec(name="y", dtype="float32", shape=("batch", 16))
source = open_source(data, [x])
job = make_job(rows, 256, 25_600, outputs=(y,), write_interval="epoch")
writer = make_writer("npy", job.outputs)
directory = RunDirectory.prepare(folder / "run", job)
def batches(shard):
    for start, stop in job.plan.batches(shard):
        inputs = source.read(start, stop)
        check_finite(inputs, start)
        yield Batch(sample_ids=np.arange(start, stop), outputs={"y": inputs["x"][:, :16] * 2})
for shard in directory.missing():
    directory.write_part(shard, writer, batches(shard), rank=shard.index % 2, timings={})
finish_epoch(directory, writer)
verify_run(folder / "run")
for extension in ("npy", "npz"):
    merge_run(folder / "run", folder / f"all.{extension}")
source.close()
# Not ru_maxrss: a fresh process starts with that of the process that forked it.
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the /proc of Linux")
@pytest.mark.parametrize("kind", ["npy", "npz", "fortran"])
def test_peak_memory_is_flat(tmp_path: Path, kind: str) -> None:
    peaks_kb = []
    # Both are larger than the buffers of reading and merging, which a small run does not fill.
    for rows in (256_000, 1_024_000):
        folder = tmp_path / f"{rows}"
        folder.mkdir()
        array = np.random.default_rng(0).random((rows, 32), np.float32)
        path = folder / ("x.npz" if kind == "npz" else "x.npy")
        if kind == "npz":
            np.savez(path, x=array)
        else:
            np.save(path, np.asfortranarray(array) if kind == "fortran" else array)
        command = [sys.executable, "-c", CODE, str(folder), str(path), str(rows)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        peaks_kb.append(int(done.stdout))
        with np.load(folder / "all.npz") as merged:
            np.testing.assert_array_equal(merged["y"], array[:, :16] * 2)
    # The larger file has 98 MB more of inputs and 49 MB more of outputs.
    assert peaks_kb[1] < peaks_kb[0] * 1.1, peaks_kb

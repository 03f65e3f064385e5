"""The same rows through the same model and onto the disk by three tools, start-up included, at two sizes.

* ``deploykit run`` on two ranks with one thread, writing npy and Parquet;
* Lightning's ``Trainer.predict`` with two ranks (ddp, gloo) and a writer that saves after every batch;
* Ray Data ``map_batches`` with one ONNX Runtime session for each of two actors, writing Parquet.

All read rows of 64 float32 from one ``.npy`` file (mapped, or for Ray as tensors of 65,536 rows, without ids) and run
the MLP 64-256-256-10; each is a whole process, timed from its start to its exit, and they take turns.
"""

import shutil
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import deploykit, interleaved, ratio, save, spread, timed, workplace
from benchmarks.models import export_mlp

SIZES, BATCH, TRIALS = (200_000, 2_000_000), 1024, 3

LIGHTNING = f"""
import sys, numpy, torch, warnings
warnings.simplefilter("ignore")
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    def predict_step(self, batch, index):
        return self.net(batch[0])

class Writer(BasePredictionWriter):
    def write_on_batch_end(self, trainer, module, prediction, indices, batch, number, loader):
        torch.save({{"prediction": prediction, "indices": indices}}, f"out/{{trainer.global_rank}}-{{number}}.pt")

if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = torch.from_numpy(numpy.load(sys.argv[1], mmap_mode="c"))
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, callbacks=[Writer("batch")],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )
    trainer.predict(Net(), DataLoader(TensorDataset(rows), {BATCH}), return_predictions=False)
"""

RAY = f"""
import sys, numpy, os
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray, onnxruntime
ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=2 * 10**9)
ray.data.DataContext.get_current().enable_progress_bars = False

class Model:
    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    def __call__(self, batch):
        return {{"output": self.session.run(None, {{"input": batch["data"]}})[0]}}

rows = numpy.load(sys.argv[1], mmap_mode="r")
data = ray.data.from_numpy([numpy.array(rows[start:start + 65536]) for start in range(0, len(rows), 65536)])
actors = ray.data.ActorPoolStrategy(size=2)
found = data.map_batches(Model, batch_size={BATCH}, compute=actors, fn_constructor_args=[sys.argv[2]])
found.write_parquet("out")
"""


def fresh(place: Path) -> None:
    shutil.rmtree(place / "out", ignore_errors=True)
    (place / "out").mkdir()


def kit(place: Path, rows: Path, writer: str) -> float:
    shutil.rmtree(place / "out", ignore_errors=True)
    words = ["run", "model", "--data", rows, "-o", "out", "--runner", "onnx", "--devices", "cpu:2", "--threads", "1"]
    return timed(deploykit(*words, "--batch-size", str(BATCH), "--writer", writer, "-q"), place)


def script(place: Path, name: str, *words: str) -> float:
    fresh(place)
    return timed([sys.executable, str(place / name), *words], place)


def measure(place: Path, size: int) -> dict[str, object]:
    rows = place / f"rows-{size}.npy"
    np.save(rows, np.random.default_rng(0).standard_normal((size, 64), np.float32))
    model = str(place / "model" / "model.onnx")
    sides = {
        "deploykit_npy": lambda: kit(place, rows, "npy"),
        "deploykit_parquet": lambda: kit(place, rows, "parquet"),
        "lightning": lambda: script(place, "predict_lightning.py", str(rows)),
        "ray_data": lambda: script(place, "predict_ray.py", str(rows), model),
    }
    seconds = dict(zip(sides, interleaved(TRIALS, *sides.values(), warm_up=0), strict=True))
    return {
        "rows": size,
        "rows_per_s": {name: size / spread(values)["median"] for name, values in seconds.items()},
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "npy_over_lightning": ratio(seconds["lightning"], seconds["deploykit_npy"]),
        "parquet_over_ray_data": ratio(seconds["ray_data"], seconds["deploykit_parquet"]),
    }


def main() -> None:
    with workplace() as place:
        export_mlp(place / "model", width=256, depth=2)
        (place / "predict_lightning.py").write_text(LIGHTNING)
        (place / "predict_ray.py").write_text(RAY)
        save("rivals", batch_size=BATCH, cases=[measure(place, size) for size in SIZES])


if __name__ == "__main__":
    main()

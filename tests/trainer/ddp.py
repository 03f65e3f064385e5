"""Real Lightning on several CPU processes: started by torchrun with a list of cases in JSON."""

import json
import os
import sys
import warnings
from pathlib import Path

import torch.distributed as dist
from torch.utils.data import DataLoader

from tests.trainer.recording import DocsWriter, Plain, Recorder, predict
from tests.trainer.rows import Rows, make_two

warnings.simplefilter("ignore")

for case in json.loads(sys.argv[1]):
    folder = Path(case["folder"])
    loader = make_two() if case["two"] else DataLoader(Rows(case["rows"]), batch_size=case["batch"])
    options = {"strategy": "ddp", "devices": case["ranks"]}
    predict([Recorder(str(folder / "recorded"), case["interval"])], loader, **options)
    predict([DocsWriter(str(folder), "epoch")], loader, inner=Plain(bare=True), **options)

# Lightning leaves gloo's threads running, which now and then abort the interpreter on its way out. All files are there.
dist.barrier()
sys.stdout.flush()
os._exit(0)

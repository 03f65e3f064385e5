"""Real Lightning on several CPU processes: started by torchrun with a list of cases in JSON."""

import json
import sys
import warnings
from pathlib import Path

from torch.utils.data import DataLoader

from tests.trainer.recording import DocsWriter, Plain, Recorder, Rows, predict

warnings.simplefilter("ignore")

for case in json.loads(sys.argv[1]):
    folder = Path(case["folder"])
    loader = DataLoader(Rows(case["rows"]), batch_size=case["batch"])
    options = {"strategy": "ddp", "devices": case["ranks"]}
    predict([Recorder(str(folder / "recorded"), case["interval"])], loader, **options)
    predict([DocsWriter(str(folder), "epoch")], loader, inner=Plain(bare=True), **options)

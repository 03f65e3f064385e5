"""The TorchScript format of the table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deploykit.manifest import FormatRecord
from exporters.capture.graph import quiet
from exporters.checks.reference import to_numpy
from exporters.formats import Arrays, Client
from exporters.subject import Subject
from exporters.torchscript import write_torchscript

__all__ = ["TorchScriptFormat"]


class TorchScriptFormat:
    """``model.torchscript.pt``, checked with ``torch.jit.load`` on the CPU."""

    def write(self, subject: Subject, inputs: Sequence[str], directory: Path) -> FormatRecord:
        outputs = [output.name for output in subject.outputs]
        write_torchscript(subject.captured, directory / "model.torchscript.pt", inputs, outputs, subject.controls)
        return FormatRecord(file="model.torchscript.pt", minimum_runtime="torch 2.11")

    def open_client(self, file: Path, outputs: Sequence[str]) -> Client:
        with quiet():
            module = torch.jit.load(str(file))  # type: ignore[no-untyped-call]

        def client(inputs: Arrays, controls: dict[str, Any]) -> Arrays:
            ids = {"sample_ids": torch.from_numpy(controls["sample_ids"])} if "sample_ids" in controls else {}
            tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
            with torch.inference_mode():
                found = module(**tensors, **(controls | ids))
            return {name: to_numpy(found[name]) for name in outputs}

        return client

"""The ONNX format of the table."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.devices import available_cores
from deploykit.errors import ExportError, MissingExtraError
from deploykit.manifest import FormatRecord
from deploykit.telemetry import decline_telemetry
from exporters.formats import Arrays, Client
from exporters.onnx_format.file import OPSET, require_packages, write_onnx
from exporters.onnx_format.minimum import oldest_runtime
from exporters.subject import Subject

__all__ = ["OnnxFormat"]


class OnnxFormat:
    """``model.onnx``, checked with onnxruntime on the CPU."""

    def __init__(self) -> None:
        require_packages()
        if importlib.util.find_spec("onnxruntime") is None:
            raise MissingExtraError("onnxruntime", "cpu", "checking the exported ONNX file")

    def write(self, subject: Subject, inputs: Sequence[str], directory: Path) -> FormatRecord:
        outputs = [output.name for output in subject.outputs]
        write_onnx(subject.captured, directory / "model.onnx", inputs, outputs, subject.controls)
        return FormatRecord(file="model.onnx", opset=OPSET, minimum_runtime=oldest_runtime(directory / "model.onnx"))

    def open_client(self, file: Path, outputs: Sequence[str]) -> Client:
        decline_telemetry()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = available_cores()  # By itself it counts cores that a container may not use.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # Idle threads take no core.
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(
                f"format onnx: onnxruntime cannot load the exported file: {error}; export with --format torchscript, "
                "or the module in another dtype, module.float(): onnxruntime computes little in bfloat16"
            ) from error

        def client(inputs: Arrays, controls: dict[str, Any]) -> Arrays:
            feeds = inputs | {name: np.asarray(value, np.int64) for name, value in controls.items()}
            return dict(zip(outputs, session.run(list(outputs), feeds), strict=True))

        return client

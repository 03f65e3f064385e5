"""The commands of docs/urls.md run as they are printed there, against a server that speaks S3."""

import re
import shlex
from pathlib import Path

import fsspec
import pytest

from tests.cli.conftest import Call

TEXT = (Path(__file__).parents[2] / "docs" / "urls.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("checkpoint")
def test_every_command_of_the_page(call: Call, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = re.findall(r"^((?:[A-Z_]+=\d+ )*)deploykit (.*)$", TEXT, re.MULTILINE)
    assert len(commands) == 10
    monkeypatch.setenv("RAY_ADDRESS", "local")
    filesystem, _ = fsspec.core.url_to_fs(bucket)
    filesystem.put_file("rows.npy", f"{bucket}/rows.npy")
    for variables, command in commands:
        for variable in variables.split():
            monkeypatch.setenv(*variable.split("="))
        assert call(*shlex.split(command.replace("s3://bucket", bucket))) == 0, command
    assert filesystem.exists(f"{bucket}/today.parquet")
    assert call("verify", f"{bucket}/runs/ranks") == 0
    assert call("verify", f"{bucket}/runs/ray") == 0
    assert not [path for path in Path.cwd().iterdir() if path.name.startswith("s3")]


def test_where_a_path_is_needed_the_command_says_so(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("demo", "-o", "s3://bucket/demo") == 2
    assert "s3://bucket/demo is a URL, and a path of this machine is needed here" in capsys.readouterr().err

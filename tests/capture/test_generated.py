import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_generated_code_is_current(tmp_path: Path) -> None:
    """service/rpc is what the committed .proto generates."""
    if find_spec("grpc_tools") is None and not os.environ.get("CI"):
        pytest.skip("pip install grpcio-tools")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-Iservice/rpc={ROOT / 'proto'}",
            f"--python_out={tmp_path}",
            f"--pyi_out={tmp_path}",
            f"--grpc_python_out={tmp_path}",
            str(ROOT / "proto/innerwatch/v1/innerwatch.proto"),
        ],
        check=True,
    )

    made = sorted(p for p in tmp_path.rglob("*.py*") if p.is_file())
    assert len(made) == 3
    for path in made:
        committed = ROOT / path.relative_to(tmp_path)
        assert committed.read_text() == path.read_text(), path.name

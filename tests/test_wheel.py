"""The wheel carries all that the main job needs: the suite runs from it in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target / "site")
    return target / "site"


def run(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_is_what_runs(unpacked_wheel: Path, tmp_path: Path) -> None:
    result = run(unpacked_wheel, tmp_path, "-c", "import walsh; print(walsh.__file__)")
    assert Path(result.stdout.strip()).is_relative_to(unpacked_wheel)


def test_conformance_runs_from_the_wheel_in_an_empty_folder(unpacked_wheel: Path, tmp_path: Path) -> None:
    result = run(unpacked_wheel, tmp_path, "-m", "walsh", "conformance", "--backend", "reference", "--op", "ternary")
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["SPEC.md", "INTERPRETING.md", "manifest.json", "policy.json"])
def test_the_wheel_carries_the_data_for_people_who_use_none_of_our_code(unpacked_wheel: Path, name: str) -> None:
    assert (unpacked_wheel / "walsh" / "_conformance" / name).is_file()


def test_the_configurations_travel_with_the_wheel(unpacked_wheel: Path, tmp_path: Path) -> None:
    carried = {path.name for path in (unpacked_wheel / "walsh" / "_configs").iterdir()}
    assert carried == {path.name for path in (ROOT / "configs").glob("*.toml")}
    result = run(unpacked_wheel, tmp_path, "-m", "walsh", "inspect", "laptop")
    assert result.returncode == 0, result.stderr

"""What people install: the built wheel, in an environment that has never seen the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import SkyReelsV2DiffusionForcingPipeline

from tests.calibrate.conftest import TINY_STUDY
from tests.scope_runtime.test_profile import make_profile
from tests.tiny import CALL, save_tiny_pipeline

ROOT = Path(__file__).parents[1]
PACKAGES = {"calibrate", "dashboard", "scope_runtime"}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
# Neither index nor network: what a build needs is installed.
OFFLINE = ["--no-deps", "--no-index", "--quiet"]


@dataclass(frozen=True)
class Installed:
    """An environment with nothing of its own but the wheel, and a folder far from the checkout.

    Attributes:
        environment: Of the interpreter.
        folder: Working directory, with a tiny pipeline in ``pipe``.
    """

    environment: Path
    folder: Path

    def run(self, program: str, *arguments: str) -> str:
        """Runs one of the environment's programs from the folder; returns what it prints."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(self.environment / "bin" / program), *arguments]
        done = subprocess.run(command, cwd=self.folder, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, code: str) -> Any:
        """Runs a program; returns what its last line says in JSON."""
        (self.folder / "program.py").write_text(code)
        return json.loads(self.run("python", "program.py").splitlines()[-1])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)], check=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run([*PIP, "--python", str(python), "install", *OFFLINE, str(wheel)], check=True)
    # torch, diffusers and the like come from the environment of the tests. A folder that a .pth file names is searched,
    # but its own .pth files are not read: the editable install of this project stays out of sight.
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    assert packages.is_dir()
    folders = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "others.pth").write_text("".join(f"{folder}\n" for folder in sorted(folders)))
    folder = tmp_path_factory.mktemp("elsewhere")
    save_tiny_pipeline(folder / "pipe")
    return Installed(environment, folder)


def test_the_wheel_is_small_and_holds_the_packages_that_people_install_whole(wheel: Path) -> None:
    assert wheel.stat().st_size < 520 * 1024  # code alone: four model families, a report
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in files} == PACKAGES
    there = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    assert files == {path.relative_to(ROOT).as_posix() for path in there if "__pycache__" not in path.parts}


def test_nothing_of_the_checkout_is_seen(installed: Installed) -> None:
    found = installed.python(f"""
import importlib.util, json
print(json.dumps({{name: importlib.util.find_spec(name).origin for name in {sorted(PACKAGES)}}}
                 | {{"studies": importlib.util.find_spec("studies") is not None}}))
""")
    assert not found.pop("studies")
    assert all(Path(file).is_relative_to(installed.environment) for file in found.values()), found


def test_the_production_snippet_of_the_readme_runs(installed: Installed) -> None:
    (snippet,) = re.findall(
        r"^## In production\n.*?^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S
    )
    (file,) = re.findall(r'"(profiles/[^"]+\.json)"', snippet)
    pipe = SkyReelsV2DiffusionForcingPipeline.from_pretrained(installed.folder / "pipe")
    make_profile(pipe).save(installed.folder / file)
    found = installed.python(f"""
import json
import numpy
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline

torch.set_num_threads(1)
pipe = SkyReelsV2DiffusionForcingPipeline.from_pretrained("pipe")
prompt, settings = "a red circle moving left", {CALL!r}

{snippet}
import scope_runtime
print(json.dumps([scope_runtime.__file__, bool(numpy.isfinite(video).all()), scope.report.modes]))
""")
    assert Path(found[0]).is_relative_to(installed.environment)
    assert found[1]
    assert any("P" in row for row in found[2]), "the profile was not applied"


def test_the_commands_run(installed: Installed) -> None:
    assert "doctor" in installed.run("scope-calibrate", "--help")
    (installed.folder / "study.yaml").write_text(yaml.safe_dump(TINY_STUDY))
    assert json.loads(installed.run("scope-calibrate", "doctor", "study.yaml", "--json"))["ok"]


def test_a_database_is_made_from_the_migrations_in_the_wheel(installed: Installed) -> None:
    assert installed.python("""
import json
from calibrate.store import Storage
storage = Storage("sqlite:///runs/new.db")
print(json.dumps(storage.has_table("scope_generation")))
""")

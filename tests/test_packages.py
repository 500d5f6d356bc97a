"""The four flat packages are this repository's own and can never be uploaded by accident."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("client", "common", "server", "simulation")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.mark.parametrize("name", PACKAGES)
def test_each_name_imports_from_this_repository(name, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-I", "-c", f"import {name}; print({name}.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    if "ModuleNotFoundError" in ran.stderr:
        pytest.skip("the project is not installed into this Python; `make install` does it")
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).resolve() == ROOT / name / "__init__.py"


def test_packages_are_listed_and_the_list_is_whole():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(PACKAGES)
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == set(PACKAGES)
    # A package inside a package would be left out of an installation in silence.
    assert not [path for name in PACKAGES for path in (ROOT / name).glob("*/__init__.py")]


def test_nobody_can_upload_it():
    assert "Private :: Do Not Upload" in PROJECT["project"]["classifiers"]


def test_tests_are_imported_by_path_and_warnings_are_errors():
    options = PROJECT["tool"]["pytest"]["ini_options"]
    assert "--import-mode=importlib" in options["addopts"]
    assert options["filterwarnings"][0] == "error"
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_test_files_have_names_of_their_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


def test_the_version_is_literal_and_torch_is_pinned():
    assert "dynamic" not in PROJECT["project"]
    assert "torch==2.13.0" in PROJECT["project"]["dependencies"]


@pytest.mark.parametrize("script", ["fedward-site", "fedward-server", "fedward-sim"])
def test_every_command_has_an_entry(script):
    module, _, function = PROJECT["project"]["scripts"][script].partition(":")
    path = ROOT / (module.replace(".", "/") + ".py")
    if script == "fedward-site" and not path.exists():
        pytest.skip("the site's command is not in this tree yet")
    assert f"def {function}(" in path.read_text("utf-8")

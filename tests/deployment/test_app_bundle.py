"""What `flwr build` bundles for the sites: code, whatever else lies in the folders."""

import io
import tomllib
import warnings
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files
from flwr.common.config import validate_config

import common

ROOT = Path(common.__file__).resolve().parents[1]
PRIVATE = ("client/notes.jsonl", "common/data.json", "server/roster.toml", "local/site-1/data/train.jsonl")


@pytest.fixture(scope="module")
def bundle():
    """The bundle's paths, of a checkout where records lie among the code."""
    files: dict[str, bytes | Path] = {"pyproject.toml": ROOT / "pyproject.toml"}
    for package in ("client", "common", "server", "simulation"):
        files |= {str(path.relative_to(ROOT)): path for path in (ROOT / package).glob("*.py")}
    files |= dict.fromkeys(PRIVATE, b"{}")
    with warnings.catch_warnings():
        # flwr 1.42 asks pathspec for a kind of pattern that pathspec 1.0 has renamed.
        warnings.simplefilter("ignore", DeprecationWarning)
        content, _ = build_fab_from_files(files)
    return zipfile.ZipFile(io.BytesIO(content)).namelist()


def test_only_code_is_bundled(bundle):
    assert not set(PRIVATE) & set(bundle)
    code = [name for name in bundle if name not in ("pyproject.toml", ".info/CONTENT")]
    assert code
    assert all(name.endswith(".py") and name.split("/")[0] in ("client", "common", "server") for name in code)


def test_the_apps_are_there(bundle):
    assert {"client/app.py", "server/app.py", "client/settings.py", "common/host.py"} <= set(bundle)


def test_flower_accepts_the_configuration():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    valid, errors, _ = validate_config(config, check_module=True, project_dir=ROOT)
    assert (valid, errors) == (True, [])
    keys = config["tool"]["flwr"]["app"]["config"]
    assert set(keys) == {"plan", "roster", "data", "out", "resume"}

"""The shipped module: built from these sources with these flags, small, of no imports, and silent about its maker."""

import tomllib
from pathlib import Path

import pytest

from walsh.engine import build, module
from walsh.errors import WalshError

pytest.importorskip("wasmtime")
from walsh.engine.host import compiled

ROOT = Path(__file__).parents[2]


def test_the_shipped_module_is_built_from_these_sources():
    record = module.read_record()
    assert record["source_sha256"] == build.source_digest(), "stale: run `python -m walsh.engine.build`"
    assert record["flags"] == " ".join(build.FLAGS)


def test_cargo_alone_uses_the_same_flags():
    config = tomllib.loads((ROOT / "canister" / ".cargo" / "config.toml").read_text())
    assert tuple(config["target"][build.TARGET]["rustflags"]) == build.FLAGS


def test_the_module_is_small_pure_and_anonymous():
    content = module.MODULE.read_bytes()
    assert len(content) < 700_000
    assert not compiled()[1].imports
    for trace in (str(ROOT).encode(), str(Path.home()).encode() + b"/", b".cargo/registry"):
        assert trace not in content


def test_a_missing_toolchain_is_explained(monkeypatch):
    monkeypatch.setattr(build, "_candidates", lambda: iter(()))
    with pytest.raises(WalshError, match="rustup target add"):
        build.find_toolchain()

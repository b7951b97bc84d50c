"""The cache on the command line: what it prints, what it removes, how it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer.testing

from featx._cli.cache import app, format_bytes, parse_size
from featx._errors import InputError
from featx._store.cache import EmbeddingCache
from featx._store.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

DIGESTS = [bytes([number]) * 16 for number in range(20)]


@pytest.fixture
def cache(private_cache: Path) -> EmbeddingCache:
    cache = EmbeddingCache(private_cache)
    for name in ("a1b2", "c3d4"):
        recipe = {"backbone": f"net_{name}", "layers": ["penultimate", "blocks.4"], "seed": 7}
        with Session([cache.table(name, 64, recipe)], DIGESTS) as session:
            claim = session.claim()
            assert claim is not None
            claim.store(0, DIGESTS, np.ones((20, 64), np.float32))
    return cache


def featx_cache(*arguments: object, answer: str | None = None) -> Result:
    return typer.testing.CliRunner().invoke(app, list(map(str, arguments)), input=answer)


def break_a_row(folder: Path) -> None:
    path = next(folder.rglob("*.arrow"))
    path.write_bytes(path.read_bytes().replace(np.ones(64, np.float32).tobytes(), bytes(256), 1))


def test_info_names_each_table_in_words(cache: EmbeddingCache) -> None:
    shown = featx_cache("info")
    assert shown.exit_code == 0
    assert "limit 20.0 GB" in shown.output
    for name in ("a1b2", "c3d4"):
        (line,) = [line for line in shown.output.splitlines() if line.startswith(name)]
        assert f"net_{name}, penultimate + blocks.4, 64 numbers each" in line
    elsewhere = featx_cache("info", "--cache", cache.folder / "absent")
    assert elsewhere.exit_code == 0
    assert "0.0 MB" in elsewhere.output


def test_json_says_the_same_to_programs(cache: EmbeddingCache) -> None:
    info = json.loads(featx_cache("info", "--json").output)
    assert info["folder"] == str(cache.folder)
    assert {table["recipe"]["seed"] for table in info["tables"]} == {7}
    assert json.loads(featx_cache("verify", "--json").output)["n_rows"] == 40
    assert json.loads(featx_cache("prune", "--max-size", "0", "--json").output)["n_shards"] == 2
    assert json.loads(featx_cache("clear", "--yes", "--json").output)["n_bytes_left"] == 0


def test_verify_exits_with_1_until_what_is_damaged_is_removed(cache: EmbeddingCache) -> None:
    assert featx_cache("verify").exit_code == 0
    break_a_row(cache.folder)
    found = featx_cache("verify")
    assert found.exit_code == 1
    assert "--repair removes it" in found.output
    repaired = featx_cache("verify", "--repair")
    assert repaired.exit_code == 1
    assert "has been removed" in repaired.output
    assert featx_cache("verify").exit_code == 0


def test_prune_keeps_a_size(cache: EmbeddingCache) -> None:
    n_bytes = cache.info().n_bytes
    pruned = featx_cache("prune", "--max-size", f"{n_bytes - 1}B", "--unused-days", 30)
    assert pruned.exit_code == 0
    assert "in 1 shards" in pruned.output
    assert len(cache.info().tables) == 1


def test_clear_asks_first(cache: EmbeddingCache) -> None:
    refused = featx_cache("clear", answer="n\n")
    assert refused.exit_code == 1
    assert str(cache.folder) in refused.output
    assert len(cache.info().tables) == 2
    assert featx_cache("clear", "--fingerprint", "a1b2", answer="y\n").exit_code == 0
    assert len(cache.info().tables) == 1
    assert featx_cache("clear", "--yes").exit_code == 0
    assert cache.info().tables == ()


def test_a_cache_that_is_turned_off_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATX_CACHE", "off")
    with pytest.raises(InputError, match="name a folder with --cache"):
        typer.testing.CliRunner().invoke(app, ["info"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("5GB", 5 * 10**9),
        ("1.5 gb", 15 * 10**8),
        ("300M", 3 * 10**8),
        ("17", 17),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "5 apples", "1e9", "5GiB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected one such as 5GB"):
        parse_size(text)


def test_sizes_are_printed_in_megabytes_and_gigabytes() -> None:
    assert format_bytes(999_949_999) == "999.9 MB"
    assert format_bytes(10**9) == "1.0 GB"

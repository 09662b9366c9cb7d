"""What a model costs in the canister: the parts add up, prices follow, and what cannot be measured is named."""

import json

import pytest

pytest.importorskip("wasmtime")
pytest.importorskip("icp_candid")
import models
from click.testing import CliRunner

from walsh.errors import FormatError, ParameterError, WalshError
from walsh.ic.cli import ic
from walsh.ic.cost import Report, measure
from walsh.ic.costs import default_costs
from walsh.ic.display import parts_of
from walsh.ic.parts import Layer, Token, choose_contexts, fit_points
from walsh.ic.recording import SAMPLING, install_model, open_canister, read_model
from walsh.ic.scenarios import MOST, send

MODULE = pytest.importorskip("walsh.ic.canister.module").MODULE
built = pytest.mark.skipif(not MODULE.exists(), reason="no canister: run `python -m walsh.ic.canister.build`")
CONTEXTS = (8, 28, 44)


@pytest.fixture(scope="module")
def report() -> Report:
    return measure(models.file(), CONTEXTS)


@built
def test_a_token_is_split_into_its_parts(report):
    assert [token.context for token in report.tokens] == list(CONTEXTS)
    near, same, far = report.tokens
    for token in report.tokens:
        assert len(token.layers) == models.SMALL["n_layer"]
        assert min(token.embedding, token.head, token.sampling) > 0
        for layer in token.layers:
            assert min(layer.linears, layer.mixer, layer.attention, layer.rest) > 0
            assert layer.total == layer.linears + layer.mixer + layer.attention + layer.rest
    # The engine reads its cache in tiles of 32: what does not attend costs the same anywhere.
    for one, other in zip(near.layers, far.layers, strict=True):
        assert (one.linears, one.mixer) == (other.linears, other.mixer)
        assert one.attention < other.attention
    assert same.total < far.total


@built
def test_the_engine_predicts_what_is_measured(report):
    for token in report.tokens:
        parts = [(name, seen, guess) for name, seen, guess in parts_of(token) if not name.startswith(" ")]
        assert [name for name, *_ in parts] == ["embedding", "layer 0", "layer 1", "head", "sampling"]
        whole = sum(guess for *_, guess in parts)
        assert token.total <= whole <= 2 * token.total
        assert sum(seen for _, seen, _ in parts) == token.total
        assert 0 < token.greedy < token.sampling
        # Parts of a layer are told apart a little differently by the estimate: whole layers are what it bounds.
        assert all(seen <= guess for _, seen, guess in parts)


@built
def test_prices_follow_from_counts(report):
    prices, many = default_costs().prices, report.generation
    assert many.instructions == many.code + many.system + many.pages
    assert many.messages == 1
    # generate(nat64, nat32, opt nat64): the header, four types and 8 + 4 + 1 + 8 bytes; see the method's name too.
    assert many.cycles > many.instructions + prices.update_message + prices.ingress_message
    ingress = many.cycles - many.instructions - prices.update_message - prices.ingress_message
    assert ingress % prices.ingress_byte == 0
    assert len("generate") + 21 <= ingress // prices.ingress_byte <= 80
    assert report.cycles_per_million == round(many.cycles * 1e6 / report.drawn)
    assert report.usd_per_million == pytest.approx(report.cycles_per_million / 1e12 * 1.366)
    assert report.seconds_per_token == pytest.approx(many.instructions / report.drawn / 2e9)
    assert report.fixed + report.drawn * report.marginal == pytest.approx(many.instructions, rel=0.01)
    assert report.fixed + report.tokens_per_update * report.marginal <= 0.95 * 40e9
    stored = report.heap_bytes + report.stable_bytes + report.module_bytes
    assert report.storage_cycles_per_month == pytest.approx(30 * 86400 * (stored / 2**30 * 317_500 + 10_000))
    assert report.marginal > report.tokens[0].total  # it has its share of pages and of bookkeeping too


@built
def test_what_was_measured_happens_again(report):
    client = open_canister()
    steps = install_model(client, models.file())
    assert steps == report.installing
    assert [step.name for step in steps] == ["upload", "commit", "load"]
    assert report.stable_bytes >= len(models.file())
    session = client.start(**SAMPLING)
    client.prefill(session, [(97 * i + 31) % 70 for i in range(report.context - report.drawn // 2)])
    send(client, "generate", session, 1, [])
    assert len(send(client, "generate", session, report.drawn, [MOST])["tokens"]) == report.drawn
    assert client.receipt.instructions == report.generation.instructions


@built
def test_the_command_prints_tables_and_json(tmp_path):
    path = tmp_path / "model.walsh"
    path.write_bytes(models.file())
    run = CliRunner()
    found = run.invoke(ic, ["cost", str(path), "--no-split", "--tokens", "4", "--json"], catch_exceptions=False)
    plain = json.loads(found.stdout)
    assert plain["drawn"] == 4
    assert plain["tokens"] == []
    assert plain["prices"]["version"] == default_costs().version
    assert "uploading" in found.stderr
    found = run.invoke(ic, ["cost", str(path), "--no-split", "--tokens", "4", "--quiet"], catch_exceptions=False)
    assert f"{plain['generation']['instructions']:,}" in found.stdout
    assert "USD per million tokens" in found.stdout
    assert found.stderr == ""


@built
def test_a_report_is_shown(report):
    from io import StringIO

    from rich.console import Console

    from walsh.ic.display import show_report

    out = StringIO()
    show_report(report, Console(file=out, width=140))
    for part in ("embedding", "layer 1", "mixer", "attention", "head", "sampling", "by context", "uploading"):
        assert part in out.getvalue()


def token(context: int, total: int) -> Token:
    return Token(context, total, [Layer(0, 0, 0, 0)], 0, 0, {})


def test_a_line_through_the_ends_predicts_the_rest():
    points = fit_points([token(8, 100), token(40, 130), token(96, 160)])  # 1, 2 and 4 tiles
    assert [point.fit for point in points] == [100, 120, 160]
    assert fit_points([]) == []
    assert fit_points([token(8, 100)])[0].fit == 100


def test_contexts_fit_the_model():
    assert choose_contexts((), 1024) == [8, 32, 64, 128, 256]
    assert choose_contexts((), 48) == [8, 32]
    assert choose_contexts((40, 5), 48) == [5, 40]
    for contexts, size in (((47,), 48), ((0,), 48), ((5, 6), 48), ((), 2)):
        with pytest.raises(ParameterError, match="expected"):
            choose_contexts(contexts, size)


def test_files_that_are_no_models_are_named(tmp_path):
    with pytest.raises(FormatError, match="No such file"):
        read_model(tmp_path / "none.walsh")
    for content in (b"", b"nonsense", models.file()[:-7]):
        path = tmp_path / "model.walsh"
        path.write_bytes(content)
        with pytest.raises(WalshError):
            read_model(path)

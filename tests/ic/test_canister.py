"""The canister in the replica in miniature: the interface, the tokens, who may do what, and what everyone may see."""

import hashlib
import re
from pathlib import Path

import pytest

pytest.importorskip("wasmtime")
pytest.importorskip("icp_candid")
import models
import wasmtime

from walsh.data.tokenizers import ByteTokenizer
from walsh.errors import FormatError
from walsh.ic.candid import Interface
from walsh.ic.canister import Client, RefusedError, build, deploy
from walsh.ic.canister import module as shipped
from walsh.ic.canister.client import encode_init, interface, module
from walsh.ic.errors import RejectError
from walsh.ic.replica import ANONYMOUS, Replica, user_id
from walsh.reference import strict

ROOT = Path(__file__).parents[2]
ALICE, BOB = user_id("alice"), user_id("bob")
WARM = {"temperature": 0.9, "top_k": 30, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 12345678901}


@pytest.fixture(scope="module")
def client() -> Client:
    client = deploy(models.file())
    client.call("set_limits", client.call("limits") | {"sessions_per_caller": 256})
    return client


def refused(kind: str, call, *arguments, **keywords):
    """What a refusal says."""
    with pytest.raises(RefusedError) as error:
        call(*arguments, **keywords)
    assert error.value.kind == kind, error.value
    return error.value.detail


# ---- the module and its interface


def test_the_shipped_module_is_built_from_these_sources():
    record = shipped.read_record()
    assert record["source_sha256"] == build.source_digest(), "stale: run `python -m walsh.ic.canister.build`"


def test_the_module_is_anonymous_and_imports_the_platform_only():
    content = shipped.MODULE.read_bytes()
    for trace in (str(ROOT).encode(), str(Path.home()).encode() + b"/", b".cargo/registry"):
        assert trace not in content
    imports = {item.module for item in wasmtime.Module(wasmtime.Engine(), content).imports}
    assert imports == {"ic0"}
    assert build.METADATA.encode() in content
    assert (ROOT / "canister/ic/walsh.did").read_bytes() in content


def test_a_module_that_is_not_the_one_of_its_record_is_refused(monkeypatch, tmp_path):
    changed = tmp_path / "walsh_canister.wasm"
    changed.write_bytes(shipped.MODULE.read_bytes() + b"\0")
    monkeypatch.setattr(shipped, "MODULE", changed)
    with pytest.raises(FormatError, match="build it again"):
        shipped.read_record()


def test_names_are_kept_beside_the_module(monkeypatch, tmp_path):
    content, named = module(), shipped.named_module()
    assert build.split_section(content, "name") == (content, b"")
    rest, names = build.split_section(named, "name")
    assert rest == content
    assert b"walsh_engine" in names
    assert shipped.with_names(content) == named
    assert shipped.with_names(content[:-1]) == content[:-1]
    other = tmp_path / "walsh_canister.names"
    other.write_bytes(b"others")
    monkeypatch.setattr(shipped, "NAMES", other)
    with pytest.raises(FormatError, match="build it again"):
        shipped.named_module()


def exported_interface() -> str:
    """What export_candid! left in the module."""
    engine = wasmtime.Engine()
    loaded = wasmtime.Module(engine, module())
    linker, store = wasmtime.Linker(engine), wasmtime.Store(engine)
    linker.define_unknown_imports_as_traps(loaded)
    exports = linker.instantiate(store, loaded).exports(store)
    memory = bytes(exports["memory"].read(store, 0))
    start = exports["get_candid_pointer"](store) & 0xFFFFFFFF
    memory = bytes(exports["memory"].read(store, 0))
    return memory[start : memory.index(b"\0", start)].decode()


def written_out(kind) -> tuple:
    """A type without names of types, so that two interfaces can be compared."""
    parts = vars(kind)
    if "_field_map" in parts:
        fields = ((number, written_out(field)) for number, (_, field) in parts["_field_map"].items())
        return type(kind).__name__, *sorted(fields)
    if "_type" in parts:
        inner = written_out(parts["_type"])
        return inner if type(kind).__name__ == "RecClass" else (type(kind).__name__, inner)
    return type(kind).__name__, *sorted((name, str(value)) for name, value in parts.items())


def structure(did: str) -> dict[str, tuple]:
    """Every method's arguments, results and modes, and what installation takes."""
    parsed = Interface(did)
    methods = {
        name: (*(tuple(written_out(t) for t in types) for types in (m.arguments, m.results)), m.modes)
        for name, m in parsed.methods.items()
    }
    return methods | {"": tuple(written_out(t) for t in parsed.init)}


def test_the_interface_is_what_the_code_exports():
    assert structure((ROOT / "canister/ic/walsh.did").read_text()) == structure(exported_interface())
    assert shipped.INTERFACE.read_bytes() == (ROOT / "canister/ic/walsh.did").read_bytes()


# ---- tokens


@pytest.mark.parametrize("name", models.CONFIGS)
@pytest.mark.parametrize("sampling", [{}, WARM], ids=["greedy", "warm"])
def test_tokens_are_those_of_the_engine_whatever_the_chunks(name, sampling):
    client, prompt = deploy(models.file(name)), list(range(1, 12))
    expected = models.expected(prompt, 12, name, **sampling)
    for budget in (None, 1, 5_000_000):
        session = client.start(**sampling)
        client.prefill(session, prompt, budget)
        assert client.generate(session, 12, budget).tokens == expected, budget
    session = client.start(**sampling)
    client.call("prefill", session, {"Tokens": prompt}, [1])
    client.call("submit", session, 12)
    assert client.wait(session).tokens == expected


def test_two_turns_are_one_long_conversation(client):
    session = client.start(**WARM)
    client.prefill(session, [1, 2, 3])
    first = client.generate(session, 5).tokens
    client.prefill(session, [7, 8])
    assert client.generate(session, 5).tokens == models.expected([1, 2, 3, *first, 7, 8], 5, **WARM)


def test_step_by_step_is_generation(client):
    prompt = [5, 6, 7]
    session = client.start(**WARM)
    tokens: list[int] = []
    progress = client.call("start_generation", session, {"Tokens": prompt}, 6)
    while "Finished" not in progress["state"]:
        if progress["pending"]:
            client.call("start_forward", session)
            while client.call("process_layers", session, 1)["layer"]:
                pass
        progress = client.call("finish_forward", session)
        tokens += progress["tokens"]
    assert progress["state"] == {"Finished": {"Length": None}}
    assert tokens == models.expected(prompt, 6, **WARM)
    session = client.start(**WARM)
    client.call("start_generation", session, {"Tokens": prompt}, 6)
    assert client.call("generate_n_tokens", session, 100)["tokens"] == tokens


def test_steps_out_of_order_are_refused_and_change_nothing(client):
    session = client.start()
    refused("WrongState", client.call, "start_forward", session)
    refused("WrongState", client.call, "process_layers", session, 1)
    refused("WrongState", client.call, "generate", session, 1, [])
    refused("WrongState", client.call, "logits", session)
    client.call("start_generation", session, {"Tokens": [1, 2]}, 3)
    client.call("start_forward", session)
    refused("WrongState", client.call, "start_forward", session)
    refused("WrongState", client.call, "finish_forward", session)
    while client.call("process_layers", session, 1)["layer"]:
        pass
    assert client.generate(session, 3).tokens == models.expected([1, 2], 3)


def test_logits_and_the_residual_stream_are_those_of_the_definition(client):
    import numpy as np

    config = models.SMALL | models.CONFIGS["octonion"]
    probes: dict = {}
    logits = strict.forward(np.array([[3, 1, 4]]), models.weights_of(config), config, probes=probes)
    session = client.start()
    for t, token in enumerate([3, 1, 4]):
        client.call("prefill", session, {"Tokens": [token]}, [])
        assert client.call("score", session, [1])["rows"] <= 70
        assert client.call("score", session, [])["rows"] == 70
        assert client.call("logits", session) == logits[0, t].tobytes()
    assert client.call("hidden", session) == probes["x.2"][0, 2].tobytes()


def test_a_batch_gives_everybody_the_tokens_they_get_alone(client):
    prompts = [[1 + i, *range(1, 2 + i)] for i in range(12)]
    sessions = [client.start(temperature=0.8, seed=i) for i in range(12)]
    before = {m["name"]: m["value"] for m in client.call("metrics")}
    for session, prompt in zip(sessions, prompts, strict=True):
        client.call("prefill", session, {"Tokens": prompt}, [1])
    for session in sessions:
        client.replica.submit(client.canister, "submit", interface().encode_arguments("submit", session, 9))
    client.replica.tick()
    for i, (session, prompt) in enumerate(zip(sessions, prompts, strict=True)):
        assert client.wait(session).tokens == models.expected(prompt, 9, temperature=0.8, seed=i)
        client.call("end", session)
    after = {m["name"]: m["value"] for m in client.call("metrics")}
    steps, members = (after[f"walsh_{k}"] - before[f"walsh_{k}"] for k in ("steps_total", "step_members_total"))
    assert members / steps > 3  # most steps were shared, prompts of different lengths notwithstanding


def test_work_can_be_done_by_hand(client):
    session = client.start()
    client.call("prefill", session, {"Tokens": [1, 2, 3]}, [])
    client.replica.submit(client.canister, "submit", interface().encode_arguments("submit", session, 4))
    client.replica.step()  # the submission, no round: the timer has not rung
    client.replica.submit(client.canister, "work", interface().encode_arguments("work", []))
    client.replica.step()
    assert client.call("poll", session, 1)["tokens"] == models.expected([1, 2, 3], 4)[1:]


@pytest.mark.parametrize("name", ["octonion", "hadamard", "hash", "dense untied", "float", "no layers"])
def test_the_quota_counts_what_a_session_takes(name):
    client = deploy(models.file(name))
    session = client.start(capacity=40)
    promised = client.call("health")["cache_bytes"]
    client.prefill(session, [(5 * i) % 70 for i in range(38)])
    client.generate(session, 2)
    [info] = client.call("sessions")
    config = models.SMALL | models.CONFIGS[name]
    heads, layers, d = config["n_head"], config["n_layer"], config["n_embd"] // config["n_head"]
    # By definition: float keys and values, or int8 ones in blocks of 32 tokens padded to 8 features, with a scale each.
    cached = 40 * heads * d * 8 if name == "float" else 64 * heads * (2 * -(-d // 8) * 8 + 8)
    assert layers * cached <= info["cache_bytes"] <= promised
    assert promised <= info["cache_bytes"] + 4 * 7 * config["n_embd"] + 8  # seven more columns while a prompt is read


# ---- text and stops


@pytest.fixture(scope="module")
def talker() -> Client:
    config = models.SMALL | {"algebra": "octonion", "vocab_size": 257, "block_size": 96}
    from walsh import codec

    return deploy(codec.dump(models.weights_of(config), config, tokenizer=ByteTokenizer()))


def test_text_goes_in_and_streams_out(talker):
    session = talker.start(temperature=1.0, seed=4)
    talker.prefill(session, "Zoë")
    answer = talker.generate(session, 40)
    whole = bytes(t for t in answer.tokens if t < 256).decode("utf-8", errors="replace")
    assert whole.startswith(answer.text)
    assert len(whole) - len(answer.text) <= 1  # an unfinished character waits
    pieces = [talker.call("poll", session, offset) for offset in range(40)]
    assert pieces[0]["text"] == answer.text
    assert pieces[39]["tokens"] == answer.tokens[39:]
    head = talker.call("poll", session, 0)["text"].removesuffix(pieces[7]["text"])
    assert head + pieces[7]["text"] == answer.text


def test_stop_tokens_and_stop_texts(talker):
    session = talker.start(temperature=1.0, seed=4)
    talker.prefill(session, "Zoë")
    free = talker.generate(session, 40)
    token = free.tokens[11]
    session = talker.start(temperature=1.0, seed=4, stop_tokens=[token])
    talker.prefill(session, "Zoë")
    stopped = talker.generate(session, 40)
    assert stopped.tokens == free.tokens[: free.tokens.index(token) + 1]
    assert stopped.finish == {"StopToken": token}
    stop = free.text[5:7]
    session = talker.start(temperature=1.0, seed=4, stop_texts=["no such text", stop])
    talker.prefill(session, "Zoë")
    stopped = talker.generate(session, 40)
    assert stopped.finish == {"StopText": stop}
    assert talker.call("poll", session, 0)["text"] == free.text[: free.text.index(stop)]
    assert talker.call("generate", session, 5, [])["tokens"] == []
    talker.prefill(session, "and")
    assert len(talker.generate(session, 1).tokens) == 1


def test_lengths_end_sessions(client):
    session = client.start(max_tokens=3)
    client.prefill(session, [1])
    answer = client.generate(session, 10)
    assert (len(answer.tokens), answer.finish) == (3, {"Length": None})
    refused("WrongState", client.call, "prefill", session, {"Tokens": [1]}, [])
    session = client.start(capacity=6)
    client.prefill(session, [1, 2, 3])
    answer = client.generate(session, 10)
    assert (len(answer.tokens), answer.finish) == (4, {"Capacity": None})  # the last drawn token need not be read
    assert answer.tokens == models.expected([1, 2, 3], 4)


# ---- rights, quotas, life of sessions


def test_roles_and_access():
    client = deploy(models.file(), access="AllowList")
    alice, bob = client.by(ALICE), client.by(BOB)
    assert refused("NotAuthorized", alice.start) == {"need": {"User": None}}
    assert refused("NotAuthorized", alice.call, "begin_upload", 10, bytes(32)) == {"need": {"Admin": None}}
    client.call("set_role", _principal(ALICE), [{"User": None}])
    alice.start()
    refused("NotAuthorized", alice.call, "set_role", _principal(BOB), [{"User": None}])
    client.call("set_role", _principal(ALICE), [{"Admin": None}])
    alice.call("set_role", _principal(BOB), [{"User": None}])
    bob.start()
    assert len(client.call("roles")) == 2
    client.call("set_role", _principal(BOB), [])
    refused("NotAuthorized", bob.start)
    client.call("set_access", {"Open": None})
    bob.start()
    refused("InvalidArgument", client.call, "set_role", _principal(ANONYMOUS), [{"Admin": None}])


def _principal(raw: bytes):
    from walsh.ic.replica import to_text

    return to_text(raw)


def test_nobody_sees_the_sessions_of_others(client):
    alice, bob = client.by(ALICE), client.by(BOB)
    session = alice.start()
    alice.prefill(session, [1, 2])
    for method, *arguments in (
        ("poll", 0),
        ("generate", 1, []),
        ("prefill", {"Tokens": [1]}, []),
        ("submit", 1),
        ("cancel",),
        ("end",),
        ("start_generation", {"Tokens": [1]}, 1),
        ("start_forward",),
        ("process_layers", 1),
        ("finish_forward",),
        ("generate_n_tokens", 1),
        ("score", []),
        ("logits",),
        ("hidden",),
    ):
        assert refused("NotFound", bob.call, method, session, *arguments) == {"session": session}
    assert [item["session"] for item in alice.call("sessions")] == [session]
    assert bob.call("sessions") == []
    assert alice.generate(session, 3).tokens == models.expected([1, 2], 3)
    alice.call("end", session)
    refused("NotFound", alice.call, "poll", session, 0)


def test_quotas_and_expiry():
    client = deploy(models.file())
    limits = client.call("limits") | {"sessions": 3, "sessions_per_caller": 2, "tokens_per_day": 10, "idle_seconds": 60}
    client.call("set_limits", limits)
    alice, bob = client.by(ALICE), client.by(BOB)
    first, second = alice.start(), alice.start()
    assert refused("QuotaExceeded", alice.start) == {"what": "sessions_per_caller", "used": 3, "limit": 2}
    bob.start()
    assert refused("QuotaExceeded", bob.start)["what"] == "sessions"
    alice.prefill(first, [1, 2])
    alice.prefill(second, [3])
    assert len(alice.call("generate", first, 8, [])["tokens"]) == 8
    assert len(alice.call("generate", second, 8, [])["tokens"]) == 2
    assert refused("QuotaExceeded", alice.call, "generate", second, 1, [])["what"] == "tokens_per_day"
    refused("QuotaExceeded", alice.call, "submit", second, 1)
    client.replica.advance(30)
    alice.call("cancel", second)  # a sign of life
    client.replica.advance(40)
    client.replica.tick(2)
    assert client.call("health")["sessions"] == 1
    client.replica.advance(86_400)
    fresh = alice.start()
    alice.prefill(fresh, [1, 2])
    assert alice.generate(fresh, 3).tokens == models.expected([1, 2], 3)  # another day
    client.call("set_limits", limits | {"cache_bytes": 20_000, "tokens_per_day": 1000})
    assert refused("QuotaExceeded", bob.start)["what"] == "cache_bytes"
    refused("InvalidArgument", client.call, "set_limits", limits | {"most_budget": 1 << 60})


def test_quota_met_in_the_background():
    client = deploy(models.file())
    client.call("set_limits", client.call("limits") | {"tokens_per_day": 5})
    session = client.start()
    client.prefill(session, [1, 2])
    client.call("submit", session, 3)
    client.wait(session)
    other = client.start()
    client.prefill(other, [1, 2])
    client.call("submit", other, 2)
    assert client.wait(other).tokens == models.expected([1, 2], 2)
    assert client.wait(session).tokens == models.expected([1, 2], 3)


def test_cancel_keeps_what_was_drawn(client):
    session = client.start()
    client.call("prefill", session, {"Tokens": [1, 2, 3]}, [])
    argument = interface().encode_arguments("submit", session, 20)
    client.replica.submit(client.canister, "submit", argument)
    client.replica.step()
    client.replica.submit(client.canister, "work", interface().encode_arguments("work", [1]))
    client.replica.step()
    client.replica.submit(client.canister, "cancel", interface().encode_arguments("cancel", session))
    client.replica.step()
    output = client.call("poll", session, 0)
    assert output["wanted"] == 0
    kept = list(output["tokens"])
    assert kept + client.generate(session, 20 - len(kept)).tokens == models.expected([1, 2, 3], 20)


# ---- models


def test_another_model_ends_the_sessions_of_the_one_before():
    client = deploy(models.file())
    session = client.start()
    client.prefill(session, [1, 2])
    drawn = client.generate(session, 2).tokens
    client.upload(models.file("hadamard"))
    client.load()
    output = client.call("poll", session, 0)
    assert output["state"] == {"Finished": {"ModelReplaced": None}}
    assert list(output["tokens"]) == drawn
    refused("WrongState", client.call, "prefill", session, {"Tokens": [1]}, [])
    session = client.start()
    client.prefill(session, [1, 2])
    assert client.generate(session, 3).tokens == models.expected([1, 2], 3, "hadamard")
    client.upload(models.file())  # back again, into the first bank
    client.load()
    session = client.start()
    client.prefill(session, [1, 2])
    assert client.generate(session, 3).tokens == models.expected([1, 2], 3)


def test_a_file_that_is_no_model_leaves_the_one_before():
    client = deploy(models.file())
    session = client.start()
    client.prefill(session, [1, 2])
    client.upload(b"this is not a model, but its digest is right")
    client.replica.tick(3)
    health = client.call("health")
    assert health["ready"]
    assert health["phase"]["Refused"]["kind"] == {"Format": None}
    assert client.generate(session, 3).tokens == models.expected([1, 2], 3)
    fresh = deploy()
    fresh.upload(b"nor is this")
    fresh.replica.tick(3)
    assert not fresh.call("health")["ready"]
    assert refused("ModelNotReady", fresh.start)["phase"].keys() == {"Refused"}


# ---- health, metrics, HTTP


def get(client: Client, url: str, method: str = "GET"):
    request = {"method": method, "url": url, "headers": [], "body": b""}
    answer = client.by(ANONYMOUS).call("http_request", request)
    return answer["status_code"], bytes(answer["body"]).decode(), dict(answer["headers"])


def test_http_and_metrics():
    client = deploy()
    assert get(client, "/health")[0] == 503
    client.upload(models.file())
    client.load()
    session = client.start()
    client.prefill(session, [1, 2])
    client.generate(session, 7)
    with pytest.raises(RefusedError):
        client.call("end", 99)
    status, body, headers = get(client, "/metrics?x=1")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    line = re.compile(r'(# (HELP|TYPE) walsh_\w+ .+|walsh_\w+(\{\w+="\w+"\})? [\d.e+]+)')
    assert all(line.fullmatch(text) for text in body.splitlines())
    assert "walsh_tokens_drawn_total 7" in body
    assert 'walsh_refused_total{error="not_found"} 1' in body
    status, body, _ = get(client, "/health")
    assert status == 200
    assert '"ready":true' in body
    assert get(client, "/")[0] == 200
    assert get(client, "/nothing")[0] == 404
    assert get(client, "/health", "POST")[0] == 405
    health = client.by(ANONYMOUS).call("health")
    [model] = health["model"]
    assert bytes(model["sha256"]) == hashlib.sha256(models.file()).digest()
    assert model["algebra"] == "octonion"


def test_installation_takes_access_and_limits():
    client = deploy(models.file())
    limits = client.call("limits")
    replica = Replica()
    given = Client(replica.install(module(), encode_init("AllowList", limits | {"batch": 3})))
    assert given.call("limits")["batch"] == 3
    with pytest.raises(RejectError, match=r"limits\.batch"):
        Replica().install(module(), encode_init("Open", limits | {"batch": 0}))
    with pytest.raises(RejectError):
        Replica().install(module(), b"DIDL nonsense")
    plain = Client(Replica().install(module()))
    assert plain.call("limits") == limits

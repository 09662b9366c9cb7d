"""Faults and abuse: messages that trap, upgrades at every moment, arguments that nobody should send.

After each of them the canister is what it was: the same heap and stable memory where a message was taken back, the
same answers where it refused, and the same tokens in the end.
"""

import dataclasses
import hashlib

import pytest

pytest.importorskip("wasmtime")
pytest.importorskip("icp_candid")
import models

from walsh.ic.canister import Client, RefusedError, deploy
from walsh.ic.canister.client import interface, module, unwrap
from walsh.ic.errors import PayloadError, RejectError, TrapError
from walsh.ic.replica import ANONYMOUS, EMPTY, Kind, Replica, user_id
from walsh.ic.replica.instance import Instance
from walsh.ic.scenarios import send

PROMPT = [1, 2, 3, 4, 5]
WARM = {"temperature": 0.9, "top_k": 40, "seed": 7}
EXPECTED = models.expected(PROMPT, 10, **WARM)


def limit(client: Client, instructions: int | None) -> None:
    """Give every later update so many instructions; None for what the platform gives."""
    replica, usual = client.replica, Replica().costs
    wanted = usual.limits.update_instructions if instructions is None else instructions
    replica.costs = dataclasses.replace(usual, limits=dataclasses.replace(usual.limits, update_instructions=wanted))


def fingerprint(client: Client) -> tuple:
    """Everything that a message could have changed, the balance aside."""
    pages, size = client.canister.stable.snapshot()
    heap = hashlib.sha256(client.canister.instance.heap.tobytes()).digest()
    return heap, size, hashlib.sha256(b"".join(pages[n] for n in sorted(pages))).digest(), client.canister.timer


def trap_everywhere(client: Client, method: str, *arguments) -> None:
    """Run a message with too few instructions, again and again with more: nothing may be left of it."""
    argument = interface().encode_arguments(method, *arguments)
    before, instructions, traps = fingerprint(client), 300_000, 0
    while True:
        limit(client, instructions)
        client.replica.submit(client.canister, method, argument, client.sender)
        client.replica.step()
        if client.receipt.error is None:
            break
        traps += 1
        assert "instructions" in client.receipt.error
        assert fingerprint(client) == before
        instructions = int(instructions * 1.7)
    limit(client, None)
    assert traps > 0


def test_a_trap_in_every_phase_leaves_nothing_behind():
    client, content = deploy(), models.file()
    digest = hashlib.sha256(content).digest()
    trap_everywhere(client, "begin_upload", len(content), digest)
    trap_everywhere(client, "put_chunk", 0, content)
    trap_everywhere(client, "commit_upload", [])
    trap_everywhere(client, "load", [])
    assert client.call("health")["ready"]
    trap_everywhere(client, "start_session", {name: [] for name in _PARAMETERS} | {k: [v] for k, v in WARM.items()})
    trap_everywhere(client, "prefill", 0, {"Tokens": PROMPT}, [])
    trap_everywhere(client, "generate", 0, 4, [])
    trap_everywhere(client, "submit", 0, 2)
    trap_everywhere(client, "work", [])
    trap_everywhere(client, "generate", 0, 4, [])
    assert list(client.call("poll", 0, 0)["tokens"]) == EXPECTED
    trap_everywhere(client, "cancel", 0)
    trap_everywhere(client, "end", 0)


def test_a_trap_in_every_step_and_right_leaves_nothing_behind():
    client, other = deploy(models.file()), hashlib.sha256(b"another").digest()
    session = client.start(**WARM)
    trap_everywhere(client, "start_generation", session, {"Tokens": PROMPT[:2]}, 3)
    for _ in PROMPT[:2]:
        trap_everywhere(client, "start_forward", session)
        trap_everywhere(client, "process_layers", session, 1)
        trap_everywhere(client, "process_layers", session, 9)
    trap_everywhere(client, "score", session, [])
    assert len(bytes(client.call("logits", session))) == 4 * models.SMALL["vocab_size"]
    trap_everywhere(client, "finish_forward", session)
    trap_everywhere(client, "generate_n_tokens", session, 2)
    output = client.call("poll", session, 0)
    assert list(output["tokens"]) == models.expected(PROMPT[:2], 3, **WARM)
    assert "Length" in output["state"]["Finished"]
    trap_everywhere(client, "set_role", user_id("somebody"), [{"User": None}])
    trap_everywhere(client, "set_access", {"AllowList": None})
    trap_everywhere(client, "set_limits", client.call("limits") | {"batch": 3})
    trap_everywhere(client, "begin_upload", 7, other)
    trap_everywhere(client, "abort_upload")
    assert client.call("limits")["batch"] == 3


class _BrokenError(TrapError):
    """What a test makes a system call end in."""


def break_at(instance: Instance, call: int, monkeypatch) -> None:
    """Let the running message trap at its system call of this number."""
    charge, left = instance.charge, call

    def broken(amount: int, reason: str) -> None:
        nonlocal left
        left -= reason.startswith("ic0.")
        if left < 0:
            raise _BrokenError(f"broken at {reason}")
        charge(amount, reason)

    monkeypatch.setattr(instance, "charge", broken)


def test_a_trap_at_any_system_call_leaves_nothing_behind(monkeypatch):
    """Not only where instructions end: every place at which a message leaves the code."""
    client = deploy(models.file())
    session = client.start(**WARM)
    client.prefill(session, PROMPT)
    calls = (("generate", session, 2, []), ("submit", session, 1), ("work", []), ("start_session", _PARAMETERS_ABSENT))
    for method, *arguments in (*calls, ("begin_upload", 9, bytes(32)), ("put_chunk", 0, b"x" * 9)):
        argument, before = encoded(method, *arguments), fingerprint(client)
        for traps in range(100):
            break_at(client.canister.instance, traps, monkeypatch)
            client.replica.submit(client.canister, method, argument, client.sender, inspect=False)
            client.replica.step()
            monkeypatch.undo()
            if client.receipt.error is None:
                break
            assert "broken" in client.receipt.error
            assert fingerprint(client) == before, (method, client.receipt.error)
        assert 5 < traps < 99
    assert list(client.call("poll", session, 0)["tokens"]) == EXPECTED[:3]


_PARAMETERS = [
    "temperature", "top_k", "top_p", "repetition_penalty", "seed", "max_tokens", "stop_tokens", "stop_texts",
    "stop_at_end", "capacity",
]  # fmt: skip  # a list of names


def test_a_budget_keeps_messages_within_few_instructions():
    client = deploy(models.file())
    session = client.start(**WARM)
    client.prefill(session, PROMPT)
    client.generate(session, 10)
    whole = client.receipt.instructions
    session = client.start(**WARM)
    client.prefill(session, PROMPT)
    limit(client, 2 * whole // 3)
    with pytest.raises(RejectError):
        client.call("generate", session, 10, [])
    assert client.generate(session, 10, budget=whole // 2).tokens == EXPECTED  # bounded, it fits


def test_background_work_that_runs_out_of_instructions_is_tried_with_less():
    client = deploy(models.file())
    first, second = client.start(**WARM), client.start(**WARM)
    for session in (first, second):
        client.prefill(session, PROMPT)
    limit(client, 5_000_000)
    for session in (first, second):
        client.call("submit", session, 10)
    failed = 0
    for _ in range(60):
        client.replica.advance(30)
        client.replica.tick()
        failed += sum(r.error is not None for r in client.replica.receipts if r.method == "background")
        client.replica.receipts.clear()
        client.replica.receipts.append(_idle(client))
        if not client.call("poll", second, 0)["wanted"] and not client.call("poll", first, 0)["wanted"]:
            break
    assert failed > 0
    assert list(client.call("poll", first, 0)["tokens"]) == EXPECTED
    assert list(client.call("poll", second, 0)["tokens"]) == EXPECTED


def _idle(client: Client):
    client.call("limits")
    return client.receipt


def test_background_work_that_always_traps_is_given_up():
    client = deploy(models.file())
    session, other = client.start(**WARM), client.start(**WARM)
    for each in (session, other):
        client.prefill(each, PROMPT)
    client.call("submit", session, 10)
    limit(client, 1_400_000)  # enough for the timer, too little for any step
    for _ in range(20):
        client.replica.advance(30)
        client.replica.tick()
    limit(client, None)
    client.replica.tick(2)
    output = client.call("poll", session, 0)
    assert output["wanted"] == 0
    assert client.generate(other, 10).tokens == EXPECTED


# ---- upgrades


def upgrade(client: Client) -> None:
    client.canister.upgrade(module())


def test_an_upgrade_in_the_middle_of_an_upload_and_of_its_verification():
    chunk = 28 * 65536
    content = bytes(range(256)) * (3 * chunk // 256) + b"the end"
    client = deploy()
    client.upload(content, first=2)
    upgrade(client)
    status = client.call("upload_status")
    assert list(status["missing"]) == [2, 3]
    assert bytes(status["sha256"]) == hashlib.sha256(content).digest()
    client.call("put_chunk", 3, content[3 * chunk :])
    upgrade(client)
    client.call("put_chunk", 2, content[2 * chunk : 3 * chunk])
    assert "Verifying" in client.call("commit_upload", [1])["phase"]
    upgrade(client)
    client.upload(content)
    client.replica.tick(3)
    assert "Refused" in client.call("health")["phase"]  # the digest was right, and the file is no model


def test_an_upgrade_while_a_model_is_loaded_and_while_it_answers():
    client = deploy()
    client.upload(models.file())
    upgrade(client)
    assert "Loading" in client.call("health")["phase"]
    client.load()
    session = client.start(**WARM)
    client.call("prefill", session, {"Tokens": PROMPT}, [1])
    upgrade(client)
    assert "ModelNotReady" in _refusal(client, "generate", session, 1, [])
    client.replica.tick(3)  # the timer loads it
    client.call("generate", session, 3, [1])
    for budget in (1, 1_500_000, 2_500_000):
        client.call("generate", session, 3, [budget])
        upgrade(client)
        client.load()
    client.call("submit", session, 10 - client.call("poll", session, 0)["produced"])
    upgrade(client)
    for _ in range(20):
        client.replica.tick()
    assert list(client.call("poll", session, 0)["tokens"]) == EXPECTED
    assert client.call("limits") == deploy().call("limits")


def read_total(client: Client) -> float:
    """Tokens that passed all blocks since the code was installed."""
    return next(item["value"] for item in client.call("metrics") if item["name"] == "walsh_tokens_read_total")


@pytest.mark.parametrize("name", ["octonion", "hash", "hadamard", "float"])
def test_an_upgrade_in_the_middle_of_a_token_computes_nothing_again(name):
    client = deploy(models.file(name))
    session, idle = client.start(seed=3, temperature=1.0), client.start(seed=4)
    prompt = [(3 * i) % 70 for i in range(30)]
    client.prefill(session, prompt)
    client.prefill(idle, prompt[:7])
    first = client.generate(session, 3).tokens
    client.call("start_forward", session)
    before = client.call("process_layers", session, 1)
    hidden = client.call("hidden", session)
    upgrade(client)
    assert client.load()["ready"]
    after = client.call("submit", session, 0)
    for field in ("state", "pending", "layer", "length", "produced", "wanted"):
        assert after[field] == before[field], field
    assert client.call("hidden", session) == hidden
    upgrade(client)  # once more, asleep
    client.load()
    assert client.generate(session, 5).tokens == models.expected(prompt, 8, name, seed=3, temperature=1.0)[3:]
    assert first == models.expected(prompt, 8, name, seed=3, temperature=1.0)[:3]
    assert read_total(client) == 5  # the token in work, and four that were drawn after it
    assert client.generate(idle, 2).tokens == models.expected(prompt[:7], 2, name, seed=4)
    assert read_total(client) == 6


def test_caches_that_do_not_fit_an_upgrade_are_computed_again():
    client = deploy(models.file())
    session = client.start(**WARM)
    client.prefill(session, PROMPT)
    client.generate(session, 4)
    client.canister.stable.limit = client.canister.stable.pages * 65536  # no page more
    upgrade(client)
    client.load()
    assert client.generate(session, 6).tokens == EXPECTED[4:]
    assert read_total(client) == len(PROMPT) + 9


def test_stable_memory_that_the_platform_refuses_is_a_typed_error():
    client = deploy(models.file())
    client.canister.stable.limit = client.canister.stable.pages * 65536
    before = visible(client)
    assert _refusal(client, "begin_upload", 100 << 20, bytes(32)) == "OutOfMemory"
    assert visible(client) == before


@pytest.mark.parametrize("name", ["octonion", "hadamard", "hash"])
def test_a_model_loads_over_many_messages(name):
    client, content = deploy(), models.file(name)
    client.upload(content)
    steps = 0
    limit(client, 6_000_000)
    while not (health := send(client, "load", [1]))["ready"]:
        phase = health["phase"]["Loading"]
        assert 0 < phase["done"] < phase["total"] == 2 * len(content)
        steps += 1
        if steps == 9:
            limit(client, None)
            upgrade(client)  # begins anew
            limit(client, 6_000_000)
            assert client.call("health")["phase"]["Loading"]["done"] == 0  # bytes are where they were
    assert (
        steps == 9 + 2 + 7 * models.SMALL["n_layer"] + 1
    )  # copied, parsed, with its tokenizer, and the tables at last
    limit(client, None)
    session = client.start(**WARM)
    client.prefill(session, PROMPT)
    assert client.generate(session, 10).tokens == models.expected(PROMPT, 10, name, **WARM)


def test_an_upgrade_that_fails_changes_nothing():
    client = deploy(models.file())
    session = client.start(**WARM)
    client.prefill(session, PROMPT)
    client.generate(session, 4)
    with pytest.raises(RejectError):
        client.canister.upgrade(module(), b"no Candid")
    assert client.generate(session, 6).tokens == EXPECTED[4:]


# ---- abuse


def raw(client: Client, method: str, argument: bytes, sender: bytes | None = None) -> str:
    """The kind of error that a message is refused with, whatever a node's inspection thinks of it."""
    ingress = client.replica.submit(client.canister, method, argument, sender, inspect=False)
    client.replica.step()
    value = interface().decode_results(method, ingress.result())[0]
    with pytest.raises(RefusedError) as error:
        unwrap(value)
    return error.value.kind


def _refusal(client: Client, method: str, *arguments) -> str:
    with pytest.raises(RefusedError) as error:
        client.call(method, *arguments)
    return error.value.kind


def visible(client: Client) -> tuple:
    """What the canister says of itself, the balance and counts of refusals aside."""
    health = client.call("health")
    del health["cycles"], health["heap_bytes"]
    upload = client.call("upload_status")
    del upload["instructions"]
    polled = [client.call("poll", item["session"], 0) for item in client.call("sessions")]
    return health, upload, polled, client.call("roles"), client.call("limits")


@pytest.fixture(scope="module")
def victim() -> Client:
    client = deploy(models.file())
    session = client.start(**WARM)
    client.prefill(session, PROMPT)
    client.generate(session, 3)
    client.upload(b"x" * (28 * 65536 + 5), first=1)
    return client


def encoded(method: str, *arguments) -> bytes:
    return interface().encode_arguments(method, *arguments)


MILLION = 1_000_000


@pytest.mark.parametrize(
    ("method", "arguments", "kind"),
    [
        ("begin_upload", (0, bytes(32)), "TooLarge"),
        ("begin_upload", (1 << 60, bytes(32)), "TooLarge"),
        ("begin_upload", (10, bytes(31)), "InvalidArgument"),
        ("put_chunk", (2, b"12345"), "InvalidArgument"),
        ("put_chunk", (1 << 31, b"12345"), "InvalidArgument"),
        ("put_chunk", (1, b"1234"), "InvalidArgument"),
        ("put_chunk", (1, b""), "InvalidArgument"),
        ("put_chunk", (0, b"x" * 1_900_000), "InvalidArgument"),
        ("commit_upload", ([],), "Incomplete"),
        ("prefill", (0, {"Text": "a" * MILLION}, []), "TooLarge"),
        ("prefill", (0, {"Tokens": [1] * (MILLION // 4)}, []), "TooLarge"),
        ("prefill", (0, {"Tokens": [1] * 100}, []), "Capacity"),
        ("prefill", (0, {"Tokens": [70]}, []), "InvalidArgument"),
        ("prefill", (0, {"Text": "no tokenizer"}, []), "Engine"),
        ("prefill", (1 << 63, {"Tokens": [1]}, []), "NotFound"),
        ("start_generation", (0, {"Tokens": []}, 3), "InvalidArgument"),
        ("process_layers", (0, 1), "WrongState"),
        ("background", (), "NotAuthorized"),
    ],
)
def test_what_nobody_should_send_is_refused_with_its_type(victim, method, arguments, kind):
    before = visible(victim)
    assert raw(victim, method, encoded(method, *arguments)) == kind
    assert visible(victim) == before


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
        {"capacity": 0},
        {"capacity": 49},
        {"stop_texts": [""]},
        {"stop_texts": ["x" * 1000]},
        {"stop_tokens": list(range(65))},
    ],
)
def test_parameters_outside_their_domain_are_refused(victim, parameters):
    before = visible(victim)
    with pytest.raises(RefusedError, match="InvalidArgument"):
        victim.start(**parameters)
    assert visible(victim) == before


@pytest.mark.parametrize(
    "argument",
    [
        b"",
        b"DIDL",
        b"nonsense",
        EMPTY,
        b"DIDL\x00\x01\x71\x05hello",
        b"DIDL\x00\x01\x78" + bytes(7),
        b"DIDL\x01\x6d\x7f\x01\x00\xff\xff\xff\xff\x0f",
        b"DIDL" + b"\xff" * 50,
        b"DIDL\x01\x6d\x00\x01\x00\x01",
    ],
)
def test_malformed_candid_is_a_typed_error(victim, argument):
    before = visible(victim)
    for method in ("prefill", "begin_upload", "generate", "set_role", "poll"):
        if interface().method(method).is_query:
            answer = interface().decode_results(method, victim.canister.query(method, argument))[0]
            assert "InvalidCandid" in answer["Err"]
        else:
            assert raw(victim, method, argument) == "InvalidCandid", method
    assert visible(victim) == before


def test_the_anonymous_caller_is_refused_everywhere(victim):
    before = visible(victim)
    for method, found in interface().methods.items():
        if method in ("health", "metrics", "limits", "http_request"):
            continue
        if found.is_query:
            answer = interface().decode_results(method, victim.canister.query(method, _some(method), ANONYMOUS))[0]
            assert "Anonymous" in answer["Err"]
        else:
            with pytest.raises(RejectError, match="accept"):  # a node that inspects
                victim.replica.submit(victim.canister, method, _some(method), ANONYMOUS)
            assert raw(victim, method, _some(method), ANONYMOUS) == "Anonymous"
    assert visible(victim) == before


_PARAMETERS_ABSENT = {name: [] for name in _PARAMETERS}
_SOME = {
    "put_chunk": (0, b""),
    "set_role": ("aaaaa-aa", []),
    "set_access": ({"Open": None},),
    "begin_upload": (10, bytes(32)),
    "start_generation": (0, {"Tokens": [1]}, 1),
    "prefill": (0, {"Tokens": [1]}, []),
    "start_session": ({name: [] for name in _PARAMETERS},),
    "generate": (0, 1, []),
    "score": (0, []),
    "predict": (0, _PARAMETERS_ABSENT),
}


def _some(method: str) -> bytes:
    """Arguments that would be right."""
    kinds = interface().method(method).arguments
    if method == "set_limits":
        return EMPTY
    if method in _SOME:
        return encoded(method, *_SOME[method])
    values = [[] if type(kind).__name__ == "OptClass" else 0 for kind in kinds]
    return encoded(method, *values)


def test_a_wrong_digest_drops_the_upload_and_nothing_else():
    client = deploy(models.file())
    session = client.start(**WARM)
    client.prefill(session, PROMPT)
    other = models.file("hadamard")
    client.call("begin_upload", len(other), hashlib.sha256(models.file()).digest())
    client.call("put_chunk", 0, other)
    with pytest.raises(RefusedError, match="HashMismatch") as error:
        client.call("commit_upload", [])
    assert bytes(error.value.detail["found"]) == hashlib.sha256(other).digest()
    assert client.call("upload_status")["phase"] == {"Idle": None}
    assert _refusal(client, "put_chunk", 0, other) == "WrongState"
    assert _refusal(client, "abort_upload") == "WrongState"
    assert client.generate(session, 10).tokens == EXPECTED


def test_chunks_may_come_in_any_order_and_twice():
    content = models.file() + bytes(2 * 28 * 65536)  # no model; only the way there matters
    client, size = deploy(), 28 * 65536
    client.call("begin_upload", len(content), hashlib.sha256(content).digest())
    for index in (2, 0, 2, 0):
        status = client.call("put_chunk", index, content[index * size : (index + 1) * size])
    assert list(status["missing"]) == [1]
    assert _refusal(client, "commit_upload", []) == "Incomplete"
    client.call("put_chunk", 1, content[size : 2 * size])
    assert client.call("commit_upload", [])["phase"] == {"Idle": None}
    client.call("begin_upload", 5, bytes(32))
    client.call("abort_upload")
    assert client.call("upload_status")["phase"] == {"Idle": None}


def test_a_payload_too_large_never_arrives(victim):
    with pytest.raises(PayloadError):
        victim.call("put_chunk", 0, bytes(2_100_000))
    with pytest.raises(RejectError, match="accept"):
        victim.call("prefill", 0, {"Text": "a" * 1_900_000}, [])
    with pytest.raises(RejectError, match="accept"):
        victim.call("background")


def test_another_canister_is_a_caller_like_any_other(victim):
    # Inspection does not see calls between canisters, so this is the guard's work alone.
    assert raw(victim, "generate", encoded("generate", 0, 1, []), user_id("a canister")) == "NotFound"
    assert all(r.kind is not Kind.INSPECT or r.error is None for r in victim.replica.receipts)

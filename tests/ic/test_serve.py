"""The canister behind HTTP on localhost, conversations, and receipts from a server that speaks as PocketIC does."""

import base64
import gzip
import json
import os
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

pytest.importorskip("wasmtime")
pytest.importorskip("icp_candid")
import models
from click.testing import CliRunner

from walsh.errors import BackendError, ParameterError
from walsh.ic import pocketic
from walsh.ic.candid import Interface, decode, encode
from walsh.ic.canister.client import interface
from walsh.ic.canister.module import MODULE
from walsh.ic.chat import Chat
from walsh.ic.cli import ic
from walsh.ic.errors import CandidError, RejectError
from walsh.ic.receipt import compare, obtain, on_server, predict
from walsh.ic.recording import install_model, open_canister
from walsh.ic.replica import ANONYMOUS, MANAGEMENT, Replica, to_text, user_id
from walsh.ic.replica.principal import canister_id
from walsh.ic.serve import Server, principal_of
from walsh.ic.textual import fitted, from_json, parse, to_json

built = pytest.mark.skipif(not MODULE.exists(), reason="no canister: run `python -m walsh.ic.canister.build`")


# ---- Candid as text


def test_textual_candid():
    text = r"""( // a comment
      variant { Text = "On\u{e9}\n\41" }, 5_000 : nat32, null, opt vec { 1; -2; }, true,
      record { a = false; "b c" = opt record { c = 1.5e1 : float32 } }, blob "\00\ffz", principal "aaaaa-aa", 0xff,
      variant { Idle } )"""
    first, *rest = parse(text)
    assert first == {"Text": "Oné\nA"}
    assert rest[:4] == [5000, [], [[1, -2]], True]
    assert rest[4] == {"a": False, "b c": [{"c": 15.0}]}
    assert rest[5:] == [b"\x00\xffz", "aaaaa-aa", 255, {"Idle": None}]
    assert parse("()") == []


@pytest.mark.parametrize(
    "text", ["", "(", "(1 2)", "(record { a 1 })", "(1) 2", '("\\q")', "(blob 1)", "(what)", "(@)"]
)
def test_text_that_is_no_candid_is_refused(text):
    with pytest.raises(CandidError, match="expected"):
        parse(text)


def test_values_are_completed_by_their_types():
    [params] = interface().method("start_session").arguments
    given = fitted(params, {"seed": 7, "temperature": [1]})
    assert (given["seed"], given["temperature"], given["top_k"]) == ([7], [1.0], [])
    with pytest.raises(CandidError, match="'sed': expected one of"):
        fitted(params, {"sed": 7})


def test_json_goes_both_ways():
    value = {"a": [b"\x00\xff", 1, None], "b": {"c": "d"}}
    assert from_json(json.loads(json.dumps(to_json(value)))) == value
    with pytest.raises(CandidError, match="base64"):
        from_json({"base64": "?"})


def test_callers():
    alice = user_id("alice")
    assert principal_of(None) is None
    assert principal_of("alice") == principal_of(to_text(alice)) == alice
    assert principal_of("anonymous") == principal_of("2vxsx-fae") == ANONYMOUS
    with pytest.raises(CandidError, match="no principal"):
        principal_of("what-is-this-1")


# ---- HTTP


@pytest.fixture(scope="module")
def url():
    client = open_canister()
    install_model(client, models.file())
    server = Server(client)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.url
    server.shutdown()
    thread.join()
    server.server_close()


def ask(url: str, path: str, body: object = None) -> tuple[int, str]:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(url + path, data, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def call(url: str, method: str, args: object = (), caller: str | None = "alice") -> dict:
    args = list(args) if isinstance(args, tuple) else args
    status, body = ask(url, "/call", {"method": method, "args": args, "caller": caller})
    assert status == 200, body
    return json.loads(body)


@built
def test_the_canister_answers_http(url):
    status, body = ask(url, "/health")
    assert (status, json.loads(body)["ready"]) == (200, True)
    status, body = ask(url, "/metrics")
    assert status == 200
    assert "walsh_ready 1" in body
    assert ask(url, "/nothing")[0] == 404


@built
def test_calls_over_http(url):
    started = call(url, "start_session", "(record { seed = opt 3 : nat64; temperature = opt 0.9 })")
    session = started["reply"][0]["Ok"]["session"]
    assert started["kind"] == "update"
    assert started["cycles"] > started["instructions"] > 0
    call(url, "prefill", [session, {"Tokens": [1, 2, 3]}, None])
    drawn = call(url, "generate", f"({session} : nat64, 6, null)")["reply"][0]["Ok"]["tokens"]
    assert drawn == models.expected([1, 2, 3], 6, temperature=0.9, seed=3)
    seen = call(url, "poll", [session, 0])
    assert (seen["kind"], seen["cycles"]) == ("query", 0)
    assert seen["reply"][0]["Ok"]["tokens"] == drawn
    assert call(url, "poll", [session, 0], "bob")["reply"] == [{"Err": {"NotFound": {"session": session}}}]


@built
def test_wrong_requests_are_named(url):
    assert ask(url, "/call", b"not JSON")[0] == 400
    assert ask(url, "/call", ["health"])[0] == 400
    assert ask(url, "/calls", {})[0] == 404
    status, body = ask(url, "/call", {"method": "helth"})
    assert status == 400
    assert "expected one of" in body
    assert ask(url, "/call", {"method": "health", "args": 7})[0] == 400
    assert ask(url, "/call", {"method": "generate", "args": "(1"})[0] == 400
    status, body = ask(url, "/call", {"method": "set_access", "args": [{"Open": None}], "caller": "anonymous"})
    assert status == 422
    assert json.loads(body)["reject_code"] == 4


# ---- conversations


@built
def test_a_conversation_and_what_it_costs():
    client = open_canister()
    install_model(client, models.file())
    talk, pieces = Chat(client, {"temperature": 0.9, "seed": 5}), []
    before = client.canister.cycles
    turn = talk.say([1, 2, 3], 20, pieces.append)
    assert turn.tokens == models.expected([1, 2, 3], 20, temperature=0.9, seed=5)
    assert (turn.messages, turn.rounds, turn.finish) == (3, 3, None)  # the prompt, 16 tokens and 4
    assert turn.cycles == before - client.canister.cycles
    assert turn.usd == pytest.approx(turn.cycles / 1e12 * 1.366)
    assert "20 tokens in 3 messages" in turn.line()
    assert talk.say([4], 100).finish == "Capacity"
    talk.restart()
    assert talk.say([1, 2, 3], 5).tokens == turn.tokens[:5]
    with pytest.raises(ParameterError, match="without an end token"):
        talk.say("", 1)


@built
def test_the_command_continues_ids(tmp_path):
    path = tmp_path / "model.walsh"
    path.write_bytes(models.file())
    given = ["chat", str(path), "--ids", "1,2,3", "--max-tokens", "5", "--temperature", "0", "--quiet"]
    found = CliRunner().invoke(ic, given, catch_exceptions=False)
    assert found.stdout.split() == [str(token) for token in models.expected([1, 2, 3], 5, top_k=50)]
    for wrong in ("1,x", "-1", "4294967296", "1,,2"):
        found = CliRunner().invoke(ic, ["chat", str(path), f"--ids={wrong}"])
        assert isinstance(found.exception, ParameterError), wrong


# ---- receipts

MANAGEMENT_METHODS = Interface(pocketic._MANAGEMENT)


class Pretender(BaseHTTPRequestHandler):
    """Speaks PocketIC's interface over the replica in miniature, busy at every third request."""

    def log_message(self, *args):
        pass

    def reply(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_DELETE(self):
        self.server.deleted = True
        self.reply(200, None)

    def do_GET(self):
        self.reply(200, self.server.done.pop(self.path))

    def do_POST(self):
        given = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests += 1
        if self.server.requests % 3 == 0:
            self.reply(409, {"state_label": "s", "op_id": "1"})
            return
        if self.path == "/instances":
            assert given["subnet_config_set"]["application"][0]["instruction_config"] == "Production"
            self.reply(201, {"Created": {"instance_id": 4, "topology": {}}})
        elif self.path.endswith("/submit_ingress_message"):
            self.server.given = given
            self.reply(200, {"Ok": {"effective_principal": given["effective_principal"], "message_id": "AAAA"}})
        elif self.path.endswith("/await_ingress_message"):
            assert given["message_id"] == "AAAA"
            answer = self.answer()
            if self.server.requests % 2:
                self.server.done["/read_graph/s/1"] = answer
                self.reply(202, {"state_label": "s", "op_id": "1"})
            else:
                self.reply(200, answer)

    def answer(self):
        given, server = self.server.given, self.server
        argument, sender = base64.b64decode(given["payload"]), base64.b64decode(given["sender"])
        if base64.b64decode(given["canister_id"]) != MANAGEMENT:
            try:
                reply = server.replica.update(server.canister, given["method"], argument, sender)
            except RejectError as error:
                return {"Err": {"reject_message": error.message}}
        else:
            method = MANAGEMENT_METHODS.method(given["method"])
            [found] = decode(method.arguments, argument)
            results = ({"canister_id": to_text(canister_id(1))},) if method.results else ()
            if method.name == "install_code":
                wasm = gzip.decompress(bytes(found["wasm_module"]))
                server.canister = server.replica.install(wasm, bytes(found["arg"]), sender=sender)
            reply = encode(method.results, results)
        return {"Ok": base64.b64encode(reply).decode()}


@pytest.fixture
def pretender():
    server = HTTPServer(("127.0.0.1", 0), Pretender)
    server.requests, server.done, server.replica, server.deleted = 0, {}, Replica(), False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@built
def test_a_receipt_from_a_server_that_speaks_the_interface(pretender):
    client, predicted = predict(models.file())
    counted = on_server(f"http://127.0.0.1:{pretender.server_address[1]}", models.file(), client.replica.user)
    lines = compare(predicted, counted)
    assert {"put_chunk", "commit_upload", "prefill", "generate", "process_layers"} <= {line.message for line in lines}
    assert [line for line in lines if not line.equal] == []
    assert pretender.deleted


def test_a_difference_is_seen():
    equal, other, missing = compare([("a", 5), ("b", 6), ("c", 7)], [("a", 5), ("b", 8)])
    assert equal.equal
    assert not other.equal
    assert (missing.message, missing.counted, missing.equal) == ("c", 0, False)


def test_answers_of_another_form_are_no_receipt():
    assert pocketic._bytes({"Reply": [1, 2]}) == pocketic._bytes("AQI=") == b"\1\2"
    with pytest.raises(RejectError, match="no"):
        pocketic._bytes({"Reject": "no"})
    with pytest.raises(RejectError, match="not so"):
        pocketic._ok({"Err": "not so"})
    for strange in (None, 5, {"Well": 1}):
        with pytest.raises(BackendError, match="PocketIC"):
            pocketic._bytes(pocketic._ok(strange) if strange != 5 else strange)
    with pytest.raises(BackendError, match="does not answer"):
        pocketic.PocketIc("http://127.0.0.1:9")


def test_without_a_server_there_is_no_receipt(monkeypatch, tmp_path):
    from walsh.cli import main

    monkeypatch.delenv(pocketic.VARIABLE, raising=False)
    model = tmp_path / "model.walsh"
    model.write_bytes(b"not looked at without a server")
    found = CliRunner().invoke(main, ["ic", "receipt", str(model)])
    assert found.exit_code == 4
    assert pocketic.HOW in found.output
    monkeypatch.setenv(pocketic.VARIABLE, str(tmp_path / "pocket-ic"))
    with pytest.raises(BackendError, match="no program that can be run"):
        pocketic.find_server()
    false = tmp_path / "pocket-ic"
    false.write_text("#!/bin/sh\nexit 3\n")
    false.chmod(0o700)
    with pytest.raises(BackendError, match="pocket-ic ended with exit code 3 before it named a port"):
        pocketic.Server(pocketic.find_server(), 5)


@built
@pytest.mark.skipif(not os.environ.get(pocketic.VARIABLE), reason=f"no receipt: {pocketic.HOW}")
def test_the_receipt_of_a_pocketic_server_is_as_predicted():
    assert [line for line in obtain(models.file()) if not line.equal] == []

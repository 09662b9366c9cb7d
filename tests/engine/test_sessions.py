"""Sessions: grouped, cut, forked, saved or drawn in one call, a sequence has the bits that it has alone."""

import numpy as np
import pytest
from small_models import MODELS, model, same

from walsh import codec
from walsh.errors import CapacityError, FormatError, NonFiniteError, ParameterError, ShapeError, WalshError

pytest.importorskip("wasmtime")
from walsh.engine import Engine, Sampling


def test_sessions_are_independent_and_can_be_cut_and_forked():
    weights, config = model("hadamard")
    engine = Engine(codec.dump(weights, config))
    first, second = engine.new_session(), engine.new_session(capacity=10)
    first.prefill([1, 2, 3])
    second.prefill([4, 5])
    expected = first.logits
    fork = first.fork()
    first.step(9)
    assert same(fork.logits, expected)
    assert len(fork) == 3
    assert len(first) == 4
    first.truncate(2)
    first.step(3)
    assert same(first.logits, expected)
    # Piece by piece, with another sequence in between, gives the same.
    third = engine.new_session()
    third.prefill([1, 2])
    third.begin(3)
    while not third.advance():
        second.step(7)
    third.head()
    assert same(third.logits, expected)


@pytest.mark.parametrize("layout", ["fast", "fast_packed", "pairs", "packed"])
@pytest.mark.parametrize("name", MODELS)
def test_any_grouping_of_sequences_gives_the_same_bits(name, layout):
    weights, config = model(name)
    engine = Engine(codec.dump(weights, config), layout)
    rng = np.random.default_rng(5)
    texts = [rng.integers(0, 70, length).tolist() for length in (5, 1, 13, 8, 2, 21)]
    expected = []
    for text in texts:
        alone = engine.new_session()
        for token in text:  # one token at a time, alone
            alone.step(token)
        expected.append(alone.logits)
    sessions = [engine.new_session() for _ in texts]
    rest = [list(text) for text in texts]
    while any(rest):
        # Some read one token, some several, some are in the middle of others, some are not there.
        for session, tokens in zip(sessions, rest, strict=True):
            count = int(rng.integers(0, 12))
            if tokens and count:
                session.begin_tokens(tokens[:count])
                del tokens[:count]
                if rng.integers(0, 2) and engine.n_layer > 1:
                    session.advance()
        busy = list(sessions)
        while busy:
            group = [session for session in busy if rng.integers(0, 3)] or busy
            done = dict(zip(map(id, group), engine.advance_batch(group), strict=True))
            assert all(isinstance(result, bool) for result in done.values())
            busy = [session for session in busy if not done.get(id(session), False)]
    for count in range(1, len(sessions) + 1):
        engine.head_batch(sessions[:count])
    for session, logits in zip(sessions, expected, strict=True):
        assert same(session.logits, logits)
    for session in sessions:
        session.truncate(len(session) - 1)
    engine.step_batch(sessions, [1] * len(sessions))
    for session, text in zip(sessions, texts, strict=True):
        alone = engine.new_session()
        alone.prefill([*text[:-1], 1])
        assert same(session.logits, alone.logits)
        alone.begin_head()
        engine.head_range_batch([alone], 3, 20)
        assert same(alone.logits, session.logits)


def test_one_failure_does_not_touch_the_others_of_a_batch():
    weights, config = model("octonion")
    weights["embedding.scale"] = weights["embedding.scale"].copy()
    weights["embedding.scale"][7] = 3e38  # a token whose norm overflows
    engine = Engine(codec.dump(weights, config))
    good, bad, other = (engine.new_session() for _ in range(3))
    good.prefill([1, 2])
    bad.prefill([3])
    other.prefill([4, 5, 6])
    for session, token in ((good, 3), (bad, 7), (other, 1)):
        session.begin(token)
    with pytest.raises(ParameterError, match="twice"):
        engine.advance_batch([good, good])
    with pytest.raises(ParameterError, match="model"):
        engine.advance_batch([good, Engine(codec.dump(weights, config), instance=engine.instance).new_session()])
    results = engine.advance_batch([good, bad, other])
    assert isinstance(results[1], NonFiniteError)
    assert results[0] is False
    assert results[2] is False
    assert len(bad) == 1
    while not all(engine.advance_batch([good, other])):
        pass
    engine.head_batch([good, other])
    for session, text in ((good, [1, 2, 3]), (other, [4, 5, 6, 1])):
        alone = engine.new_session()
        alone.prefill(text)
        assert same(session.logits, alone.logits)
    with pytest.raises(ShapeError, match="no token"):
        engine.head_batch([good, bad])


@pytest.mark.parametrize("name", ["octonion odd widths", "hadamard", "no layers"])
def test_saved_sequences_come_back_to_the_bit(name):
    weights, config = model(name)
    engine = Engine(codec.dump(weights, config))
    session = engine.new_session(45)
    session.prefill(np.arange(35))
    expected = session.logits
    back = engine.restore_session(session.save())
    with pytest.raises(ShapeError, match="no logits"):
        _ = back.logits
    back.head()
    assert same(back.logits, expected)
    back.begin_tokens([1, 2, 3])  # in the middle of three tokens, after one block
    back.advance()
    again = engine.restore_session(back.save())
    while not again.advance():
        pass
    again.head()
    session.prefill([1, 2, 3])
    assert same(again.logits, session.logits)
    with pytest.raises(CapacityError):
        again.prefill(np.arange(8))
    saved = session.save()
    for length in (0, 7, 8, 40, len(saved) - 1):
        with pytest.raises(FormatError):
            engine.restore_session(saved[:length])
    with pytest.raises(FormatError, match="too many"):
        engine.restore_session(saved + b"x")
    rng = np.random.default_rng(3)
    for _ in range(300):
        damaged = bytearray(saved)
        damaged[rng.integers(0, min(len(saved), 200))] = rng.integers(0, 256)
        try:
            loaded = engine.restore_session(bytes(damaged))
            loaded.prefill([1])
            loaded.close()
        except WalshError as error:
            assert "trapped" not in str(error)  # noqa: PT017 - refused or read, both are right
    other, their_config = model("octonion")
    theirs = Engine(codec.dump(other, their_config), instance=engine.instance)
    with pytest.raises(ShapeError, match="another model"):
        theirs.restore_session(saved)


def test_generation_in_one_call_is_generation_step_by_step():
    weights, config = model("octonion")
    engine = Engine(codec.dump(weights, config))
    sampling = Sampling(temperature=0.9, top_k=30, seed=3)
    one, other = engine.new_session(), engine.new_session()
    one.prefill([1, 2, 3])
    other.prefill([1, 2, 3])
    together = one.generate(20, sampling)
    for token in together:
        assert other.sample(sampling) == token
        other.step(int(token))
    stop = int(together[5])
    third = engine.new_session()
    third.prefill([1, 2, 3])
    assert third.generate(20, sampling, stop=stop).tolist() == together[: together.tolist().index(stop) + 1].tolist()

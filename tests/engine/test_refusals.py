"""Refusals: errors cross into Python with their class; a damaged file is refused where ``walsh.codec`` refuses it."""

import numpy as np
import pytest
from small_models import model

from walsh import codec
from walsh.codec.fuzz import damage
from walsh.data.tokenizers import ByteTokenizer, CharacterTokenizer
from walsh.errors import (
    CapacityError,
    FormatError,
    NonFiniteError,
    ParameterError,
    RangeError,
    ShapeError,
    StrictError,
    WalshError,
)

pytest.importorskip("wasmtime")
from walsh.engine import Engine, Sampling
from walsh.engine.host import Instance


def test_errors_cross_the_boundary_with_their_class():
    weights, config = model("octonion")
    engine = Engine(codec.dump(weights, config))
    session = engine.new_session(capacity=4)
    with pytest.raises(ShapeError, match="no logits"):
        session.sample()
    with pytest.raises(ShapeError, match="no logits"):
        _ = session.logits
    with pytest.raises(RangeError, match="id 70"):
        session.prefill([1, 70])
    assert len(session) == 0
    with pytest.raises(CapacityError):
        session.prefill([1, 2, 3, 4, 5])
    assert len(session) == 0
    session.prefill([1, 2, 3, 4])
    with pytest.raises(ParameterError, match="temperature"):
        session.sample(Sampling(temperature=-1.0))
    with pytest.raises(RangeError):
        session.truncate(5)
    with pytest.raises(ParameterError, match="no tokenizer"):
        engine.encode("x")
    session.close()
    with pytest.raises(ParameterError, match="does not exist"):
        session.step(1)
    engine.close()
    with pytest.raises(ParameterError, match="does not exist"):
        engine.new_session()
    with pytest.raises(ParameterError, match="layout"):
        Engine(b"", "beautiful")
    with pytest.raises(FormatError, match="at least 8"):
        Engine(b"")
    with pytest.raises(FormatError, match="No such file"):
        Engine("/nonexistent.walsh")


def _record_with(weights, config, **changes):
    """A file of which the reader, not the writer, must refuse the configuration or a weight."""
    content = codec.dump(weights, config)
    header = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + header].decode()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    return len(text.encode()).to_bytes(8, "little") + text.encode() + content[8 + header :]


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('\\"n_layer\\":2', '\\"n_layer\\":3', ParameterError),
        ('\\"n_layer\\":2', '\\"n_layer\\":1', ParameterError),
        ('\\"n_layer\\":2', '\\"n_layer\\":-2', ParameterError),
        ('\\"n_layer\\":2', '\\"n_layer\\":1e99', ParameterError),
        ('\\"vocab_size\\":70', '\\"vocab_size\\":71', ShapeError),
        ('\\"n_embd\\":64', '\\"n_embd\\":16777216', ParameterError),
        ('\\"n_layer\\":2', '\\"n_layer\\":2,\\"activation_bits\\":4', ParameterError),
        ('\\"n_layer\\":2', '\\"n_layer\\":2,\\"ternary\\":false', StrictError),
        ('\\"n_layer\\":2', '\\"n_layer\\":2,\\"more\\":1', ParameterError),
        ('\\"n_layer\\":2', '\\"n_layer\\":2,\\"n_layer\\":2', FormatError),
        ('\\"octonion\\"', '\\"onion\\"', ParameterError),
        ('\\"version\\":1', '\\"version\\":2', FormatError),
    ],
)
def test_wrong_files_are_refused(old, new, error):
    weights, config = model("octonion")
    with pytest.raises(error):
        Engine(_record_with(weights, config, change=(old, new)))


def test_non_finite_weights_are_refused():
    weights, config = model("octonion")
    weights["norm.weight"] = np.full(64, np.nan, dtype=np.float32)
    with pytest.raises(NonFiniteError):
        Engine(codec.dump(weights, config))


def test_mutated_files_neither_trap_nor_grow():
    weights, config = model("octonion odd widths")
    content = codec.dump(weights, config, ByteTokenizer() if config["vocab_size"] > 256 else CharacterTokenizer("abc"))
    rng = np.random.default_rng(11)
    instance = Instance()

    def refusal(read):
        try:
            read()
        except WalshError as error:
            return str(error)
        return ""

    refused = 0
    for i in range(2500):
        damaged = damage(content, rng)
        verify = i % 2 == 0  # every other one without digests, so that what they hide is seen too
        mine = refusal(lambda: Engine(damaged, verify=verify, instance=instance).close())  # noqa: B023 - called here
        theirs = refusal(lambda: codec.load(damaged, verify=verify))  # noqa: B023 - called here
        assert "trapped" not in mine
        assert bool(mine) == bool(theirs), (mine, theirs)
        refused += bool(mine)
    assert refused > 1500
    assert instance.memory_bytes < 16 << 20

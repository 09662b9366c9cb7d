"""Instructions, counted as a canister's are: at most a bar for each product, and within what shapes predict."""

import numpy as np
import pytest
from small_models import SMALL, model

from walsh import codec
from walsh.reference.strict.weights import strict_weight_dtype, strict_weight_shapes

pytest.importorskip("wasmtime")
from walsh.engine import Engine


@pytest.fixture(scope="module")
def metered():
    return pytest.importorskip("walsh.measure.engine").make_metered()


def counted(instance, call):
    before = instance.counter()
    call()
    return instance.counter() - before


@pytest.mark.parametrize(("bits", "alone", "together"), [(8, 0.66, 0.655), (4, 0.69, 0.62)])
def test_heads_cost_few_instructions_per_product(metered, bits, alone, together):
    """At the published width, 512; the bar for one sequence is 0.70."""
    config = SMALL | {"algebra": "octonion", "n_layer": 0, "n_embd": 512, "vocab_size": 4000}
    rng = np.random.default_rng(0)
    weights = {key: np.ones(shape, strict_weight_dtype(key)) for key, shape in strict_weight_shapes(config).items()}
    weights["embedding.codes"] = rng.integers(-127, 128, (4000, 512)).astype(np.int8)
    if bits == 4:
        weights = codec.four_bit_rows(weights, config)
    engine = Engine(codec.dump(weights, config), verify=False, instance=metered)
    sessions = [engine.new_session() for _ in range(2)]
    for session in sessions:
        session.prefill([1])
        session.begin_head()
    for some, limit in ((sessions[:1], alone), (sessions, together)):
        counts = [
            counted(metered, lambda: engine.head_range_batch(some, 0, rows))  # noqa: B023 - called here
            for rows in (4000, 2000, 4000)
        ]
        # Of further rows: the first call also makes room for logits.
        assert counts[2] - counts[1] <= limit * 2000 * 512 * len(some)


def test_batches_never_cost_more_and_predictions_hold(metered):
    instance = metered
    for name, layout in (
        ("octonion", "fast"),
        ("octonion", "packed"),
        ("hadamard", "pairs"),
        ("octonion hash 3", "fast_packed"),
    ):
        weights, config = model(name)
        engine = Engine(codec.dump(weights, config | {"block_size": 160}), layout, instance=instance)

        def count(call):
            return counted(instance, call)

        first = engine.new_session()
        first.prefill(np.arange(40) % 70)
        other = first.fork()
        alone = count(lambda: other.step(1))  # noqa: B023 - called here
        for size in (2, 3, 4, 8):
            sessions = [first.fork() for _ in range(size)]
            together = count(lambda: engine.step_batch(sessions, [1] * size))  # noqa: B023 - called here
            # On models this small the host's lists of sessions weigh a few per cent.
            assert together <= 1.05 * size * alone, (name, layout, size)
        costs = engine.costs(40)
        session = first.fork()
        assert 0.3 * costs.begin < count(lambda: session.begin(1)) <= costs.begin  # noqa: B023 - called here
        for _ in range(engine.n_layer):
            assert 0.3 * costs.layer < count(session.advance) <= costs.layer, (name, layout)
        assert count(session.begin_head) <= costs.begin_head
        assert count(lambda: engine.head_range_batch([session], 0, 70)) <= costs.head  # noqa: B023 - called here
        assert count(session.sample) <= costs.sample

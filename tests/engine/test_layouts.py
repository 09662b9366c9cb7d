"""Layouts of weights: four-bit rows compute what ``walsh.reference.strict`` does, memory stays within a share of the
file, and the fastest layout that fits is chosen.
"""

import numpy as np
import pytest
from small_models import model, same

from walsh import codec
from walsh.codec.packings import fits_int4
from walsh.reference import strict
from walsh.reference.strict.weights import strict_weight_dtype, strict_weight_shapes

pytest.importorskip("wasmtime")
from walsh.engine import Engine


@pytest.mark.parametrize("layout", ["auto", "packed"])
@pytest.mark.parametrize("prefer", ["size", "speed"])
def test_four_bit_rows_compute_the_same(layout, prefer):
    weights, config = model("octonion")
    weights = codec.four_bit_rows(weights, config)
    assert fits_int4(weights["embedding.codes"])
    engine = Engine(codec.dump(weights, config, prefer=prefer), layout)
    session = engine.new_session()
    session.prefill([3, 1, 4, 1, 5])
    assert same(session.logits, strict.forward(np.array([[3, 1, 4, 1, 5]]), weights, config)[0, -1])


@pytest.mark.parametrize(
    ("algebra", "heads", "rows", "limit", "layout"),
    [
        ("hadamard", 32, 8, 1.15, "pairs"),
        ("octonion", 8, 8, 1.30, "fast"),
        ("octonion", 8, 4, 1.30, "fast_packed"),
    ],
)
def test_published_shapes_stay_small_in_memory(algebra, heads, rows, limit, layout):
    config = {"algebra": algebra, "n_layer": 8, "n_head": heads, "n_embd": 512, "vocab_size": 50257, "block_size": 1024}
    config["head_mixing"] = algebra == "hadamard"
    rng = np.random.default_rng(0)
    weights = {}
    for key, shape in strict_weight_shapes(config).items():
        kind = strict_weight_dtype(key)
        if kind == "int8":
            top = {8: 127, 4: 7}[rows] if key.startswith("embedding") else 1
            weights[key] = rng.integers(-top, top + 1, shape, dtype=np.int8)
        else:
            weights[key] = np.ones(shape, dtype=kind)
    content = codec.dump(weights, config)
    assert len(content) <= {8: 28.0e6, 4: 15.0e6}[rows]
    engine = Engine(content, verify=False)
    assert engine.layout == layout
    memory = engine.memory
    assert memory.file == len(content)
    assert memory.weights + memory.tokenizer <= limit * len(content)


def test_hash_embeddings_stay_small_in_memory():
    """Indices that can be computed are not kept, nor is what stands in the file before its tables."""
    config = {"algebra": "hadamard", "n_layer": 8, "n_head": 32, "n_embd": 512, "vocab_size": 50257, "block_size": 1024}
    config |= {"head_mixing": True, "hash_embeddings": 2}
    rng = np.random.default_rng(0)
    weights = {}
    for key, shape in strict_weight_shapes(config).items():
        kind = strict_weight_dtype(key)
        top = 127 if key.startswith("embedding") or ".mixer." in key else 1
        ints = rng.integers(-top, top + 1, shape, dtype=np.int8)
        weights[key] = ints if kind == "int8" else rng.normal(1, 0.1, shape).astype(kind)
    engine = Engine(codec.dump(weights, config), verify=False)
    assert engine.memory.weights <= 1.15 * engine.memory.file


@pytest.mark.parametrize("name", ["octonion", "octonion hash 3", "hadamard", "hadamard 8 hash 2", "quaternion"])
@pytest.mark.parametrize("width", [64, 256])
def test_the_layout_is_the_fastest_that_fits(name, width):
    weights, config = model(name, n_embd=width, vocab_size=3000)
    content = codec.dump(weights, config)
    fast = {"fast": 1.30, "fast_packed": 1.30} if config["algebra"] == "octonion" else {}
    limits = fast | {"pairs": 1.15, "packed": np.inf}
    chosen = Engine(content, verify=False).layout
    for layout, limit in limits.items():
        memory = Engine(content, layout, verify=False).memory
        # The header is not foreseen, where it is too little to be moved away.
        if layout == chosen:
            assert memory.weights <= (limit + 0.02) * memory.file
            return
        assert memory.weights > limit * memory.file

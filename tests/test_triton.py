"""Triton kernels in the interpreter, against formulas written here in float64 and against ``walsh.reference.strict``.

They need TRITON_INTERPRET=1 before Triton is imported, so a process of their own: ``TRITON_INTERPRET=1 pytest
tests/test_triton.py``. On a machine with a GPU the same formulas are held against compiled kernels by the conformance
run.
"""

import importlib
import os
from functools import partial

import numpy as np
import pytest

from walsh.algebra import cayley_dickson_signs, sylvester
from walsh.reference import strict as reference

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels cannot run on this CPU", allow_module_level=True)

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from walsh import errors  # noqa: E402  # after the guards
from walsh.kernels import triton as kernels  # noqa: E402
from walsh.kernels.triton._launch import count_launches  # noqa: E402

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
UNIT = {F32: 2.0**-24, F64: 2.0**-53, BF16: 2.0**-8, F16: 2.0**-11}


def module(name):
    """A module of the package, also where a function has its name."""
    return importlib.import_module(f"walsh.kernels.triton.{name}")


def rand(*shape, dtype=F32, seed=0):
    values = np.random.default_rng(seed + sum(shape)).standard_normal(shape)
    return torch.from_numpy(np.asarray(values)).to(dtype)


def assert_close(actual, expected, dtype, terms=64):
    """Within ``terms`` rounding errors of the largest element."""
    assert actual.shape == expected.shape
    assert actual.dtype == dtype
    if actual.numel():
        error = (actual.double() - expected.double()).abs().max().item()
        assert error <= terms * UNIT[dtype] * max(1.0, expected.double().abs().max().item())


def check(function, formula, inputs, terms=64):
    """Values, gradients and the same bits twice, against a float64 formula that PyTorch differentiates."""
    dtype = inputs[0].dtype
    expected_inputs = [x.double().clone().requires_grad_() for x in inputs]
    expected = formula(*expected_inputs)
    upstream = rand(*expected.shape, seed=5).to(dtype)
    expected.backward(upstream.double())
    runs = []
    for _ in range(2):
        given = [x.clone().requires_grad_() for x in inputs]
        result = function(*given)
        result.backward(upstream)
        runs.append([result.detach(), *(x.grad for x in given)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert_close(runs[0][0], expected.detach(), dtype, terms)
    for gradient, x in zip(runs[0][1:], expected_inputs, strict=True):
        assert_close(gradient, x.grad, dtype, terms)


def same_bits(actual, expected):
    """Equal to the bit: tensor and array, or tuples of them."""
    if isinstance(actual, tuple):
        for one, other in zip(actual, expected, strict=True):
            same_bits(one, other)
        return
    left, right = np.ascontiguousarray(actual.detach().numpy()), np.ascontiguousarray(expected)
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    assert left.tobytes() == right.tobytes()


def cayley_dickson_formula(x, w, beta):
    d = w.shape[0]
    signs = torch.from_numpy(cayley_dickson_signs(d).astype(np.float64))
    parts = x.reshape(*x.shape[:-1], d, w.shape[2])
    rows = [sum(signs[i, j] * parts[..., j, :] @ w[i ^ j].T for j in range(d)) for i in range(d)]
    return (torch.stack(rows, dim=-2) * beta).flatten(-2)


def hadamard_formula(x, w, alpha, beta):
    n = w.shape[0]
    h = torch.from_numpy(sylvester(n).astype(np.float64)) / n**0.5
    v = torch.einsum("gh,...hk->...gk", h, alpha * x.reshape(*x.shape[:-1], n, w.shape[2]))
    z = torch.einsum("...gk,gnk->...gn", v, w)
    return (beta * torch.einsum("gh,...hn->...gn", h, z)).flatten(-2)


# Tokens, outputs, inputs: none divides a block, none at all, one, and enough tokens for a split sum.
SIZES = [(5, 7, 9), (1, 20, 3), (0, 4, 4), (70, 6, 5)]


@pytest.mark.parametrize(
    ("d", "method"), [(1, "direct"), (2, "fast"), (4, "direct"), (8, "direct"), (8, "fast"), (16, "direct")]
)
def test_cayley_dickson(d, method):
    for tokens, n, k in SIZES[: 4 if d < 16 else 1]:
        x, w, beta = rand(tokens, d * k), rand(d, n, k), rand(n)
        check(partial(kernels.cayley_dickson_linear, method=method), cayley_dickson_formula, (x, w, beta))


@pytest.mark.parametrize("method", ["direct", "fast"])
@pytest.mark.parametrize("dtype", [F64, BF16, F16])
def test_cayley_dickson_dtypes(dtype, method):
    inputs = rand(3, 40, dtype=dtype), rand(8, 4, 5, dtype=dtype), rand(4, dtype=dtype)
    check(partial(kernels.cayley_dickson_linear, method=method), cayley_dickson_formula, inputs)


def test_cayley_dickson_strided():
    x, w, beta = rand(3, 80)[:, ::2], rand(5, 4, 8).transpose(0, 2), rand(8)[::2]
    check(kernels.cayley_dickson_linear, cayley_dickson_formula, (x, w, beta))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("d", [1, 8, 16])
def test_integers_are_exact(d, packed):
    generator = np.random.default_rng(d)
    codes = generator.integers(-1, 2, (d, 5, 7)).astype(np.int8)
    a = generator.integers(-128, 128, (3, d * 7)).astype(np.int8)
    signs, parts = cayley_dickson_signs(d).astype(np.int64), a.astype(np.int64).reshape(3, d, 7)
    total = np.stack(
        [sum(signs[i, j] * (parts[:, j] @ codes[i ^ j].T.astype(np.int64)) for j in range(d)) for i in range(d)], axis=1
    ).reshape(3, -1)
    w = torch.from_numpy(codes)
    w = kernels.pack_ternary(w) if packed else w
    same_bits(kernels.cayley_dickson_linear(torch.from_numpy(a), w), total.astype(np.int32))
    scale, beta = rand(3, 1).abs() + 1, rand(5)
    expected = (total.astype(np.float32) / scale.numpy()).reshape(3, d, 5) * beta.numpy()
    same_bits(kernels.cayley_dickson_linear(torch.from_numpy(a), w, beta, scale), expected.reshape(3, -1))


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("bits", [8, None])
def test_bit_linear_is_straight_through(bits, clip):
    x, w, beta = rand(4, 40), rand(8, 3, 5), rand(3)
    gamma = w.double().abs().mean() + 1e-8
    q = (w.double() / gamma).round().clamp(-1, 1)
    scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    v = (x * scale).round().clamp(-128, 127).double() / scale.double() if bits else x.double()
    points = [t.clone().requires_grad_() for t in (v, q, beta.double())]
    expected = cayley_dickson_formula(*points)
    expected.sum().backward()
    given = [t.clone().requires_grad_() for t in (x, w, beta)]
    result = kernels.cayley_dickson_bit_linear(*given, bits, "absmean", clip)
    result.sum().backward()
    assert_close(result.detach(), expected.detach(), F32)
    masks = [1.0, 1.0 if clip is None else (w.abs() <= clip).double(), 1.0]
    for leaf, point, mask in zip(given, points, masks, strict=True):
        assert_close(leaf.grad, point.grad * mask, F32)


def test_octonion_layer_launches_at_most_four_kernels():
    x, w, beta = (t.requires_grad_() for t in (rand(70, 40), rand(8, 3, 5), rand(3)))
    with count_launches() as forward:
        y = kernels.cayley_dickson_bit_linear(x, w, beta)
    with count_launches() as backward:
        y.sum().backward()
    assert len(forward) <= 4
    assert len(backward) <= 4


@pytest.mark.parametrize("n", [1, 2, 8, 32])
def test_hadamard_linear(n):
    for tokens, out, k in SIZES:
        check(
            kernels.hadamard_linear, hadamard_formula, (rand(tokens, n * k), rand(n, out, k), rand(n, k), rand(n, out))
        )


@pytest.mark.parametrize("codes", [False, True])
def test_hadamard_layer_launches_at_most_four_kernels(codes):
    """Forward: two for the weights' codes, one for those of v, the layer. Backward: dx, dw, and the sums of both."""
    x, w, alpha, beta = (t.requires_grad_() for t in (rand(70, 24), rand(8, 2, 3), rand(8, 3), rand(8, 2)))
    with count_launches() as forward:
        y = (kernels.hadamard_bit_linear if codes else kernels.hadamard_linear)(x, w, alpha, beta)
    with count_launches() as backward:
        y.sum().backward()
    assert len(forward) == (4 if codes else 1)
    assert backward == ["hadamard_linear_kernel", "hadamard_weight_kernel", "hadamard_sums_kernel"]


def test_hadamard_layer_launches_only_what_is_wanted():
    leaves = [rand(5, 24), rand(8, 2, 3), rand(8, 3), rand(8, 2)]
    whole = [t.clone().requires_grad_() for t in leaves]
    kernels.hadamard_linear(*whole).sum().backward()
    expected = [
        ["hadamard_linear_kernel"],
        ["hadamard_weight_kernel", "hadamard_sums_kernel"],
        ["hadamard_linear_kernel", "hadamard_sums_kernel"],
        ["hadamard_weight_kernel", "hadamard_sums_kernel"],
    ]
    for place, names in enumerate(expected):
        given = [t.clone().requires_grad_(i == place) for i, t in enumerate(leaves)]
        y = kernels.hadamard_linear(*given)
        with count_launches() as backward:
            y.sum().backward()
        assert backward == names
        assert torch.equal(given[place].grad, whole[place].grad)


@pytest.mark.parametrize("packed", [False, True])
def test_hadamard_gradients_of_codes(packed):
    """Weights that are codes have no gradient; the others' are those of the same weights in float."""
    q = codes(8, 5, 7, low=-1, high=2)
    w = kernels.pack_ternary(q) if packed else q
    layer = lambda x, alpha, beta: kernels.hadamard_linear(x, w, alpha, beta)  # noqa: E731  # a function of the floats
    formula = lambda x, alpha, beta: hadamard_formula(x, q.double(), alpha, beta)  # noqa: E731  # a formula
    check(layer, formula, (rand(50, 56), rand(8, 7), rand(8, 5)))


@pytest.mark.parametrize("n", [2, 64, 4096, 8192])
def test_hadamard_transform(n):
    x = rand(2, 3, n)
    half = x.double()
    for stride in (1 << i for i in range(n.bit_length() - 1)):
        pairs = half.reshape(2, 3, n // (2 * stride), 2, stride)
        half = torch.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], dim=-2).reshape(
            x.shape
        )
    assert_close(kernels.hadamard_transform(x), half / n**0.5, F32, 64)
    place = x.clone()
    assert kernels.hadamard_transform_(place) is place
    assert torch.equal(place, kernels.hadamard_transform(x))
    whole = torch.arange(6 * n).reshape(2, 3, n) % 201 - 100
    assert kernels.hadamard_transform(whole, normalize=False).dtype == torch.int32
    twice = kernels.hadamard_transform(kernels.hadamard_transform(whole, normalize=False), normalize=False)
    assert torch.equal(twice, (n * whole).to(torch.int32))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("n", "k"), [(1, 3), (32, 5), (64, 3), (2048, 2)])
def test_hadamard_transform_across_blocks(n, k, dtype):
    """The transform of the blocks is that of the last axis after a transposition, to the bit, in and out of place."""
    x = rand(3, n * k, dtype=dtype)
    expected = kernels.hadamard_transform(x.reshape(3, n, k).transpose(1, 2)).transpose(1, 2).reshape(3, n * k)
    assert torch.equal(kernels.hadamard_transform(x, n=n), expected)
    assert torch.equal(kernels.hadamard_transform_(x.clone(), n=n), expected)
    leaf = x.clone().requires_grad_()
    kernels.hadamard_transform(leaf, n=n).backward(x)
    assert torch.equal(leaf.grad, expected)


def test_hadamard_transform_across_blocks_of_another_size_is_refused():
    for n in (0, 3, 8):
        with pytest.raises(errors.ShapeError, match=r"n \* K"):
            kernels.hadamard_transform(rand(2, 12), n=n)
    assert kernels.hadamard_transform(rand(2, 0), n=8).shape == (2, 0)


@pytest.mark.parametrize("algebra", ["complex", "octonion", "hadamard"])
def test_head_mixer(algebra):
    n = 2 if algebra == "complex" else 8

    def formula(x, w, beta):
        groups = x.reshape(3, 2, n * 5)
        if algebra == "hadamard":
            mixed = hadamard_formula(groups, w.transpose(1, 2), torch.ones(n, 5).double(), beta)
        else:
            mixed = cayley_dickson_formula(groups, w.transpose(1, 2), beta)
        return mixed.reshape(x.shape)

    check(lambda *a: kernels.head_mixer(*a, algebra=algebra), formula, (rand(3, 2 * n, 5), rand(n, 5, 5), rand(5)))


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_rms_norm_and_swiglu(dtype):
    for shape in ((5, 37), (1, 64), (0, 8), (300, 6)):
        norm = lambda x, w: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w  # noqa: E731  # a formula
        check(kernels.rms_norm, norm, (rand(*shape, dtype=dtype), rand(shape[-1], dtype=dtype)))
        check(
            kernels.swiglu,
            lambda g, u: g * torch.sigmoid(g) * u,
            (rand(*shape, dtype=dtype), rand(*shape, dtype=dtype)),
        )


def test_norm_and_quantizer_fused():
    x, weight = rand(7, 33), rand(33)
    apart = kernels.quantize_activations(kernels.rms_norm(x, weight))
    assert all(torch.equal(a, b) for a, b in zip(kernels.rms_norm_quantize(x, weight), apart, strict=True))


@pytest.mark.parametrize("positions", [None, torch.tensor([0, 7, 999_999]), torch.tensor([[0, 5, 9], [3, 3, 100_000]])])
def test_rope(positions):
    def formula(x):
        places = (torch.arange(3) if positions is None else positions).double()
        angle = (places[..., None] * 10000.0 ** (-torch.arange(0, 8, 2).double() / 8))[..., None, :]
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = [even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()]
        return torch.stack(turned, dim=-1).flatten(-2)

    check(lambda x: kernels.rope(x, positions), formula, (rand(2, 3, 2, 8),))


def attention_formula(positions):
    def formula(q, k, v):
        score = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
        visible = (torch.arange(k.shape[1]) <= positions[:, :, None])[:, None]
        p = score.masked_fill(~visible, -1e30).softmax(-1) * visible
        return torch.einsum("bhts,bshd->bthd", p, v)

    return formula


@pytest.mark.parametrize("shape", [(2, 5, 9, 3, 4), (1, 1, 70, 2, 8), (2, 33, 40, 1, 20)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_attention(shape, dtype):
    batch, tokens, keys, heads, d = shape
    positions = torch.from_numpy(np.random.default_rng(3).integers(-1, keys, (batch, tokens)))
    inputs = [rand(batch, length, heads, d, dtype=dtype, seed=i) for i, length in enumerate((tokens, keys, keys))]
    check(lambda *a: kernels.attention(*a, positions), attention_formula(positions), inputs)


def test_attention_ignores_what_it_does_not_see():
    q, k, v = (rand(1, 4, 1, 4, seed=i) for i in range(3))
    clean = kernels.attention(q, k, v)
    k[0, 3], v[0, 2, 0, 1] = float("nan"), float("nan")
    dirty = kernels.attention(q, k, v)
    assert torch.equal(dirty[0, :2], clean[0, :2])
    assert torch.isnan(dirty[0, 2]).tolist() == [[False, True, False, False]]


def test_cache_split_equals_whole():
    k, v, q = (rand(2, 6, 2, 4, seed=i) for i in range(3))
    for kind in (kernels.KVCache, kernels.strict.Int8KVCache):
        whole, parts = kind(2, 8, 2, 4), kind(2, 8, 2, 4)
        positions = whole.append(k, v)
        assert positions.tolist() == [list(range(6))] * 2
        parts.append(k[:, :2], v[:, :2])
        later = parts.append(k[:, 2:], v[:, 2:])
        assert torch.equal(whole.attend(q[:, 2:], later), parts.attend(q[:, 2:], later))
        forked = parts.fork(torch.tensor([1]))
        forked.truncate(torch.tensor([3]))
        assert forked.append(k[:1], v[:1], torch.tensor([1])).tolist() == [[3, -1, -1, -1, -1, -1]]
        assert parts.lengths.tolist() == [6, 6]
        with pytest.raises(errors.CapacityError):
            parts.append(k, v)


def test_int8_cache_is_near_the_float_one():
    k, v, q = (rand(2, 6, 2, 16, seed=i) for i in range(3))
    caches = kernels.KVCache(2, 8, 2, 16, torch.int8), kernels.KVCache(2, 8, 2, 16)
    near, exact = (cache.attend(q, cache.append(k, v)) for cache in caches)
    assert (near - exact).abs().max() < 0.05


def test_embeddings_and_heads():
    ids = torch.tensor([[0, 6, 6, 2], [1, 1, 1, 5]])
    check(lambda t: kernels.embedding(ids, t), lambda t: t[ids], (rand(7, 5),))
    check(kernels.lm_head, lambda x, t: x @ t.T, (rand(2, 4, 5), rand(7, 5)))
    indices = torch.tensor([[i % 4, i % 6, i % 5] for i in range(7)])
    tables = [rand(p, 5, seed=p) for p in (4, 6, 5)]

    def mixed(a, b, c, importance):
        return 1.5 * sum(importance[ids, i, None] * t[indices[ids, i]] for i, t in enumerate((a, b, c)))

    def head(x, a, b, c, importance):
        return sum(importance[:, i] * (x @ t[indices[:, i]].T) for i, t in enumerate((a, b, c)))

    importance = rand(7, 3)
    check(lambda a, b, c, i: kernels.hash_embedding(ids, [a, b, c], i, indices, 1.5), mixed, (*tables, importance))
    check(lambda x, a, b, c, i: kernels.hash_lm_head(x, [a, b, c], i, indices), head, (rand(3, 5), *tables, importance))


@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_cross_entropy(chunk):
    targets = torch.tensor([0, 8, -1, 3, 3, -1, 8])

    def formula(logits):
        kept = targets >= 0
        picked = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
        return (logits.logsumexp(1) - picked)[kept].mean()

    check(lambda logits: kernels.cross_entropy(logits, targets), formula, (rand(7, 9),))
    check(
        lambda x, table: kernels.linear_cross_entropy(x, table, targets, chunk),
        lambda x, table: formula(x @ table.T),
        (rand(7, 5), rand(9, 5)),
    )


def test_cross_entropy_of_nothing():
    logits = rand(3, 4).requires_grad_()
    loss = kernels.cross_entropy(logits, torch.full((3,), -1))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_ternary_and_packing():
    for shape in ((37, 53), (1,), (3, 1000)):
        w = rand(*shape)
        q, gamma = kernels.ternary(w)
        mean = w.double().abs().mean() + 1e-8
        assert torch.equal(q, (w.double() / mean).round().clamp(-1, 1).to(torch.int8))
        assert float(gamma) == float(mean.float())
        assert torch.equal(kernels.unpack_ternary(kernels.pack_ternary(q), q.shape[-1]), q)
    assert kernels.ternary(torch.tensor([0.5, 0.75, -0.5, -2.0]), "round")[0].tolist() == [0, 1, 0, -1]
    assert kernels.pack_ternary(torch.tensor([1, 0, -1, -1, 1], dtype=torch.int8)).tolist() == [6, 86]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 130, 3000])
def test_bitmask(length):
    q = np.random.default_rng(length).integers(-1, 2, length).astype(np.int8)
    mask, signs = kernels.bitmask_encode(torch.from_numpy(q))
    same_bits(mask, np.packbits(q != 0, bitorder="little"))
    same_bits(signs, np.packbits(q[q != 0] > 0, bitorder="little"))
    same_bits(kernels.bitmask_decode(mask, signs, (length,)), q)


def array(x):
    return x.numpy() if isinstance(x, torch.Tensor) else [array(member) for member in x] if isinstance(x, list) else x


def codes(*shape, low=-128, high=128, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(low, high, shape).astype(np.int8))


TABLES = [codes(p, 12, seed=p) for p in (4, 6, 5)]
SCALES = [rand(p).abs() for p in (4, 6, 5)]
INDICES = torch.tensor([[i % 4, i % 6, i % 5] for i in range(30)])
IDS = torch.tensor([[0, 29, 7], [7, 7, 1]])
STRICT = {
    "exp": [(torch.linspace(-100, 100, 3001),)],
    "hsum": [(rand(3, n),) for n in (1, 37, 1000)],
    "psum": [(rand(3, n),) for n in (1, 37, 1000)],
    "sincos": [(torch.linspace(0, 1e5, 3001, dtype=F64),)],
    "quantize_activations": [(rand(5, 37),), (rand(2, 3, 300) * 1e-6,)],
    "rms_norm": [(rand(5, n), rand(n)) for n in (1, 37, 512)],
    "swiglu": [(rand(5, 37) * 20, rand(5, 37))],
    "hadamard_transform": [(rand(3, n),) for n in (1, 32, 8192)],
    "cayley_dickson_linear": [(rand(2, 3, d * 9), codes(d, 7, 9, low=-1, high=2), rand(7)) for d in (1, 8, 16)],
    "hadamard_linear": [(rand(5, n * 9), codes(n, 7, 9, low=-1, high=2), rand(n, 9), rand(n, 7)) for n in (1, 32)],
    "head_mixer": [
        (rand(3, 2 * n, 5), codes(n, 5, 5), rand(5).abs(), rand(5), algebra)
        for n, algebra in ((2, "complex"), (8, "octonion"), (16, "sedenion"), (8, "hadamard"))
    ],
    "rope": [(rand(2, 4, 3, 8), 10000.0 ** (-torch.arange(0, 8, 2).double() / 8), torch.tensor([0, 3, 1000, 99999]))],
    "attention": [
        (
            rand(2, 5, 3, 4),
            rand(2, 40, 3, 4, seed=1),
            rand(2, 40, 3, 4, seed=2),
            torch.tensor([[-1, 0, 31, 32, 39]] * 2),
        ),
        (rand(1, 40, 1, 20), rand(1, 40, 1, 20, seed=1), rand(1, 40, 1, 20, seed=2), None),
    ],
    "embedding": [(IDS, codes(30, 12), rand(30).abs())],
    "lm_head": [(rand(2, 3, 12), codes(30, 12), rand(30).abs())],
    "hash_embedding": [(IDS, TABLES, SCALES, rand(30, 3), INDICES, 1.7)],
    "hash_lm_head": [(rand(2, 3, 12), TABLES, SCALES, rand(30, 3), INDICES)],
}


@pytest.mark.parametrize("name", STRICT)
def test_strict_equals_the_reference_to_the_bit(name):
    for arguments in STRICT[name]:
        expected = getattr(reference, name)(*(array(argument) for argument in arguments))
        actual = getattr(kernels.strict, name)(*arguments)
        same_bits(actual, expected)
        same_bits(getattr(kernels.strict, name)(*arguments), expected)


SETTINGS = [
    {"temperature": 0.0, "repetition_penalty": 1.5},
    {},
    {"temperature": 0.7, "top_k": 5},
    {"top_p": 0.5},
    {"top_p": 0.9, "top_k": 4, "repetition_penalty": 0.8},
]


@pytest.mark.parametrize("vocabulary", [1, 7, 200])
def test_sampling(vocabulary):
    logits = (rand(3, vocabulary) * 8).round() / 4  # with ties
    history = torch.tensor([[0, -1, 0], [-1, -1, -1], [vocabulary - 1, 0, 0]])
    for settings in SETTINGS:
        drawn = kernels.sample(logits, history, seed=torch.tensor([1, 2, 3]), position=9, **settings)
        same_bits(
            drawn, reference.sample(logits.numpy(), history.numpy(), seed=np.array([1, 2, 3]), position=9, **settings)
        )
    same_bits(kernels.uniform(2**64 - 1, 2**40), reference.uniform(2**64 - 1, 2**40))


MODEL = {
    "algebra": "octonion", "n_layer": 1, "n_head": 8, "n_embd": 16, "vocab_size": 20, "block_size": 12,
    "head_mixing": True,
}  # fmt: skip  # one line reads as one configuration


def model_weights():
    from walsh.reference.config import weight_shapes

    return {name: rand(*shape) for name, shape in weight_shapes(MODEL).items()}


def test_strict_model_generates_the_same_tokens():
    weights = reference.export(array_dict(model_weights()), MODEL)
    tensors = {name: torch.from_numpy(w) for name, w in weights.items()}
    ids = np.array([[3, 1, 4], [1, 5, 9]])
    same_bits(kernels.strict.forward(torch.from_numpy(ids), tensors, MODEL), reference.forward(ids, weights, MODEL))
    settings = {"max_new_tokens": 3, "temperature": 0.8, "seed": 5}
    same_bits(
        kernels.strict.generate(torch.from_numpy(ids), tensors, MODEL, **settings),
        reference.generate(ids, weights, MODEL, **settings),
    )


def array_dict(weights):
    return {name: w.numpy() for name, w in weights.items()}


def test_forward_through_a_cache_equals_the_whole():
    weights, ids = model_weights(), torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    whole = kernels.forward(ids, weights, MODEL)
    cache = [kernels.KVCache(2, 8, 8, 2)]
    parts = [kernels.forward(ids[:, :3], weights, MODEL, cache), kernels.forward(ids[:, 3:], weights, MODEL, cache)]
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-4


IDS4, AIMS = torch.tensor([2, 0, 2, 1]), torch.tensor([1, -1, 2, 0])
PAIRS = torch.tensor([[0, 1], [1, 0], [1, 1]])


def wide(*shapes):
    return tuple(rand(*shape, dtype=F64, seed=i) for i, shape in enumerate(shapes))


GRADCHECKS = {
    "cayley_dickson_linear": (kernels.cayley_dickson_linear, wide((2, 4), (2, 2, 2), (2,))),
    "fast product": (partial(kernels.cayley_dickson_linear, method="fast"), wide((2, 4), (4, 1, 1), (1,))),
    "hadamard_linear": (kernels.hadamard_linear, wide((2, 4), (2, 2, 2), (2, 2), (2, 2))),
    "hadamard_transform": (kernels.hadamard_transform, wide((2, 4))),
    "head_mixer quaternion": (partial(kernels.head_mixer, algebra="quaternion"), wide((2, 4, 1), (4, 1, 1), (1,))),
    "head_mixer hadamard": (partial(kernels.head_mixer, algebra="hadamard"), wide((1, 2, 2), (2, 2, 2), (2,))),
    "rms_norm": (kernels.rms_norm, wide((2, 3), (3,))),
    "swiglu": (kernels.swiglu, wide((2, 3), (2, 3))),
    "rope": (kernels.rope, wide((3, 1, 2))),
    "attention": (kernels.attention, wide((1, 2, 1, 2), (1, 2, 1, 2), (1, 2, 1, 2))),
    "embedding": (partial(kernels.embedding, IDS4), wide((3, 2))),
    "hash_embedding": (
        lambda a, b, i: kernels.hash_embedding(IDS4, [a, b], i, PAIRS, 1.5), wide((2, 2), (2, 2), (3, 2)),
    ),
    "lm_head": (kernels.lm_head, wide((2, 3), (2, 3))),
    "hash_lm_head": (
        lambda x, a, b, i: kernels.hash_lm_head(x, [a, b], i, PAIRS), wide((2, 2), (2, 2), (2, 2), (3, 2)),
    ),
    "cross_entropy": (lambda logits: kernels.cross_entropy(logits, AIMS), wide((4, 3))),
    "linear_cross_entropy": (lambda x, t: kernels.linear_cross_entropy(x, t, AIMS, 3), wide((4, 2), (3, 2))),
}  # fmt: skip  # one operation a line


@pytest.mark.parametrize("name", GRADCHECKS)
def test_gradcheck(name):
    function, inputs = GRADCHECKS[name]
    assert torch.autograd.gradcheck(function, tuple(x.clone().requires_grad_() for x in inputs))


EMPTY = {
    "cayley_dickson": lambda: kernels.cayley_dickson_bit_linear(rand(2, 0, 16), rand(8, 3, 2)),
    "hadamard": lambda: kernels.hadamard_bit_linear(rand(0, 16), rand(8, 3, 2)),
    "transform": lambda: kernels.hadamard_transform(rand(0, 8)),
    "mixer": lambda: kernels.head_mixer(rand(0, 8, 2), rand(8, 2, 2)),
    "norm": lambda: kernels.rms_norm_quantize(rand(0, 5), rand(5))[0],
    "swiglu": lambda: kernels.swiglu(rand(3, 0), rand(3, 0)),
    "rope": lambda: kernels.rope(rand(2, 0, 3, 4)),
    "quantizer": lambda: kernels.quantize_activations(rand(0, 5))[1],
    "attention": lambda: kernels.attention(rand(2, 0, 3, 4), rand(2, 5, 3, 4), rand(2, 5, 3, 4)),
    "cache": lambda: kernels.KVCache(2, 4, 3, 2).append(rand(2, 0, 3, 2), rand(2, 0, 3, 2)),
    "embedding": lambda: kernels.embedding(torch.zeros(0, 2, dtype=torch.int64), rand(3, 4)),
    "head": lambda: kernels.lm_head(rand(0, 4), rand(3, 4)),
    "codes": lambda: kernels.pack_ternary(codes(0, 5)),
}  # one operation a line


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_in_gives_nothing_out(name):
    assert EMPTY[name]().numel() == 0


def test_packed_quantizer_is_the_quantizer_packed():
    for shape in ((3, 37), (5,), (2, 3, 8)):
        for rule in ("absmean", "round"):
            q, gamma = kernels.ternary(rand(*shape), rule)
            packed, same = kernels.ternary_packed(rand(*shape), rule)
            assert torch.equal(packed, kernels.pack_ternary(q))
            assert torch.equal(gamma, same)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the most elements that a tensor made inside it had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            self.elements = max(self.elements, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return result


def test_chunked_loss_never_holds_all_logits():
    tokens, vocabulary, chunk = 40, 97, 4
    linear = module("cross_entropy")._linear.implementation
    with Largest() as seen:
        linear(rand(tokens, 3), rand(vocabulary, 3), torch.arange(tokens), chunk, True)
    # The interpreter takes the bytes of a tensor, four times as many, for a tensor too.
    assert chunk * vocabulary <= seen.elements <= 4 * chunk * vocabulary < tokens * vocabulary


def test_offsets_and_strides_of_every_kind():
    base = rand(5, 4, 24)
    views = {"offset": base[2:, 1], "strided": base[:3, 0, :], "transposed": base[:, :3, 0:24:1].transpose(0, 1)}
    w, weight = rand(8, 2, 3), rand(24)
    for x in views.values():
        for function in (
            lambda x: kernels.cayley_dickson_bit_linear(x, w),
            lambda x: kernels.hadamard_bit_linear(x, w),
            lambda x: kernels.rms_norm(x, weight),
            lambda x: kernels.quantize_activations(x)[0],
            lambda x: kernels.ternary_packed(x)[0],
        ):
            assert torch.equal(function(x), function(x.contiguous()))


def test_wrong_arguments_are_refused_before_anything_runs():
    cases = [
        (errors.ShapeError, lambda: kernels.cayley_dickson_linear(rand(2, 9), rand(2, 3, 4))),
        (errors.ShapeError, lambda: kernels.hadamard_transform(rand(2, 3))),
        (errors.DTypeError, lambda: kernels.cayley_dickson_linear(codes(2, 8), rand(2, 3, 4))),
        (errors.ParameterError, lambda: kernels.cayley_dickson_linear(rand(2, 8), codes(2, 3, 4))),
        (errors.ParameterError, lambda: kernels.ternary(rand(3), "median")),
        (errors.NonFiniteError, lambda: kernels.ternary(torch.tensor([1.0, float("nan")]))),
        (errors.NonFiniteError, lambda: kernels.strict.quantize_activations(torch.tensor([1.0, float("inf")]))),
        (errors.RangeError, lambda: kernels.embedding(torch.tensor([3]), rand(3, 2))),
        (errors.RangeError, lambda: kernels.cross_entropy(rand(1, 3), torch.tensor([3]))),
        (errors.FormatError, lambda: kernels.unpack_ternary(torch.tensor([255], dtype=torch.uint8), 4)),
        (errors.FormatError, lambda: kernels.bitmask_decode(*(torch.tensor([255], dtype=torch.uint8),) * 2, (7,))),
    ]
    with count_launches() as names:
        for error, call in cases:
            with pytest.raises(error):
                call()
    assert set(names) <= {"abs_sum_kernel", "ternary_kernel", "unpack_kernel", "quantize_kernel"}

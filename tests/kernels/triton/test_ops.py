"""Every registered operation of the Triton kernels under PyTorch's own examination, and whole functions compiled."""

import pytest
from interpreted import F64, codes, rand, torch

from walsh.kernels import triton as kernels
from walsh.kernels.triton._ops import REGISTERED


def whole(*values):
    return torch.tensor(values, dtype=torch.int64)


PACKED = torch.full((3, 2), 85, dtype=torch.uint8)
TABLES = [rand(2, 5), rand(3, 5)]
INDICES = whole([0, 1], [1, 2], [0, 0], [1, 0])
IDS = whole(1, 0, 3)
HEADS = [rand(2, length, 1, 4, seed=length) for length in (3, 5, 6)]
PLACES = whole([0, 3, 4], [-1, 0, 4])
ABSENT = (None, None, None, None)

ARGUMENTS = {
    "ternary": lambda: (rand(3, 5), "absmean"),
    "ternary_packed": lambda: (rand(3, 5), "absmean"),
    "pack_ternary": lambda: (codes(3, 5, low=-1, high=2),),
    "unpack_ternary": lambda: (PACKED, 8),
    "quantize_activations": lambda: (rand(3, 5), False, False),
    "rope_table": lambda: (whole(0, 2, 5), rand(2, dtype=F64).abs(), torch.float32, False),
    "rope_rotate": lambda: (rand(2, 3, 2, 4), rand(3, 2), rand(3, 2, seed=1), False, False),
    "attention": lambda: (HEADS[0], HEADS[1], HEADS[1] + 1, None, None, PLACES),
    "attention_backward": lambda: (*(HEADS[i] for i in (0, 0, 1, 1)), PLACES, rand(2, 1, 3)),
    "kv_cache_append": lambda: (
        *(HEADS[0], HEADS[0]), torch.zeros(2, 6, 1, 4), torch.zeros(2, 6, 1, 4), None, None, whole(0, 1), whole(3, 2),
    ),
    "cayley_dickson_linear": lambda: (rand(3, 16), rand(8, 3, 2), rand(3), *ABSENT, "direct"),
    "cayley_dickson_linear_backward": lambda: (
        *(rand(3, 24), rand(3, 16), rand(8, 3, 2), rand(3)), *ABSENT, "direct", True, True, True,
    ),
    "cayley_dickson_integer_linear": lambda: (codes(3, 16), codes(8, 3, 2), rand(3), rand(3, 1).abs(), False, True),
    "hadamard_transform": lambda: (rand(3, 16), True, False),
    "hadamard_quantize": lambda: (rand(3, 16), rand(8, 2), 8, False),
    "hadamard_linear": lambda: (rand(3, 16), rand(8, 3, 2), rand(8, 2), rand(8, 3), *ABSENT),
    "hadamard_linear_backward": lambda: (
        *(rand(3, 24), rand(3, 16), rand(8, 3, 2), rand(8, 2), rand(8, 3)), *ABSENT, True, True, True, True,
    ),
    "hadamard_integer_linear": lambda: (codes(3, 16), rand(3, 1).abs(), codes(8, 3, 2, low=-1, high=2), rand(1, 8, 3)),
    "rms_norm": lambda: (rand(3, 5), rand(5), 1e-6, False),
    "rms_norm_backward": lambda: (rand(3, 5, seed=1), rand(3, 5), rand(5), 1e-6),
    "rms_norm_quantize": lambda: (rand(3, 5), rand(5), 1e-6, False),
    "swiglu": lambda: (rand(3, 5), rand(3, 5, seed=1), False),
    "swiglu_backward": lambda: (rand(3, 5, seed=2), rand(3, 5), rand(3, 5, seed=1)),
    "embedding": lambda: (IDS, rand(4, 5)),
    "embedding_backward": lambda: (rand(3, 5), IDS, rand(4, 5)),
    "hash_embedding": lambda: (IDS, TABLES, rand(4, 2), INDICES, 1.5),
    "hash_embedding_backward": lambda: (rand(3, 5), IDS, TABLES, rand(4, 2), INDICES, 1.5),
    "lm_head": lambda: (rand(3, 5), rand(4, 5)),
    "lm_head_backward": lambda: (rand(3, 4), rand(3, 5), rand(4, 5)),
    "hash_lm_head": lambda: (rand(3, 5), TABLES, rand(4, 2), INDICES),
    "hash_lm_head_backward": lambda: (rand(3, 4), rand(3, 5), TABLES, rand(4, 2), INDICES),
    "cross_entropy": lambda: (rand(3, 5), whole(1, -1, 4)),
    "cross_entropy_backward": lambda: (torch.ones(()), rand(3, 5), whole(1, -1, 4), rand(3), torch.full((), 2.0)),
    "linear_cross_entropy": lambda: (rand(3, 5), rand(7, 5), whole(1, -1, 4), 2, True),
    "bitmask_encode": lambda: (codes(3, 5, low=-1, high=2),),
    "bitmask_decode": lambda: (*kernels.bitmask_encode(codes(3, 5, low=-1, high=2)), [3, 5]),
    "strict_exp": lambda: (rand(3, 5),),
    "strict_sincos": lambda: (rand(3, 5, dtype=F64).abs(),),
    "strict_hsum": lambda: (rand(3, 5),),
    "strict_psum": lambda: (rand(3, 40),),
    "strict_attention": lambda: (
        *(codes(2, 3, 1, 4), rand(2, 3, 1, 1).abs()), *(codes(2, 5, 1, 4), rand(2, 5, 1, 1).abs()) * 2, PLACES,
    ),
    "strict_embedding": lambda: (IDS, codes(4, 5), rand(4).abs()),
    "strict_hash_embedding": lambda: (
        IDS, [codes(2, 5), codes(3, 5)], [rand(2).abs(), rand(3).abs()], rand(4, 2), INDICES, 1.5,
    ),
    "strict_hash_combine": lambda: ([rand(3, 2), rand(3, 3)], INDICES, rand(4, 2), [3]),
    "strict_uniform": lambda: (whole(1, 2), whole(3, 4)),
    "strict_penalize": lambda: (rand(2, 5), whole([1, -1], [2, 2]), 1.5, 0.5),
    "strict_draw": lambda: (rand(2, 5), 3, 0.75, rand(2).abs().clamp(max=0.9)),
    "strict_argmax": lambda: (rand(2, 5),),
}  # fmt: skip  # one operation a line

CONSTANT = {"rope_rotate": (1, 2), "cross_entropy": ()}
"""Float arguments that no gradient is taken of, by operation."""


def test_every_operation_is_examined():
    assert set(ARGUMENTS) == set(REGISTERED)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # raised inside opcheck
@pytest.mark.parametrize("name", ARGUMENTS)
def test_opcheck(name):
    operation = REGISTERED[name]
    arguments = list(ARGUMENTS[name]())
    if operation.differentiable:
        fixed = CONSTANT.get(name, ())
        arguments = [with_gradient(a) if place not in fixed else a for place, a in enumerate(arguments)]
    # The number of signs depends on the codes, which tracing with fixed sizes has no answer to.
    sizes = "dynamic" if name == "bitmask_encode" else "static"
    tests = ["test_schema", "test_faketensor", f"test_aot_dispatch_{sizes}"]
    if operation.differentiable:
        tests.append("test_autograd_registration")
    torch.library.opcheck(operation.overload, tuple(arguments), test_utils=tests)


def with_gradient(value):
    if isinstance(value, list):
        return [with_gradient(member) for member in value]
    floats = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.detach().clone().requires_grad_() if floats else value


def layer(x, w, mix, norm, gate, up, table, targets):
    """A path through most operations, from features to a loss."""
    h = kernels.rms_norm(x, norm)
    h = kernels.cayley_dickson_bit_linear(h, w)
    q = kernels.rope(h.unflatten(-1, (8, 2)))
    h = kernels.head_mixer(kernels.attention(q, q, q), mix).flatten(-2)
    h = kernels.swiglu(kernels.hadamard_bit_linear(h, gate), kernels.hadamard_linear(h, up))
    return kernels.linear_cross_entropy(kernels.fake_quantize_activations(h), table, targets, 4)


LAYER = (rand(1, 3, 16), rand(8, 2, 2), rand(8, 2, 2), rand(16), rand(4, 4, 4), rand(4, 4, 4), rand(9, 16))
TARGETS = whole([1, -1, 8])


def gradients(function):
    leaves = [tensor.clone().requires_grad_() for tensor in LAYER]
    loss = function(*leaves, TARGETS)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def test_a_layer_compiles_as_one_graph_forward_and_backward():
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for one, other in zip(gradients(compiled), gradients(layer), strict=True):
        assert torch.equal(one, other)


INFERENCE = {
    "integers": lambda x, w: kernels.strict.cayley_dickson_linear(x, w, x[0, :2]),
    "packed": lambda x, w: kernels.cayley_dickson_linear(x, kernels.pack_ternary(w)),
    "quantized": lambda x, w: kernels.rms_norm_quantize(x, x[0])[0] + w.sum(),
    "transform": lambda x, w: kernels.strict.hadamard_transform(x) + w.sum(),
    "sums": lambda x, w: kernels.strict.hsum(x) + kernels.strict.psum(kernels.strict.exp(x)) + w.sum(),
    "ids": lambda x, w: kernels.strict.lm_head(x, w.flatten(1).repeat(2, 4), x.new_ones(16)),
}


@pytest.mark.parametrize("name", INFERENCE)
def test_inference_compiles_as_one_graph(name):
    function, arguments = INFERENCE[name], (rand(3, 16), codes(8, 2, 2, low=-1, high=2))
    with torch.no_grad():
        compiled = torch.compile(function, backend="eager", fullgraph=True)(*arguments)
        assert torch.equal(compiled, function(*arguments))


class Layer(torch.nn.Module):
    """The path as a module, for export."""

    def forward(self, *arguments):
        return layer(*arguments)


def test_export():
    program = torch.export.export(Layer(), (*LAYER, TARGETS))
    assert torch.equal(program.module()(*LAYER, TARGETS), layer(*LAYER, TARGETS))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("walsh_triton.cayley_dickson_linear" in name for name in called)


def test_dynamic_lengths_compile_once():
    counts = []

    def counting(graph, _):
        counts.append(1)
        return graph

    compiled = torch.compile(kernels.hadamard_linear, backend=counting, fullgraph=True, dynamic=True)
    w = rand(4, 3, 2)
    for tokens in (5, 7, 11):  # none of them another size of the arguments, which tracing would take for the same
        x = rand(tokens, 8)
        assert torch.equal(compiled(x, w), kernels.hadamard_linear(x, w))
    assert len(counts) == 1

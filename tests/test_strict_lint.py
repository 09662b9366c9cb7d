"""A lint that keeps inexact PyTorch operations out of strict code, and proof that it sees them.

Strict arithmetic is equal to the bit only where every operation is the IEEE one. These are not, or not everywhere:
``number / tensor`` (a reciprocal and a product), float32 ``sqrt``, ``pow``, exponentials and what is made of them, and
every reduction or product whose order of additions PyTorch chooses. A few functions may use one, each for a reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import walsh.kernels.torch.strict

FOLDER = Path(walsh.kernels.torch.strict.__file__).parent
FILES = [*sorted(FOLDER.glob("*.py")), FOLDER.parent / "sampling.py", FOLDER.parent / "integer.py"]

TRANSCENDENTAL = "exp exp2 expm1 log log2 log10 log1p sin cos tan tanh erf pow float_power square sqrt rsqrt reciprocal"
ACTIVATIONS = "sigmoid silu gelu softmax log_softmax logsumexp softplus rms_norm layer_norm normalize"
REDUCTIONS = "sum nansum mean nanmean prod cumsum cumprod logcumsumexp norm var std dot vdot inner trace index_add"
PRODUCTS = "matmul mm bmm mv addmm addmv addbmm baddbmm einsum tensordot linear bilinear conv1d kron outer"
FUSED = "addcmul addcdiv lerp fma div divide true_divide scaled_dot_product_attention compile"
FORBIDDEN = frozenset(" ".join((TRANSCENDENTAL, ACTIVATIONS, REDUCTIONS, PRODUCTS, FUSED)).split())
OPERATORS: dict[type[ast.operator], str] = {ast.Div: "/", ast.Pow: "**", ast.MatMult: "@"}

ALLOWED = {
    ("_arithmetic.py", "divide", "/"): "a tensor by a tensor: the one blessed quotient",
    ("_arithmetic.py", "root", "sqrt"): "in float64, then rounded: the one blessed root",
    ("_arithmetic.py", "reciprocal_root", "/"): "Python numbers, float64",
    ("integer.py", "_float_mm", "bmm"): "integers whose every partial sum float32 holds exactly",
}


@dataclass(frozen=True)
class Finding:
    function: str
    line: int
    what: str


def is_number(node: ast.expr) -> bool:
    """A literal such as 2.0 or -24."""
    return isinstance(node.operand if isinstance(node, ast.UnaryOp) else node, ast.Constant)


def inexact(node: ast.AST) -> Iterator[str]:
    """What is wrong with this one node."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        operands = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.target, node.value)
        if not all(is_number(operand) for operand in operands):
            yield OPERATORS[type(node.op)]
    elif isinstance(node, ast.Attribute):
        of_python = isinstance(node.value, ast.Name) and node.value.id == "math"
        if node.attr.rstrip("_") in FORBIDDEN and not of_python:
            yield node.attr
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in ("sum", "pow"):
            yield node.func.id
        if isinstance(node.func, ast.Attribute) and any(keyword.arg == "alpha" for keyword in node.keywords):
            yield f"{node.func.attr}(alpha=)"
    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
        yield from (f"from torch import {name.name}" for name in node.names if name.name in FORBIDDEN)


def findings(node: ast.AST, function: str = "") -> Iterator[Finding]:
    """Every inexact operation below this node, with the function that it stands in."""
    for child in ast.iter_child_nodes(node):
        inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        for what in inexact(child):
            yield Finding(inside, getattr(child, "lineno", 0), what)
        yield from findings(child, inside)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_strict_code_uses_exact_operations_only(path: Path) -> None:
    found = findings(ast.parse(path.read_text(encoding="utf-8")))
    wrong = [f for f in found if (path.name, f.function, f.what) not in ALLOWED]
    assert not wrong, f"{path.name}: inexact in strict code, use divide, root, exp, hsum or psum instead: {wrong}"


def test_every_exemption_is_in_use() -> None:
    used = {
        (path.name, f.function, f.what) for path in FILES for f in findings(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert set(ALLOWED) <= used


def test_all_operations_were_looked_at() -> None:
    names = {path.name for path in FILES}
    assert {"_arithmetic.py", "attention.py", "forward.py", "integer.py", "sampling.py", "rms_norm.py"} <= names
    assert len(FILES) >= 15


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("y = 1 / x", "/"),
        ("y = x / 3.0", "/"),
        ("y = x / y", "/"),
        ("x /= y", "/"),
        ("y = x ** 0.5", "**"),
        ("y = 2 ** x", "**"),
        ("y = a @ b", "@"),
        ("y = torch.sqrt(x)", "sqrt"),
        ("y = x.sqrt()", "sqrt"),
        ("x.sqrt_()", "sqrt_"),
        ("y = torch.rsqrt(x)", "rsqrt"),
        ("y = torch.pow(x, 0.5)", "pow"),
        ("y = pow(x, 2)", "pow"),
        ("y = x.exp()", "exp"),
        ("f = torch.exp", "exp"),
        ("y = np.exp(x)", "exp"),
        ("y = torch.softmax(x, -1)", "softmax"),
        ("y = torch.nn.functional.silu(x)", "silu"),
        ("y = torch.sigmoid(x)", "sigmoid"),
        ("y = x.cumsum(0)", "cumsum"),
        ("y = x.sum(-1)", "sum"),
        ("y = sum(parts)", "sum"),
        ("y = torch.mean(x)", "mean"),
        ("y = torch.matmul(a, b)", "matmul"),
        ("y = torch.einsum('ij,jk', a, b)", "einsum"),
        ("y = torch.nn.functional.linear(a, b)", "linear"),
        ("y = torch.addcmul(x, a, b)", "addcmul"),
        ("y = torch.add(x, a, alpha=0.5)", "add(alpha=)"),
        ("y = x.sub(a, alpha=2)", "sub(alpha=)"),
        ("y = torch.div(x, a)", "div"),
        ("y = torch.reciprocal(x)", "reciprocal"),
        ("y = torch.linalg.norm(x)", "norm"),
        ("f = torch.compile(g)", "compile"),
        ("from torch import exp", "from torch import exp"),
        ("from torch.nn.functional import silu", "from torch import silu"),
    ],
)
def test_the_lint_sees_a_planted_sample(line: str, what: str) -> None:
    source = f"def planted(x, a, b):\n    {line}\n"
    assert Finding("planted", 2, what) in set(findings(ast.parse(source)))


@pytest.mark.parametrize(
    "line",
    [
        "y = divide(1.0, x)",
        "y = exp(x) * 2.0**-24",
        "y = torch.round(x * s) - a + b",
        "n = x.shape[0] // 2",
        "y = 1.0 - x",
        "s = math.sqrt(n)",
        "y = torch.amax(torch.abs(x))",
        "y = torch._int_mm(a, b)",
        "y = hadamard(x, alpha, beta)",
    ],
)
def test_the_lint_lets_exact_code_pass(line: str) -> None:
    assert not list(findings(ast.parse(line)))

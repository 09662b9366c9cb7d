# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: D403, RET505, RUF005, SIM300
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
"""Device functions that several kernels share.

Rounding to nearest even, the pinned butterfly of the Sylvester-Hadamard transform, the pinned sum of strict arithmetic,
the strict exponential, and tuples of tiles: a program that owns the same tile of all D components keeps it in a tuple.
"""

import triton
import triton.language as tl

INTERPRET = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def narrow(v, DTYPE: tl.constexpr):
    """v in DTYPE, rounded to nearest even; the interpreter alone would cut bfloat16 off instead of rounding it."""
    if INTERPRET:
        if DTYPE == tl.bfloat16:
            wide = v.to(tl.float32)
            bits = wide.to(tl.int32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
            return tl.where(wide == wide, bits.to(tl.float32, bitcast=True), wide).to(tl.bfloat16)
        else:
            return v.to(DTYPE)
    else:
        return v.to(DTYPE)


@triton.jit
def widen(v):
    """16-bit floats as float32, others as they are: float16 and bfloat16 are never computed in."""
    if v.dtype == tl.bfloat16 or v.dtype == tl.float16:
        return v.to(tl.float32)
    else:
        return v


@triton.jit
def rint(v):
    """Round half to even for abs(v) < 2^22 (float32) or 2^51 (float64): adding 1.5 * 2^23 leaves no fraction bits."""
    if v.dtype == tl.float64:
        magic = tl.full((), 6755399441055744.0, tl.float64)
    else:
        magic = tl.full((), 12582912.0, tl.float32)
    return (v + magic) - magic


@triton.jit
def divide(a, b):
    """a / b rounded once: Triton's own ``/`` is approximate for float32."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def root(a):
    """sqrt(a) rounded once."""
    if a.dtype == tl.float64:
        return tl.sqrt(a)
    else:
        return tl.sqrt_rn(a)


@triton.jit
def butterflies(x, OUTER: tl.constexpr, N: tl.constexpr, INNER: tl.constexpr):
    """Transform along the middle axis of [OUTER, N, INNER], held flat: strides 1, 2, 4, ...; (a + b, a - b)."""
    for stage in tl.static_range(16):
        if (1 << stage) < N:
            pairs = tl.reshape(x, (OUTER * N // (2 << stage), 2, (1 << stage) * INNER))
            a, b = tl.split(tl.permute(pairs, (0, 2, 1)))
            x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), (OUTER * N * INNER,))
    return x


@triton.jit
def hsum(x, OUTER: tl.constexpr, N: tl.constexpr, INNER: tl.constexpr):
    """Strict sum along the middle axis of [OUTER, N, INNER], held flat: first half plus second; at last plus +0."""
    for stage in tl.static_range(20):
        if (N >> (stage + 1)) > 0:
            halves = tl.reshape(x, (OUTER, 2, (N >> (stage + 1)) * INNER))
            # The sum of two is the same bits in either order, and no tile is shuffled to have them side by side.
            x = tl.reshape(tl.sum(halves, 1), (OUTER * (N >> (stage + 1)) * INNER,))
    return x + 0.0


@triton.jit
def strict_exp(x):
    """The exponential of SPEC.md, section *strict arithmetic*: Cephes' polynomial without fused operations."""
    low = x < -87.0
    x = tl.where(x > 88.0, 88.0, x)
    x = tl.where(low, 0.0, x)
    n = rint(x * 1.44269504)
    t = (x - n * 0.693359375) - n * -2.12194440e-4
    p = tl.full(x.shape, 1.9875691500e-4, tl.float32)
    p = p * t + 1.3981999507e-3
    p = p * t + 8.3334519073e-3
    p = p * t + 4.1665795894e-2
    p = p * t + 1.6666665459e-1
    p = p * t + 5.0000001201e-1
    y = (p * (t * t) + t) + 1.0
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(low, 0.0, y * power)


@triton.jit
def exponential(x):
    """exp to about one ULP: the same polynomial, its scale in two steps, so that overflow and underflow are gradual."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        clamped = tl.minimum(tl.maximum(x, -120.0), 120.0)
        n = rint(clamped * 1.44269504)
        t = (clamped - n * 0.693359375) - n * -2.12194440e-4
        p = tl.full(x.shape, 1.9875691500e-4, tl.float32)
        p = p * t + 1.3981999507e-3
        p = p * t + 8.3334519073e-3
        p = p * t + 4.1665795894e-2
        p = p * t + 1.6666665459e-1
        p = p * t + 5.0000001201e-1
        y = (p * (t * t) + t) + 1.0
        whole = n.to(tl.int32)
        half = whole >> 1
        first = ((half + 127) << 23).to(tl.float32, bitcast=True)
        second = ((whole - half + 127) << 23).to(tl.float32, bitcast=True)
        return tl.where(x == x, (y * first) * second, x)


@triton.jit
def replace(items, INDEX: tl.constexpr, value):
    """The tuple with one member replaced."""
    return items[:INDEX] + (value,) + items[INDEX + 1 :]


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DTYPE: tl.constexpr):
    """A tuple of COUNT tiles [ROWS, COLS] of zeros."""
    tiles = (tl.zeros((ROWS, COLS), DTYPE),)
    for _ in tl.static_range(COUNT - 1):
        tiles = tiles + (tl.zeros((ROWS, COLS), DTYPE),)
    return tiles


@triton.jit
def tuple_butterflies(items, COUNT: tl.constexpr):
    """Unnormalised transform across the COUNT members of a tuple: additions between registers only."""
    for stage in tl.static_range(8):
        if (1 << stage) < COUNT:
            for i in tl.static_range(COUNT):
                if (i & (1 << stage)) == 0:
                    a = items[i]
                    b = items[i + (1 << stage)]
                    items = replace(items, i, a + b)
                    items = replace(items, i + (1 << stage), a - b)
    return items


@triton.jit
def decode_ternary(packed, position):
    """The code in {-1, 0, 1} at this position of its byte: two bits from bit 2 (position & 3), less one."""
    return ((packed.to(tl.int32) >> (2 * (position & 3))) & 3) - 1

# mypy: disable-error-code="import-untyped"
# Triton ships no type information.
"""Compile every shipped kernel for every target, without a GPU, and look at what came out.

Operations run on ``meta`` tensors with their launches recorded (:func:`walsh.kernels.triton._launch.record_launches`),
so what is compiled is exactly what would be launched: the same constants, dtypes, tile sizes and divisibility hints.
Each distinct launch is compiled for NVIDIA sm_80, sm_90, sm_100 and AMD gfx942, and its registers, spills, shared
memory and code size are read from the binary (NVIDIA, by the ``cuobjdump`` in Triton's package) or from the assembly
text (AMD).

It fails on shared memory past the target's limit, on a spill that :data:`EXCUSED_SPILLS` does not excuse, and on an
approximate, flushing, fused or tf32 instruction in a strict kernel's PTX.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from walsh.errors import BackendError
from walsh.kernels.triton import _launch
from walsh.kernels.triton._launch import Launch, record_launches


@dataclass(frozen=True)
class Target:
    """A machine to compile for: Triton's target and the shared memory that one program may take, in bytes."""

    name: str
    gpu: GPUTarget
    shared_limit: int


TARGETS: tuple[Target, ...] = (
    Target("sm_80", GPUTarget("cuda", 80, 32), 163 * 1024),
    Target("sm_90", GPUTarget("cuda", 90, 32), 227 * 1024),
    Target("sm_100", GPUTarget("cuda", 100, 32), 227 * 1024),
    Target("gfx942", GPUTarget("hip", "gfx942", 64), 64 * 1024),
)

EVERYTHING = "sm_90"
"""The target for which every case is compiled, also without ``full``."""

EXCUSED_SPILLS: dict[str, str] = {
    "rope_table_kernel": "no spill: the float64 cosine of huge angles keeps the digits of 2 / pi in a local array",
}
"""Why a kernel may use stack, by its name."""

FORBIDDEN = re.compile(r"\.approx|div\.full|\.ftz|\bfma\.|\.tf32")
"""What strict arithmetic excludes, in PTX."""


@dataclass(frozen=True)
class Result:
    """What one compilation gave.

    Attributes:
        case: the operation that launches the kernel.
        kernel: its name.
        target: name of the target.
        registers: per thread (AMD: vector registers).
        spills: bytes of stack, that is spilled registers and local arrays (AMD: registers spilled).
        shared: bytes of shared memory.
        code: bytes of machine code (AMD: of the code object).
        options: warps, stages and fusion.
        constants: compile-time arguments.
        problem: why this fails the check, or empty.
    """

    case: str
    kernel: str
    target: str
    registers: int
    spills: int
    shared: int
    code: int
    options: dict[str, Any]
    constants: dict[str, Any]
    problem: str


def _cuobjdump() -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def _nvidia_usage(cubin: bytes) -> tuple[int, int, int]:
    """Registers, spilled bytes and code bytes of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([_cuobjdump(), "-res-usage", file.name], capture_output=True, text=True, check=True)
        sections = subprocess.run([_cuobjdump(), "-elf", file.name], capture_output=True, text=True, check=True)
    text = usage.stdout + usage.stderr
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    code = re.search(r"^\s*[0-9a-f]+\s+[0-9a-f]+\s+([0-9a-f]+)\s.*PROGBITS.*\s\.text\.", sections.stdout, re.MULTILINE)
    if registers is None or stack is None:
        raise BackendError(f"cuobjdump printed {text[:200]!r}: expected a line with REG and STACK")
    return int(registers[1]), int(stack[1]), int(code[1], 16) if code else len(cubin)


def _amd_usage(text: str, binary: bytes) -> tuple[int, int, int]:
    """Vector registers, spilled registers and bytes, from the assembly's metadata."""
    found = {name: re.search(rf"\.{name}:\s*(\d+)", text) for name in ("vgpr_count", "vgpr_spill_count")}
    numbers = {name: int(match[1]) if match else 0 for name, match in found.items()}
    return numbers["vgpr_count"], numbers["vgpr_spill_count"], len(binary)


def _compile(case: str, launch: Launch, target: Target) -> Result:
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    problem, registers, spills, shared, code = "", 0, 0, 0, 0
    try:
        binary = triton.compile(source, target=target.gpu, options=dict(launch.options))
    except Exception as error:
        problem = f"does not compile: {type(error).__name__}: {str(error).strip()[:300]}"
    else:
        shared = int(binary.metadata.shared)
        if target.gpu.backend == "cuda":
            registers, spills, code = _nvidia_usage(binary.asm["cubin"])
        else:
            registers, spills, code = _amd_usage(binary.asm["amdgcn"], binary.asm["hsaco"])
        if shared > target.shared_limit:
            problem = f"takes {shared} bytes of shared memory: expected at most {target.shared_limit}"
        elif spills and launch.kernel.__name__ not in EXCUSED_SPILLS:
            problem = f"spills {spills}: expected none, or a reason in EXCUSED_SPILLS"
        elif ".strict" in case and target.gpu.backend == "cuda":
            forbidden = sorted(set(FORBIDDEN.findall(binary.asm["ptx"])))
            problem = f"strict, but its PTX has {', '.join(forbidden)}" if forbidden else ""
    constants = {name: _plain(value) for name, value in launch.constants.items()}
    name = launch.kernel.__name__
    return Result(case, name, target.name, registers, spills, shared, code, launch.options, constants, problem)


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def collect(full: bool) -> Iterator[tuple[str, Launch]]:
    """The distinct launches of every case, each with the name of the first case that makes it."""
    from walsh.kernels.triton._cases import cases  # imports every operation, and so the decorated kernels

    seen: set[str] = set()
    for name, call in cases(full):
        with record_launches() as launches:
            call()
        for key, launch in launches.items():
            # A kernel that a strict operation launches is held to the strict rules whoever launched it first.
            unique = ("strict " if ".strict" in name else "") + key
            if unique not in seen:
                seen.add(unique)
                yield name, launch


def _cache_path(launch: Launch, target: Target, case: str) -> Path:
    """Where the result is kept: by Triton, this file, the kernel's source with all that it calls, and the launch."""
    here = Path(__file__).read_bytes()
    text = "\0".join((triton.__version__, launch.kernel.cache_key, launch.key(), target.name, str(".strict" in case)))
    digest = hashlib.sha256(here + text.encode()).hexdigest()
    root = Path(os.environ.get("WALSH_COMPILE_CACHE", Path.home() / ".cache" / "walsh" / "compile"))
    return root / f"{digest}.json"


def compile_cached(case: str, launch: Launch, target: Target) -> Result:
    """As a compilation, or from the cache where the same one has succeeded."""
    path = _cache_path(launch, target, case)
    if path.exists():
        return Result(**json.loads(path.read_text()))
    result = _compile(case, launch, target)
    if not result.problem:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(result)))
    return result


def report(results: list[Result]) -> str:
    """A table: per kernel and target the number of variants, the most registers, spills, shared memory and code."""
    lines = [f"{'kernel':30} {'target':8} {'variants':>8} {'registers':>9} {'spills':>7} {'shared':>8} {'code':>8}"]
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.kernel, result.target), []).append(result)
    for (kernel, target), group in sorted(groups.items()):
        most = [max(getattr(r, field) for r in group) for field in ("registers", "spills", "shared", "code")]
        lines.append(f"{kernel:30} {target:8} {len(group):8} {most[0]:9} {most[1]:7} {most[2]:8} {most[3]:8}")
    lines += [
        f"FAIL {r.case}: {r.kernel} for {r.target} ({r.options}, {r.constants}): {r.problem}"
        for r in results
        if r.problem
    ]
    return "\n".join(lines)


def main(full: bool = False, json_path: Path | None = None, targets: tuple[str, ...] = ()) -> int:
    """Compile, print the report, and write it as JSON if a path is given.

    Args:
        full: all shapes and dtypes, not only the selection for continuous integration (at most 400 compilations).
        json_path: where the results go.
        targets: names of targets; all of them if empty.

    Returns:
        0 if every kernel compiles within its limits, else 1.

    Raises:
        BackendError: under TRITON_INTERPRET=1, where kernels cannot be compiled.
    """
    if _launch.INTERPRET:
        raise BackendError("TRITON_INTERPRET is set: kernels are interpreted; unset it to compile them")
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="walsh-triton-"))
    chosen = [target for target in TARGETS if not targets or target.name in targets]
    results: list[Result] = []
    started = time.monotonic()
    taken: set[tuple[str, ...]] = set()
    for case, launch in collect(full):
        for target in chosen:
            # Continuous integration compiles everything for one target, and each kind of kernel for the others.
            kind = (target.name, launch.kernel.__name__, str(launch.constants.get("DOT")))
            if not full and target.name != EVERYTHING and kind in taken:
                continue
            taken.add(kind)
            results.append(compile_cached(case, launch, target))
            last = results[-1]
            seconds = time.monotonic() - started
            print(f"{seconds:7.1f} s  {last.case:42} {last.kernel:28} {last.target:7} {last.problem[:60]}")
    print(report(results))
    failures = sum(bool(result.problem) for result in results)
    print(f"{len(results)} compilations, {failures} failures, Triton {triton.__version__}; nothing was run on a GPU")
    if json_path is not None:
        rows = [asdict(result) for result in results]
        json_path.write_text(json.dumps({"triton": triton.__version__, "results": rows}, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--full", action="store_true", help="all shapes and dtypes")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--target", action="append", default=[], help="only this target; may be repeated")
    arguments = parser.parse_args()
    raise SystemExit(main(arguments.full, arguments.json, tuple(arguments.target)))

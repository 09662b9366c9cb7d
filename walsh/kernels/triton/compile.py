# mypy: disable-error-code="import-untyped"
# Triton ships no type information.
"""Compile every shipped kernel for every target, without a GPU, and look at what came out.

Operations run on ``meta`` tensors with their launches recorded (:func:`walsh.kernels.triton._launch.record_launches`),
so what is compiled is exactly what would be launched: the same constants, dtypes, tile sizes and divisibility hints.
Each distinct launch is compiled for NVIDIA sm_80, sm_90, sm_100 and AMD gfx942, and its registers, spills, shared
memory and code size are read from the binary (NVIDIA, by the ``cuobjdump`` in Triton's package) or from the assembly
text (AMD).

Every entry of ``configs.json`` is compiled too, for the target of the device that it was measured on.

It fails on shared memory past the target's limit, on a spill without an excuse (:mod:`walsh.kernels.triton._excuses`),
and on an approximate, flushing, fused or tf32 instruction in a strict kernel's PTX.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from walsh.errors import BackendError
from walsh.kernels.triton import _launch
from walsh.kernels.triton._excuses import is_excused
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

MOST_COMPILATIONS = 400
"""What continuous integration can afford, without ``full``; configurations take the room that the cases leave."""


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
        elif _is_strict(case) and target.gpu.backend == "cuda":
            forbidden = sorted(set(FORBIDDEN.findall(binary.asm["ptx"])))
            problem = f"strict, but its PTX has {', '.join(forbidden)}" if forbidden else ""
    constants = {name: _plain(value) for name, value in launch.constants.items()}
    name = launch.kernel.__name__
    return Result(case, name, target.name, registers, spills, shared, code, launch.options, constants, problem)


def _judge(result: Result) -> Result:
    """The same, with a problem if it spills without an excuse; excuses may change without compiling again."""
    if result.problem or not result.spills or is_excused(result.kernel, result.constants, result.spills):
        return result
    return replace(result, problem=f"spills {result.spills}: expected none, or a reason in EXCUSED_SPILLS")


def _is_strict(case: str) -> bool:
    return ".strict" in case


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def collect(full: bool) -> Iterator[tuple[str, Launch, str]]:
    """The distinct launches of every case, with the name of the first that makes it and, or empty, its only target."""
    from walsh.kernels.triton._cases import cases, configured_cases  # imports every operation and kernel

    seen: set[str] = set()
    everything = chain((("", *case) for case in cases(full)), configured_cases())
    for target, name, call in everything:
        with record_launches() as launches:
            call()
        for key, launch in launches.items():
            # A kernel that a strict operation launches is held to the strict rules whoever launched it first.
            unique = ("strict " if _is_strict(name) else target) + key
            if unique not in seen:
                seen.add(unique)
                yield name, launch, target


def _cache_path(launch: Launch, target: Target, case: str) -> Path:
    """Where the result is kept: by Triton, this file, the kernel with all it calls, and the launch."""
    here = Path(__file__).read_bytes()
    text = "\0".join((triton.__version__, launch.kernel.cache_key, launch.key(), target.name, str(_is_strict(case))))
    digest = hashlib.sha256(here + text.encode()).hexdigest()
    root = Path(os.environ.get("WALSH_COMPILE_CACHE", Path.home() / ".cache" / "walsh" / "compile"))
    return root / f"{digest}.json"


def _find_cached(case: str, launch: Launch, target: Target) -> Result | None:
    path = _cache_path(launch, target, case)
    return _judge(Result(**json.loads(path.read_text()))) if path.exists() else None


def compile_cached(case: str, launch: Launch, target: Target) -> Result:
    """As a compilation, or from the cache where the same one has succeeded."""
    found = _find_cached(case, launch, target)
    if found is not None:
        return found
    result = _compile(case, launch, target)
    if not result.problem:
        path = _cache_path(launch, target, case)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: two processes may compile the same thing.
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(asdict(result)))
        partial.replace(path)
    return _judge(result)


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


def _select(full: bool, targets: Sequence[Target]) -> Iterator[tuple[str, Launch, Target]]:
    """What is compiled: everything for one target, and of each kind of kernel one launch for every other target.

    Configurations are compiled for their device's own target; without ``full`` as many as :data:`MOST_COMPILATIONS`
    leaves room for, spread over the table.
    """
    taken: set[tuple[str, ...]] = set()
    measured: list[tuple[str, Launch, Target]] = []
    count = 0
    for case, launch, only in collect(full):
        if only:
            measured += [(case, launch, target) for target in targets if target.name == only]
            continue
        for target in targets:
            kind = (target.name, launch.kernel.__name__, str(launch.constants.get("DOT")), str(_is_strict(case)))
            if not full and target.name != EVERYTHING and kind in taken:
                continue
            taken.add(kind)
            count += 1
            yield case, launch, target
    room = len(measured) if full else max(0, MOST_COMPILATIONS - count)
    yield from measured[:: max(1, -(-len(measured) // max(1, room)))][:room]


_selected: list[tuple[str, Launch, Target]] = []
"""In a worker process: what the run compiles, in the order of the parent."""


def _start(full: bool, targets: tuple[str, ...]) -> None:
    _selected.extend(_select(full, _chosen(targets)))


def _compile_number(number: int) -> Result:
    return compile_cached(*_selected[number])


def _chosen(targets: tuple[str, ...]) -> list[Target]:
    return [target for target in TARGETS if not targets or target.name in targets]


def compile_all(full: bool, targets: tuple[str, ...], jobs: int) -> Iterator[Result]:
    """Results as they come: those of the cache first, then compilations, by several processes if there are many."""
    selected = list(_select(full, _chosen(targets)))
    missing = []
    for number, (case, launch, target) in enumerate(selected):
        found = _find_cached(case, launch, target)
        if found is None:
            missing.append(number)
        else:
            yield found
    if jobs < 2 or len(missing) < 2 * jobs:
        yield from (compile_cached(*selected[number]) for number in missing)
        return
    # Spawned, not forked: a forked PyTorch keeps the locks of threads that it no longer has.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start, (full, targets)) as pool:
        for future in as_completed([pool.submit(_compile_number, number) for number in missing]):
            yield future.result()


def main(full: bool = False, folder: Path | None = None, targets: tuple[str, ...] = (), jobs: int = 0) -> int:
    """Compile, print the report, and write it as ``kernels.txt`` and ``kernels.json`` if a folder is given.

    Args:
        full: all shapes and dtypes, not only the selection for continuous integration (at most 400 compilations).
        folder: where the report goes.
        targets: names of targets; all of them if empty.
        jobs: processes; 0 for one per core.

    Returns:
        0 if every kernel compiles within its limits, else 1.

    Raises:
        BackendError: under TRITON_INTERPRET=1, where kernels cannot be compiled; for the name of no target.
    """
    if _launch.INTERPRET:
        raise BackendError("TRITON_INTERPRET is set: kernels are interpreted; unset it to compile them")
    known = [target.name for target in TARGETS]
    if unknown := sorted(set(targets) - set(known)):
        raise BackendError(f"targets {unknown}: expected some of {', '.join(known)}")
    started = time.monotonic()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="walsh-triton-") as scratch:
        # Triton's own cache would not notice a limit that changed; ours does.
        os.environ.setdefault("TRITON_CACHE_DIR", scratch)
        for result in compile_all(full, targets, jobs or os.cpu_count() or 1):
            results.append(result)
            seconds = time.monotonic() - started
            line = f"{seconds:7.1f} s  {result.case:42} {result.kernel:28} {result.target:7} {result.problem[:60]}"
            print(line.rstrip())
    results.sort(key=lambda result: (result.kernel, result.target, result.case, str(result.constants)))
    text = report(results)
    print(text)
    failures = sum(bool(result.problem) for result in results)
    summary = f"{len(results)} compilations, {failures} failures, Triton {triton.__version__}; nothing was run on a GPU"
    print(summary)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kernels.txt").write_text(f"{text}\n{summary}\n")
        rows = [asdict(result) for result in results]
        (folder / "kernels.json").write_text(json.dumps({"triton": triton.__version__, "results": rows}) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description="Compile the Triton kernels for every target; no GPU is needed.")
    parser.add_argument("--full", action="store_true", help="all shapes and dtypes")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="write kernels.txt and kernels.json here")
    parser.add_argument("--target", action="append", default=[], help="only this target; may be repeated")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 (the default) for one per core")
    arguments = parser.parse_args()
    raise SystemExit(main(arguments.full, arguments.report, tuple(arguments.target), arguments.jobs))

"""Damaged files: every one is refused with a typed error, or read right, by every reader alike.

    python -m walsh.codec.fuzz --count 100000 --seed 0

Small .walsh and SPIN files of every packing, tokenizer and kind of model are damaged: bytes changed, cut, repeated,
swapped and inserted, numbers of headers moved. What Python reads, the engine must read, and the other way round; what
passes the digests must hold the weights that went in. SPIN is read in Python and goes to the engine as .walsh. Every
other .walsh file is read without digests, so that what they hide is seen too. Time, engine memory and, on a sample,
Python's memory are bounded.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.codec import reader, spin
from walsh.codec.rows import four_bit_rows
from walsh.codec.sources import from_spin, from_walsh, strict_form_of, to_spin
from walsh.codec.tokenizer import BytePairTokenizer
from walsh.codec.writer import dump
from walsh.data.tokenizers import ByteTokenizer, CharacterTokenizer, Tokenizer
from walsh.errors import BackendError, WalshError
from walsh.reference.strict.weights import strict_weight_dtype, strict_weight_shapes

Array = NDArray[Any]

MOST_SECONDS = 5.0
"""Of one file in one reader; files here take milliseconds, the rest is a busy machine."""

MOST_MEMORY = 64 << 20
"""Bytes that a reader may take for a file of a few kilobytes: streams inflate to what their shapes state."""

BASE = {"n_layer": 1, "n_head": 8, "n_embd": 32, "vocab_size": 50, "block_size": 16}


def painted(config: Mapping[str, Any], seed: int = 0) -> dict[str, Array]:
    """Strict weights of a configuration by an integer recipe."""
    weights: dict[str, Array] = {}
    for at, (name, shape) in enumerate(strict_weight_shapes(config).items(), start=seed):
        size = int(np.prod(shape))
        values = ((np.arange(size, dtype=np.int64) * 2654435761 + at * 97) >> 7) % 255 - 127
        dtype = strict_weight_dtype(name)
        if name == "rope.inv_freq":
            weights[name] = 10000.0 ** (-np.arange(size) / max(size, 1))
        elif dtype == "int8":
            table = ".mixer." in name or name.startswith(("embedding", "head"))
            weights[name] = (values if table else values % 3 - 1).astype(np.int8).reshape(shape)
        else:
            weights[name] = (0.05 + np.abs(values) * 2.0**-12).astype(np.float32).reshape(shape)
    return weights


def samples() -> dict[str, bytes]:
    """Sound files by name."""
    pairs = BytePairTokenizer([*(bytes([i]) for i in range(256)), b"ab", b" th", "é".encode()])
    makers: dict[str, tuple[dict[str, Any], Tokenizer | None, str]] = {
        "octonion": (BASE, CharacterTokenizer("abcé你😀"), "size"),
        "hadamard": (BASE | {"algebra": "hadamard", "hadamard_size": 8, "head_mixing": True}, None, "speed"),
        "hash": (BASE | {"hash_embeddings": 2}, CharacterTokenizer("xyz"), "size"),
        "untied": (BASE | {"algebra": "dense", "tied_head": False, "vocab_size": 257}, ByteTokenizer(), "speed"),
        "pairs": (BASE | {"vocab_size": 260, "n_embd": 16}, pairs, "size"),
    }
    files = {}
    for name, (given, tokenizer, prefer) in makers.items():
        config = {"algebra": "octonion"} | given
        weights = painted(config)
        if name == "hash":
            weights["embedding.indices"] = np.stack([np.arange(50) % 7, np.zeros(50, dtype=np.int64)], axis=1)
        if name == "octonion":
            weights = four_bit_rows(weights, config)
        chosen = dict(zip([n for n in weights if ".ffn." in n and n.endswith(".codes")], _PACKINGS, strict=False))
        files[f"{name}.walsh"] = dump(weights, config, tokenizer, prefer, chosen if prefer == "size" else None)
    plain = from_walsh(dump(painted(BASE | {"algebra": "octonion", "vocab_size": 257}), BASE | _SPIN, ByteTokenizer()))
    files["plain.spin"] = to_spin(plain)
    return files


_PACKINGS = ("bitmask", "base3_deflate", "base3")
_SPIN = {"algebra": "octonion", "vocab_size": 257}


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """One small damage; half of the time in the header, now and then several."""
    changed = bytearray(content)
    header = min(8 + int.from_bytes(content[:8], "little"), len(content)) if content[:4] != spin.MAGIC else 400
    for _ in range(1 if rng.random() < 0.8 else int(rng.integers(2, 6))):
        if not changed:
            break
        end = min(header, len(changed)) if rng.random() < 0.5 else len(changed)
        at = int(rng.integers(0, end))
        kind = int(rng.integers(0, 8))
        if kind == 0:
            changed[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            changed[at] = int(rng.integers(0, 256))
        elif kind == 2:
            del changed[at : at + int(rng.integers(1, 40))]
        elif kind == 3:
            changed[at:at] = changed[at : at + int(rng.integers(1, 40))]
        elif kind == 4:
            del changed[at:]
        elif kind == 5:  # a digit of a number in JSON, or any byte, by one
            changed[at] = (changed[at] + int(rng.choice([-1, 1]))) % 256
        elif kind == 6:  # 32 bits of nothing, or all of them
            changed[at : at + 4] = bytes([int(rng.choice([0, 255]))]) * len(changed[at : at + 4])
        else:
            other = int(rng.integers(0, len(changed)))
            changed[at], changed[other] = changed[other], changed[at]
    return bytes(changed)


@dataclass
class Outcome:
    """What was found.

    Attributes:
        count: files that were read.
        refused: of them, those that were refused.
        problems: each a sentence that names the file and the number that makes it again.
        slowest: seconds of the slowest reading.
        engine_memory: most bytes of linear memory; 0 without the engine.
    """

    count: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)
    slowest: float = 0.0
    engine_memory: int = 0


class _Readers:
    """Both readers, with their clocks."""

    def __init__(self, outcome: Outcome, engine: bool) -> None:
        self._outcome, self._instance = outcome, None
        if engine:
            from walsh.engine.host import Instance

            self._instance = Instance()

    def timed(self, work: Callable[[], Any]) -> tuple[Any, str]:
        """(result, refusal): a typed error is a refusal, anything else goes on as it is."""
        began = time.perf_counter()
        try:
            return work(), ""
        except BackendError:
            raise  # a trap
        except WalshError as error:
            return None, f"{type(error).__name__}: {error}"
        finally:
            self._outcome.slowest = max(self._outcome.slowest, time.perf_counter() - began)

    def engine(self, content: bytes, verify: bool) -> str | None:
        """The engine's refusal, "" if it reads the file; None without an engine."""
        if self._instance is None:
            return None
        from walsh.engine.model import Engine

        refusal = self.timed(lambda: Engine(content, verify=verify, instance=self._instance).close())[1]
        self._outcome.engine_memory = self._instance.memory_bytes
        return refusal


def _look(readers: _Readers, sound: Mapping[str, Array] | None, content: bytes, verify: bool) -> tuple[bool, str]:
    """(whether it was refused, a problem or "")."""
    if sound is None:
        read, _ = readers.timed(lambda: from_spin(content))
        if read is None:
            return True, ""
        passed, also = readers.timed(lambda: dump(strict_form_of(read), read.config.to_dict(), read.tokenizer))
        if passed is None:
            return False, f"read, but cannot be written: {also}"
        theirs = readers.engine(passed, True)
        if theirs and not theirs.startswith("StrictError"):  # which an engine of strict arithmetic alone says
            return False, f"the engine refuses what Python made of it: {theirs}"
        return False, ""
    file, refusal = readers.timed(lambda: reader.load(content, verify))
    theirs = readers.engine(content, verify)
    if theirs is not None and bool(theirs) != bool(refusal):
        return bool(refusal), f"Python: {refusal or 'read'}; the engine: {theirs or 'read'}"
    if file is not None and verify:
        for name, weight in file.weights.items():
            if name not in sound or not np.array_equal(weight, sound[name]):
                return False, f"weight {name!r} is not what was written"
    return bool(refusal), ""


def run(count: int, seed: int = 0, engine: bool = True, notify: Callable[[Outcome], None] | None = None) -> Outcome:
    """Damage and read so many files.

    Args:
        count: files.
        seed: of the damage; file i of a seed is always the same.
        engine: read with the engine too.
        notify: told after every thousandth.

    Returns:
        The outcome; it is good if ``problems`` is empty.
    """
    outcome = Outcome()
    readers = _Readers(outcome, engine)
    files = samples()
    sound = {name: None if name.endswith(".spin") else reader.load(content).weights for name, content in files.items()}
    for number, (name, damaged) in enumerate(_damaged(files, count, seed)):
        watched = number % 50 == 0
        if watched:
            tracemalloc.start()
        try:
            refused, problem = _look(readers, sound[name], damaged, number % 2 == 0)
        except Exception as error:  # whatever is no typed refusal is what is looked for
            refused, problem = False, f"{type(error).__name__}: {error}"
        if watched:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            if peak > MOST_MEMORY:
                problem = problem or f"took {peak:,} bytes in Python"
        outcome.count += 1
        outcome.refused += refused
        if problem:
            outcome.problems.append(f"{name}, seed {seed}, file {number}: {problem}")
        if notify is not None and outcome.count % 1000 == 0:
            notify(outcome)
    if outcome.slowest > MOST_SECONDS:
        outcome.problems.append(f"one file took {outcome.slowest:.1f} s: expected at most {MOST_SECONDS}")
    if outcome.engine_memory > MOST_MEMORY:
        outcome.problems.append(f"the engine's memory grew to {outcome.engine_memory:,} bytes")
    return outcome


def _damaged(files: Mapping[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    names = sorted(files)
    for number in range(count):
        name = names[number % len(names)]
        yield name, damage(files[name], np.random.default_rng([seed, number]))


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m walsh.codec.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-engine", action="store_true", help="only the Python readers")
    given = parser.parse_args(arguments)

    def show(outcome: Outcome) -> None:
        print(f"{outcome.count:,} files, {outcome.refused:,} refused, {len(outcome.problems)} problems", flush=True)

    outcome = run(given.count, given.seed, not given.no_engine, show)
    for problem in outcome.problems[:20]:
        print(problem)
    print(
        f"{outcome.count:,} damaged files: {outcome.refused:,} refused, {outcome.count - outcome.refused:,} read, "
        f"{len(outcome.problems)} problems; slowest {outcome.slowest:.3f} s, engine {outcome.engine_memory:,} bytes"
    )
    return int(bool(outcome.problems))


if __name__ == "__main__":
    sys.exit(main())

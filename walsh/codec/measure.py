"""What a loaded model costs: memory and speed, measured in a process of its own.

resident   bytes of the weights (and of the engine's tokenizer tables), as the engine counts them
peak       most memory of the process while it loads and generates, less what it had before: imports do not count
speed      tokens per second, batch 1, after a first short run

python -m walsh.codec.measure PATH ENGINE TOKENS THREADS      prints one JSON object
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from walsh.errors import BackendError


@dataclass(frozen=True)
class Cost:
    """Of one model in one engine.

    Attributes:
        resident, peak: bytes; peak is None where the system does not say.
        tokens_per_second: of ``tokens`` tokens.
        tokens: how many were generated.
    """

    resident: int
    peak: int | None
    tokens_per_second: float
    tokens: int


def _memory() -> tuple[int, int] | None:
    """(memory now, most memory so far) of this process in bytes, where the system says; the latter starts anew."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    rows = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(rows["VmRSS"].split()[0]) * 1024, int(rows["VmHWM"].split()[0]) * 1024


def _forget_peak() -> None:
    # Where it fails the peak of the imports counts, which makes the figure larger, never smaller.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _warm_torch() -> None:
    """Import and allocate what PyTorch needs for any model: a tiny one draws a token in both arithmetics."""
    import torch

    from walsh.engine.model import Sampling
    from walsh.model.config import WalshConfig
    from walsh.model.loaded import FloatSequence, PackedSequence
    from walsh.model.packed import PackedModel
    from walsh.model.transformer import Walsh
    from walsh.reference.strict import export

    config = WalshConfig(n_layer=1, n_head=2, n_embd=32, vocab_size=9, block_size=4)
    model = Walsh(config).eval()
    torch.ones(64, 64) @ torch.ones(64, 64)
    packed = PackedModel(export({n: w.numpy() for n, w in model.state_dict().items()}, config.to_dict()), vars(config))
    for sequence in (FloatSequence(model, 4, 9), PackedSequence(packed, 4)):
        sequence.read([0, 1])
        sequence.draw(Sampling(temperature=1.0), 0)


def cost(path: Path, engine: str, tokens: int) -> Cost:
    """Load a model here and generate; meant for a fresh process."""
    from walsh.model.loaded import load

    if engine == "wasm":
        from walsh.engine.host import compiled

        compiled()
    else:
        _warm_torch()
    _forget_peak()
    before = _memory()
    model = load(path, engine)
    start = [0]
    for _ in model.tokens(start, min(4, tokens)):
        pass
    began = time.perf_counter()
    drawn = sum(1 for _ in model.tokens(start, tokens))
    seconds = time.perf_counter() - began
    after = _memory()
    peak = None if before is None or after is None else max(after[1] - before[0], 0)
    return Cost(model.resident, peak, drawn / seconds, drawn)


def measure(path: Path, engine: str, tokens: int, threads: int) -> Cost:
    """:func:`cost` in a fresh process.

    Raises:
        BackendError: if it fails there; the message is its last line.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "walsh.codec.measure", str(path), engine, str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise BackendError(f"{path} could not be measured in engine {engine}: {last}")
    return Cost(**json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(asdict(cost(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))))

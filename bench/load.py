"""From a file to weights in memory, in the order in which a model needs them; files are in the page cache.

float32 safetensors (the checkpoint), packed safetensors (2 bits a ternary weight, unpacked to codes)

A safetensors file is mapped, not read: of what nobody computes with, a cache line a page is all that must move.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from walsh.codec import dump, read_walsh
from walsh.kernels.torch import pack_ternary, unpack_ternary
from walsh.measure.case import Absent, Case, Inputs, Provider, Setting, Work
from walsh.measure.models import Model, choose_model

PAGE, LINE = 4096, 64


def lines(size: int) -> float:
    """Bytes that touching every page of so many moves."""
    return size / PAGE * LINE


def unpack(path: Path, widths: dict[str, int]) -> dict[str, Tensor]:
    return {name: unpack_ternary(w, widths[name]) if name in widths else w for name, w in load_file(path).items()}


def make_fresh(model: Model, folder: Path) -> object:
    """Writes both files with one row of the embedding changed: a loader that remembers is found out."""
    base = dict(model.weights)
    packed = {name: pack_ternary(w.to(torch.int8)) if w.ndim == 3 else w for name, w in base.items()}

    def fresh(seed: int) -> dict[str, object]:
        table = base["embedding.weight"]
        table[0] = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(seed))
        save_file(base, folder / "float32.safetensors")
        save_file(packed, folder / "packed.safetensors")
        return {"float32": folder / "float32.safetensors", "packed": folder / "packed.safetensors", "row": table[0]}

    return fresh


def cases(setting: Setting) -> Iterable[Case | Absent]:
    if setting.device != "cpu":
        return
    model = choose_model(setting)
    folder = Path(tempfile.mkdtemp(prefix="walsh-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    widths = {name: w.shape[2] for name, w in model.weights.items() if w.ndim == 3}

    def check(inputs: Inputs, output: dict[str, Tensor], seed: int) -> float:
        names = sorted(model.weights)
        name = names[seed % len(names)]
        same = torch.equal(output[name].float(), model.weights[name].float())
        return 0.0 if same and torch.equal(output["embedding.weight"][0], inputs["row"]) else float("inf")

    whole, packed = model.model_bytes(dense=False, bits=32), model.model_bytes(dense=False, bits=2)
    codes = [model.weights[name].to(torch.int8) for name in widths]
    others = sum(w.nbytes for name, w in model.weights.items() if name not in widths)
    unpacking = sum(pack_ternary(q).nbytes + q.nbytes for q in codes)
    yield Case(
        op="load",
        name=f"load/C{model.n_embd}-V{model.vocabulary}",
        shape=model.shape(),
        dtype="float32",
        work=Work(0, lines(whole)),
        fresh=make_fresh(model, folder),  # type: ignore[arg-type]  # a dict of paths and a tensor
        check=check,
        providers=(
            Provider("safetensors float32", lambda i: touch(load_file(i["float32"])), model_bytes=whole),
            Provider(
                "packed safetensors",
                lambda i: touch(unpack(i["packed"], widths)),
                "torch",
                Work(0, unpacking + lines(others)),
                model_bytes=packed,
            ),
        ),
        warm=True,
        at_least=5,
    )
    yield container(model, folder)


def container(model: Model, folder: Path) -> Case:
    """The ``.walsh`` file of strict weights, digests verified, against the same weights unpacked in safetensors."""
    weights = {name: np.ascontiguousarray(w) for name, w in model.exported.items()}

    def fresh(seed: int) -> dict[str, Path]:
        codes = weights["embedding.codes"]
        codes[0] = np.random.default_rng(seed).integers(-127, 128, codes.shape[1])
        (folder / "model.walsh").write_bytes(dump(weights, model.config, prefer="speed"))
        save_file({name: torch.from_numpy(w) for name, w in weights.items()}, folder / "int8.safetensors")
        return {"walsh": folder / "model.walsh", "int8": folder / "int8.safetensors"}

    def check(_: Inputs, output: dict[str, Any], seed: int) -> float:
        names = sorted(weights)
        same = all(np.array_equal(output[n], weights[n]) for n in (names[seed % len(names)], "embedding.codes"))
        return 0.0 if same else float("inf")

    whole = sum(w.nbytes for w in weights.values())
    packed = len(dump(weights, model.config, prefer="speed"))
    return Case(
        op="load",
        name=f"load/strict/C{model.n_embd}-V{model.vocabulary}",
        shape=model.shape(),
        dtype="int8",
        work=Work(0, lines(whole)),
        fresh=fresh,
        check=check,
        providers=(
            Provider("safetensors int8", lambda i: touch(load_file(i["int8"])), model_bytes=whole),
            Provider(
                ".walsh file",
                lambda i: read_walsh(i["walsh"]).weights,
                "torch",
                Work(0, float(whole + packed)),
                model_bytes=packed,
            ),
        ),
        warm=True,
        at_least=5,
    )


def touch(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read a byte of every page: a mapped file has loaded nothing yet, and reading more would time the reading."""
    for w in weights.values():
        w.reshape(-1).view(torch.uint8)[::PAGE].sum()
    return weights

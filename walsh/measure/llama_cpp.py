"""llama.cpp on the dense twin, for context: the weights of ``plain.densify`` in a GGUF file, read by its C library.

    token_embd                  [V, C]       also the head: the file has no ``output``
    blk.L.attn_q, k, v, output  [C, C]       the architecture "llama" rotates pairs (2i, 2i + 1), as ours does
    blk.L.ffn_gate, up          [hidden, C]
    blk.L.ffn_down              [C, hidden]
    norms                       [C]          float32, epsilon 1e-6

    float16   two bytes                                    times float16 activations
    Q8_0      32 int8 and their float16 scale              times int8 activations, a scale for 32
    TQ2_0     256 codes of 2 bits and their float16 scale  times int8 activations, a scale for 256; embedding as Q8_0

TQ2_0 is llama.cpp's own ternary format, and so the nearest peer of a ternary model. An element of a dense octonion
matrix is 0 or plus or minus the beta of its row, which the format holds exactly but for the rounding of beta to
float16; a dense Hadamard matrix is not ternary, and has no such row. Formats with blocks need rows of whole blocks: the
hidden width is padded with zeros, which changes nothing, since silu(0) 0 = 0.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from walsh.errors import BackendError
from walsh.measure.case import Absent, Check, Inputs, Provider, Setting
from walsh.measure.kernels import peer
from walsh.measure.models import Model

NAME = "llama.cpp"
NAMES = {
    "blocks": "blk",
    "embedding": "token_embd",
    "norm": "output_norm",
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}
"""Parts of our names as GGUF has them; what is missing is the same."""


@dataclass(frozen=True)
class Format:
    """How llama.cpp stores a matrix.

    Attributes:
        name: as reports show it.
        matrix, embedding: GGUF's names of the types.
        block: values of a row that share a scale.
        peak: the multiplication rate that bounds it.
        tolerance: of logits against the definition with float activations, as ``checks.share`` measures it.
    """

    name: str
    matrix: str
    embedding: str
    block: int
    peak: str
    tolerance: float


# Seen on the published shapes: 0.008, 0.16 and 0.2; walsh's own int8 activations, too, are 0.2 away from float ones.
FLOAT16 = Format("float16", "F16", "F16", 1, "float32", 0.03)
Q8_0 = Format("Q8_0", "Q8_0", "Q8_0", 32, "int8", 0.3)
TQ2_0 = Format("TQ2_0", "TQ2_0", "Q8_0", 256, "int8", 0.4)


def formats(model: Model) -> tuple[Format, ...]:
    """Those that hold the dense twin of a model."""
    return (FLOAT16, Q8_0) if model.algebra == "hadamard" else (FLOAT16, Q8_0, TQ2_0)


def without_llama_cpp(setting: Setting, case: str) -> list[Absent]:
    """Why llama.cpp is not among the providers of a case, if it is not."""
    if setting.device != "cpu":
        return [Absent(case, NAME, "measured on a CPU only")]
    for package in ("llama-cpp-python", "gguf"):
        missing = peer(case, NAME, package, setting)
        if missing:
            return [missing]
    return [Absent(case, NAME, "left out of a quick run")] if setting.quick else []


def rename(name: str) -> str:
    """``blocks.3.attention.wq.weight`` to ``blk.3.attn_q.weight``."""
    *parents, kind = name.split(".")
    block, parts = parents[:2] if parents[0] == "blocks" else [], parents[2:] if parents[0] == "blocks" else parents
    return ".".join([*(NAMES.get(part, part) for part in block), NAMES.get(".".join(parts), ".".join(parts)), kind])


def tensors(model: Model, form: Format) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """GGUF names and values, the hidden width padded to whole blocks."""
    extra = -int(model.config["ffn_hidden"]) % form.block
    for name, weight in model.plain.weights.items():
        value = weight.numpy()
        if ".ffn." in name:
            value = np.pad(value, ((0, 0), (0, extra)) if ".down." in name else ((0, extra), (0, 0)))
        yield rename(name), value


def write_gguf(model: Model, form: Format, path: Path) -> None:
    """The dense twin as a GGUF file without a vocabulary."""
    gguf = importlib.import_module("gguf")
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    hidden = math.ceil(config["ffn_hidden"] / form.block) * form.block
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(model.vocabulary)
    writer.add_context_length(config["block_size"])
    writer.add_embedding_length(model.n_embd)
    writer.add_feed_forward_length(hidden)
    writer.add_block_count(model.n_layer)
    writer.add_head_count(model.n_head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, value in tensors(model, form):
        stored = "F32" if value.ndim == 1 else form.embedding if name.startswith("token_embd") else form.matrix
        kind = gguf.GGMLQuantizationType[stored]
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_SAID: deque[str] = deque(maxlen=4)


@cache
def _library() -> tuple[Any, Any]:
    """The package, which says what it does on stderr unless it is told to whom else, and the function that it tells."""
    library = importlib.import_module("llama_cpp")
    listener = library.llama_log_callback(lambda _, text, __: _SAID.append(text.decode("utf-8", "replace").strip()))
    library.llama_log_set(listener, ctypes.c_void_p(0))
    library.llama_backend_init()
    return library, listener


def _refused(what: str) -> BackendError:
    return BackendError(f"llama.cpp {what}: {' '.join(filter(None, _SAID)) or 'it said nothing'}")


class Loaded:
    """A model in llama.cpp's memory.

    Args:
        model: whose dense twin it is.
        form: of its matrices.

    Raises:
        BackendError: if llama.cpp refuses the file, with what it said.
    """

    def __init__(self, model: Model, form: Format) -> None:
        self.vocabulary = model.vocabulary
        library, _ = _library()
        with tempfile.TemporaryDirectory(prefix="walsh-") as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(model, form, path)
            self.bytes = path.stat().st_size
            parameters = library.llama_model_default_params()
            parameters.n_gpu_layers = 0  # some builds use a GPU wherever they find one
            self.handle = library.llama_model_load_from_file(bytes(path), parameters)
        if not self.handle:
            raise _refused("cannot load the model")
        weakref.finalize(self, library.llama_model_free, self.handle)


@cache
def load(model: Model, form: Format) -> Loaded:
    """One copy for all cases."""
    return Loaded(model, form)


class Sequence:
    """Tokens that were read, with their keys and values in float16.

    Args:
        loaded: the model.
        capacity: most tokens.
    """

    def __init__(self, loaded: Loaded, capacity: int) -> None:
        self._library, self._loaded = _library()[0], loaded
        parameters = self._library.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = capacity
        parameters.offload_kqv = parameters.op_offload = False
        self._context = self._library.llama_init_from_model(loaded.handle, parameters)
        if not self._context:
            raise _refused("cannot make a context")
        weakref.finalize(self, self._library.llama_free, self._context)

    def read(self, ids: Tensor, past: int = 0, last: bool = False) -> Tensor:
        """Logits [1, T, V] of ids [1, T] that follow the first ``past`` tokens, on as many threads as PyTorch uses.

        With ``last`` those of the last token only, [1, 1, V].

        Raises:
            BackendError: if llama.cpp refuses to truncate or to compute.
        """
        library, count, threads = self._library, ids.shape[1], torch.get_num_threads()
        library.llama_set_n_threads(self._context, threads, threads)
        if not library.llama_memory_seq_rm(library.llama_get_memory(self._context), 0, past, -1):
            raise _refused(f"cannot truncate to {past} tokens")
        tokens = (ctypes.c_int32 * count)(*ids[0].tolist())
        batch = library.llama_batch_get_one(tokens, count)
        if not last:
            # Without this it computes the logits of the last token only.
            batch.logits = (ctypes.c_int8 * count)(*[1] * count)
        if library.llama_decode(self._context, batch) != 0:
            raise _refused(f"cannot read {count} tokens")
        logits = torch.empty(1, 1 if last else count, self._loaded.vocabulary)
        ctypes.memmove(logits.data_ptr(), library.llama_get_logits(self._context), 4 * logits.numel())
        return logits


def make_provider(
    model: Model, form: Format, tokens: int, prompt: Tensor | None, check: Check, last: bool = False
) -> Provider:
    """Reads ``tokens`` tokens after a prompt, which is read here and now; ``last``: for the logits of the last one."""
    past = 0 if prompt is None else prompt.shape[1]
    loaded = load(model, form)
    sequence = Sequence(loaded, past + tokens)
    if prompt is not None:
        sequence.read(prompt)

    def run(inputs: Inputs) -> Tensor:
        return sequence.read(inputs["ids"], past, last)

    work = replace(
        model.work(tokens, dense=True, bits=16, heads=1 if last else None), bytes=float(loaded.bytes), peak=form.peak
    )
    if last:
        # It leaves out what nobody asked for: the last block's feed-forward half of all tokens but one.
        spared = 3 * model.n_embd * int(model.config["ffn_hidden"])
        work = replace(work, flops=work.flops - 2.0 * (tokens - 1) * spared)
    return Provider(f"{NAME} {form.name}", run, work=work, check=check, model_bytes=loaded.bytes)


def providers(
    case: str, model: Model, tokens: int, prompt: Tensor | None, check: Callable[[float], Check], last: bool = False
) -> tuple[list[Provider], list[Absent]]:
    """llama.cpp in every format that fits, and what it refused to do.

    Args:
        case: that they belong to.
        model: whose dense twin is read.
        tokens: of one call.
        prompt: ids [1, P] that stand before them.
        check: from a tolerance to a check of the logits.
        last: whether the logits of the last token are enough.
    """
    found: list[Provider] = []
    refused: list[Absent] = []
    for form in () if without_llama_cpp(model.setting, case) else formats(model):
        try:
            found.append(make_provider(model, form, tokens, prompt, check(form.tolerance), last))
        except Exception as error:
            # Other people's code, of any version: one that does not work here is one peer less.
            refused.append(Absent(case, f"{NAME} {form.name}", f"{type(error).__name__}: {error}"[:200]))
    return found, refused

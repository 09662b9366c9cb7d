"""Walsh models for the package transformers: ``WalshForCausalLM``, registered as an AutoModel (extra ``walsh[hf]``).

    walsh convert RUN --to transformers --output FOLDER                    # or export(model, tokenizer, folder)

    import walsh.huggingface                                               # registers
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    logits = model(input_ids, attention_mask).logits                       [B, T, V]

Programs that import nothing of walsh's, such as evaluation harnesses, find it through the folder if they are told to
trust its code, which is one import:

    lm_eval --model hf --model_args pretrained=FOLDER,trust_remote_code=True --tasks TASK

Padding may stand on either side: rows are shifted to the left before the model sees them and their logits shifted back,
so padding never influences a token. There is no cache here; ``walsh generate`` has one and is the fast way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from walsh.data.tokenizers import Tokenizer
from walsh.errors import ParameterError
from walsh.huggingface_tokenizer import FILE, WalshTokenizer
from walsh.kernels import torch as kernels
from walsh.model.config import WalshConfig
from walsh.model.transformer import Walsh

FIELDS = tuple(WalshConfig.__dataclass_fields__)


class WalshHFConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is not typed
    """The keys of ``WalshConfig`` as a configuration of transformers; validated when the model is made."""

    model_type = "walsh"
    attribute_map = {  # noqa: RUF012  # transformers' own way of giving other names
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "block_size",
    }

    def __init__(self, **given: Any) -> None:
        defaults = {name: field.default for name, field in WalshConfig.__dataclass_fields__.items()}
        for name in FIELDS:
            setattr(self, name, given.pop(name, defaults[name]))
        # A tied head has no weight of its own here, so transformers has nothing to tie.
        given["tie_word_embeddings"] = False
        given.setdefault("use_cache", False)
        super().__init__(**given)

    def to_walsh(self) -> WalshConfig:
        """The configuration of the model inside.

        Raises:
            ParameterError: for a value that is wrong.
        """
        return WalshConfig.from_dict({name: getattr(self, name) for name in FIELDS})


class WalshForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # transformers is not typed
    """A Walsh model with the interface of transformers.

    Attributes:
        model: the ``Walsh`` inside.
    """

    config_class = WalshHFConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_cache_class = False
    _no_split_modules = ["Block"]  # noqa: RUF012  # transformers' own way

    def __init__(self, config: WalshHFConfig) -> None:
        super().__init__(config)
        inside = config.to_walsh()
        if torch.get_default_device().type == "meta":
            # from_pretrained makes an empty model first; there is nothing to draw or to measure.
            shapes = inside.weight_shapes()
            self.model = Walsh(inside, weights={name: torch.empty(shape) for name, shape in shapes.items()})
        else:
            self.model = Walsh(inside)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: ``Walsh`` has initialised every layer, and nothing may overwrite it."""

    @classmethod
    def from_walsh(cls, model: Walsh) -> WalshForCausalLM:
        """The same model, weights copied.

        Raises:
            ParameterError: if it has codes, stored indices or tables of other heights, which transformers' files of
            this model cannot say.
        """
        state = model.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if shapes != model.config.weight_shapes() or not all(t.is_floating_point() for t in state.values()):
            raise ParameterError(
                "the model has codes, stored indices or hash tables of other heights: expected float weights of the "
                "shapes of its configuration"
            )
        made = cls(WalshHFConfig(**model.config.to_dict()))
        made.model.load_state_dict(state)
        made.eval()
        return made

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **_ignored: Any,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Logits, and the loss if there are labels.

        Args:
            input_ids: integer [B, T].
            attention_mask: [B, T], 0 where there is padding, on either side.
            labels: integer [B, T], the ids themselves; -100 where none counts. They are shifted here.
            return_dict: False for a tuple.
            _ignored: what other models take.
        """
        order = None
        if attention_mask is not None and not bool((attention_mask != 0).all()):
            # Stable: tokens keep their order and padding goes to the end, where no token sees it.
            order = torch.argsort((attention_mask == 0).to(torch.int8), dim=1, stable=True)
            input_ids = input_ids.masked_fill(attention_mask == 0, 0).gather(1, order)
        logits = self.model(input_ids)
        if order is not None:
            logits = logits.gather(1, order.argsort(dim=1)[..., None].expand_as(logits))
        loss = None
        if labels is not None:
            targets = torch.where(labels < 0, -1, labels)[:, 1:]
            loss = kernels.cross_entropy(logits[:, :-1].float(), targets)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The last tokens that the context holds, and their mask; what a cache would need is dropped."""
        del kwargs
        window = self.config.block_size
        return {
            "input_ids": input_ids[:, -window:],
            "attention_mask": None if attention_mask is None else attention_mask[:, -window:],
        }

    def get_input_embeddings(self) -> nn.Module:
        """The module that holds the embedding's weights."""
        return self.model.get_submodule("embedding")

    def get_output_embeddings(self) -> None:
        """None: the head is tied, or inside."""


AutoConfig.register("walsh", WalshHFConfig)
AutoModelForCausalLM.register(WalshHFConfig, WalshForCausalLM)
AutoTokenizer.register(WalshHFConfig, slow_tokenizer_class=WalshTokenizer)

CODE = """\"\"\"Lets programs that know nothing of walsh load this model: pip install 'walsh[hf]'.\"\"\"

from walsh.huggingface import WalshForCausalLM, WalshHFConfig, WalshTokenizer

__all__ = ["WalshForCausalLM", "WalshHFConfig", "WalshTokenizer"]
"""


def export(model: Walsh, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder that transformers reads: weights, configuration, tokenizer, and the import that finds them.

    Args:
        model: with float weights.
        tokenizer: of the model.
        folder: made if need be.

    Raises:
        ParameterError: as :meth:`WalshForCausalLM.from_walsh`; or the model has no end token.
    """
    end = tokenizer.end_token
    if end >= model.config.vocab_size:
        raise ParameterError(f"the end token {end} is not among the model's {model.config.vocab_size}: train with one")
    made = WalshForCausalLM.from_walsh(model)
    made.config.auto_map = {
        "AutoConfig": "modeling_walsh.WalshHFConfig",
        "AutoModelForCausalLM": "modeling_walsh.WalshForCausalLM",
    }
    made.config.bos_token_id = made.config.eos_token_id = made.config.pad_token_id = end
    made.generation_config.bos_token_id = made.generation_config.eos_token_id = end
    made.generation_config.pad_token_id = end
    made.save_pretrained(folder)
    (folder / "modeling_walsh.py").write_text(CODE, encoding="utf-8")
    (folder / FILE).write_text(json.dumps(tokenizer.to_dict(), sort_keys=True) + "\n", encoding="utf-8")
    auto = {"auto_map": {"AutoTokenizer": ["modeling_walsh.WalshTokenizer", None]}}
    WalshTokenizer(str(folder / FILE), model_max_length=model.config.block_size, **auto).save_pretrained(folder)

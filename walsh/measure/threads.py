"""Providers on PyTorch's own choice of threads and on one; llama.cpp uses as many as PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from walsh.measure.case import Inputs, Provider, Setting


def one_thread(provider: Provider) -> Provider:
    """The same on one thread, which is faster where a product is too small to share."""

    def run(inputs: Inputs) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return provider.run(inputs)
        finally:
            torch.set_num_threads(threads)

    # Its bytes and counts are those of the other, which stands there on every machine.
    return replace(provider, name=f"{provider.name}, one thread", run=run, exact_counts=False, model_bytes=None)


def each_way(setting: Setting, providers: Sequence[Provider]) -> list[Provider]:
    """Each with PyTorch's own choice of threads and, where that is a choice, with one."""
    if setting.device != "cpu" or torch.get_num_threads() == 1:
        return list(providers)
    return [way for provider in providers for way in (provider, one_thread(provider))]

"""Export: ordinary weights as codes and scales, as it is written, the same in both packages."""

from __future__ import annotations

import numpy as np
import pytest
from both_packages import F32, assert_same_bits, to_torch
from strict_models import MODELS, make_weights

from walsh import errors
from walsh.kernels.torch import strict as torch_strict
from walsh.reference import strict


@pytest.mark.parametrize("name", MODELS)
def test_export_has_the_promised_shapes_and_is_the_same_in_both(name: str) -> None:
    config = MODELS[name]
    weights = make_weights(config, seed=7)
    exported = strict.export(weights, config)
    assert {n: w.shape for n, w in exported.items()} == strict.strict_weight_shapes(config)
    found = torch_strict.export(to_torch(weights), config)
    assert list(found) == list(exported)
    for key, value in exported.items():
        assert_same_bits(value, found[key])


def test_export_rounds_as_it_is_written() -> None:
    config = MODELS["octonion_mixer"]
    weights = make_weights(config)
    weights["embedding.weight"][3] = 0.0
    weights["blocks.0.mixer.weight"][:, :, 2] = 0.0
    exported = strict.export(weights, config)
    w = weights["blocks.0.ffn.up.weight"].astype(np.float64)
    gamma = np.abs(w).mean() + 1e-8
    np.testing.assert_array_equal(exported["blocks.0.ffn.up.codes"], np.clip(np.rint(w / gamma), -1, 1))
    row = weights["embedding.weight"][5].astype(np.float64)
    scale = F32(np.abs(row).max() / 127)
    assert exported["embedding.scale"][5] == scale
    np.testing.assert_array_equal(exported["embedding.codes"][5], np.rint(row / np.float64(scale)))
    assert exported["embedding.scale"][3] == 0
    assert not exported["embedding.codes"][3].any()
    mixer = weights["blocks.0.mixer.weight"].astype(np.float64)
    columns = (np.abs(mixer).max(axis=(0, 1)) / 127).astype(F32)
    np.testing.assert_array_equal(exported["blocks.0.mixer.scale"], columns)
    assert not exported["blocks.0.mixer.codes"][:, :, 2].any()
    d = config["n_embd"] // config["n_head"]
    np.testing.assert_allclose(exported["rope.inv_freq"], 10000.0 ** (-2 * np.arange(d // 2) / d), rtol=1e-15)


def test_export_keeps_codes_and_refuses_bad_weights() -> None:
    config = MODELS["dense"]
    weights = make_weights(config)
    name = "blocks.0.attention.wq.weight"
    codes = strict.export(weights, config)["blocks.0.attention.wq.codes"]
    np.testing.assert_array_equal(strict.export({**weights, name: codes}, config)["blocks.0.attention.wq.codes"], codes)
    nan = weights[name].copy()
    nan[0, 0, 0] = np.nan
    for wrong, error in (
        ({**weights, name: nan}, errors.NonFiniteError),
        ({**weights, "norm.weight": np.full(32, 1e300)}, errors.NonFiniteError),
        ({k: v for k, v in weights.items() if k != name}, errors.ParameterError),
        ({**weights, "extra": nan}, errors.ParameterError),
        ({**weights, name: weights[name][:, 1:]}, errors.ShapeError),
    ):
        with pytest.raises(error):
            strict.export(wrong, config)
        with pytest.raises(error):
            torch_strict.export(to_torch(wrong), config)

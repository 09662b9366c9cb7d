"""Calls of every differentiable operation, (name, arguments, parameters), with optional arguments and without."""

import itertools
from typing import Any

import numpy as np
from definitions import normal

IDS = np.array([[1, 0, 2], [2, 2, 1]])
TARGETS = np.array([[1, -1, 2], [0, 3, 1]])
POSITIONS = np.array([[0, 2, -1], [3, 1, 1]])
TABLES = [normal(4, 3), normal(3, 3)]
INDICES = np.array([[0, 1], [3, 1], [3, 0], [1, 2]])
SMOOTH: list[tuple[str, list[Any], dict[str, Any]]] = [
    *(
        ("cayley_dickson_linear", [normal(2, 3, 2 * d), normal(d, 3, 2), beta, None], {})
        for d, beta in itertools.product((1, 2, 4, 8, 16), (None, normal(3)))
    ),
    ("cayley_dickson_linear", [normal(16), normal(8, 1, 2), np.zeros(1), None], {}),
    ("hadamard_transform", [normal(2, 8)], {}),
    ("hadamard_transform", [normal(2, 8)], {"normalize": False}),
    ("hadamard_linear", [normal(2, 8), normal(4, 3, 2), normal(4, 2), normal(4, 3)], {}),
    ("hadamard_linear", [normal(1, 2, 8), normal(4, 3, 2), None, None], {}),
    ("head_mixer", [normal(2, 4, 3), normal(2, 3, 3), normal(3)], {"algebra": "complex"}),
    ("head_mixer", [normal(4, 3), normal(4, 3, 3), None], {"algebra": "quaternion"}),
    ("head_mixer", [normal(2, 16, 2), normal(8, 2, 2), normal(2)], {}),
    ("head_mixer", [normal(1, 16, 1), normal(16, 1, 1), normal(1)], {"algebra": "sedenion"}),
    ("head_mixer", [normal(2, 8, 2), normal(4, 2, 2), normal(2)], {"algebra": "hadamard"}),
    ("rms_norm", [normal(2, 3, 4), normal(4)], {}),
    ("rms_norm", [normal(4), normal(4)], {"eps": 0.5}),
    ("rope", [normal(2, 3, 2, 4), None], {}),
    ("rope", [normal(2, 3, 2, 4), np.array([[0, 1, 7], [3, 4, 5]])], {"theta": 100.0}),
    ("attention", [normal(2, 3, 2, 4), normal(2, 4, 2, 4), normal(2, 4, 2, 4), None], {}),
    ("attention", [normal(2, 3, 2, 4), normal(2, 4, 2, 4), normal(2, 4, 2, 4), POSITIONS], {}),
    ("swiglu", [3 * normal(3, 4), normal(3, 4)], {}),
    ("embedding", [IDS, normal(4, 3)], {}),
    ("hash_embedding", [IDS, TABLES, normal(4, 2), INDICES], {"scale": 1.5}),
    ("hash_embedding", [IDS, [normal(4, 2), normal(4, 2), normal(4, 2)], normal(4, 3), None], {}),
    ("lm_head", [normal(2, 3, 3), normal(4, 3)], {}),
    ("hash_lm_head", [normal(2, 3), TABLES, normal(4, 2), INDICES], {}),
    ("hash_lm_head", [normal(1, 2, 2), [normal(4, 2), normal(1, 2)], normal(4, 2), None], {}),
    ("cross_entropy", [3 * normal(2, 3, 4), TARGETS], {}),
    ("linear_cross_entropy", [normal(2, 3, 5), normal(4, 5), TARGETS], {"chunk_size": 2}),
]

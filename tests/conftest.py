"""Profiles of hypothesis: ``dev`` while writing, ``ci`` the same on every machine, ``deep`` when there is time,
``brief`` where each example is slow (kernels in Triton's interpreter).

``HYPOTHESIS_PROFILE=deep pytest tests/properties`` chooses one; without it, ``ci`` where CI is set, else ``dev``.
"""

import os

from hypothesis import HealthCheck, Phase, settings

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}

settings.register_profile("dev", max_examples=15, stateful_step_count=12, **COMMON)
settings.register_profile("ci", max_examples=40, stateful_step_count=20, derandomize=True, print_blob=True, **COMMON)
settings.register_profile("brief", max_examples=4, stateful_step_count=6, derandomize=True, print_blob=True, **COMMON)
settings.register_profile(
    "deep",
    max_examples=500,
    stateful_step_count=40,
    print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
    **COMMON,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

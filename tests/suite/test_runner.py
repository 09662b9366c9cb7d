"""The runner against backends that misbehave in one way each."""

import json
from datetime import date

import numpy as np
import pytest

from walsh.errors import DTypeError, ShapeError, VectorError
from walsh.suite.backend import OutputMismatch, Skip, deliver
from walsh.suite.deviations import load_deviations
from walsh.suite.policy import load_policy
from walsh.suite.runner import Exit, combine_exits, run_backend, run_case
from walsh.suite.schema import dump_canonical
from walsh.suite.tensors import encode
from walsh.suite.vectors import load_suite


@pytest.fixture
def run(toys, small):
    cases = load_suite(small, min_cases=1).cases

    def run(backend, deviations=None, chosen=cases):
        return run_backend(backend, chosen, toys.policy, deviations)

    return run


def make(toys, body, **description):
    """A backend whose run is ``body(right, params, inputs, out)``; ``right`` does what is right."""

    class Odd(toys.Butterfly):
        def describe(self):
            return {**super().describe(), **description}

        def run(self, op, params, inputs, out):
            def right():
                return toys.Butterfly.run(self, op, params, inputs, out)

            return body(right, params, inputs, out)

    return Odd()


def outcomes(found):
    return [outcome.outcome for outcome in found.outcomes]


def test_a_right_backend_passes(run, toys):
    seen = []
    found = run_backend(
        toys.Butterfly(), [o.case for o in run(toys.Butterfly()).outcomes], toys.policy, None, seen.append
    )
    assert outcomes(found) == ["pass"] * 4
    assert found.exit_code == Exit.CONFORMING
    assert [outcome.case.name for outcome in seen] == [outcome.case.name for outcome in found.outcomes]


def sneak(array, offset):
    """Write one element outside of an array that the runner handed over."""
    base = array
    while base.base is not None:
        base = base.base
    start = (array.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // array.itemsize
    base.view(array.dtype)[start + offset] = 7


def last_row_missing(right, params, inputs, out):
    y = out["y"]
    kept = y[-1:].copy()
    right()
    y[-1:] = kept


def alternating():
    state = {"calls": 0}

    def body(right, params, inputs, out):
        right()
        state["calls"] += 1
        if state["calls"] % 2 == 0:
            out["y"].flat[0] += 1

    return body


def caching():
    state = {}

    def body(right, params, inputs, out):
        right()
        out["y"][...] = state.setdefault("first", out["y"].copy())

    return body


def contiguous_only(right, params, inputs, out):
    x = inputs["x"]
    flat = np.lib.stride_tricks.as_strided(x, x.shape, (2 * x.itemsize, x.itemsize))  # forgets the strides
    if x.shape[-1] != 2:
        right()
    out["y"][..., 0], out["y"][..., 1] = flat[..., 0] + flat[..., 1], flat[..., 0] - flat[..., 1]


def clobbers(right, params, inputs, out):
    right()
    inputs["x"].flat[0] += 1


def clobbers_between(right, params, inputs, out):
    right()
    x = inputs["x"]
    if not x.flags.c_contiguous:
        base = x.base
        base[..., 0] = 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda right, p, i, out: (right(), sneak(out["y"], -1)), "1 element(s) before its start"),
        (lambda right, p, i, out: (right(), sneak(out["y"], -3)), "3 element(s) before its start"),
        (lambda right, p, i, out: (right(), sneak(out["y"], out["y"].size)), "1 element(s) past its end"),
        (lambda right, p, i, out: (right(), sneak(out["y"], out["y"].size + 4)), "5 element(s) past its end"),
        (clobbers, "input x was changed"),
        (clobbers_between, "with strided inputs: input x was changed"),
        (last_row_missing, "never wrote element [2, 0] of y (2 of 6)"),
        (lambda right, p, i, out: None, "never wrote element [0, 0] of y (6 of 6)"),
        (alternating(), "different bits"),
        (contiguous_only, "with strided inputs"),
        (lambda right, p, i, out: out["y"].fill(np.nan if out["y"].dtype.kind == "f" else 0), "differ"),
        (lambda right, p, i, out: out["y"].fill(1), "differ"),
        (lambda right, p, i, out: out["y"].__setitem__(..., i["x"]) if i["x"].shape[-1] == 2 else right(), "differ"),
    ],
)
def test_misbehaviour_fails(run, toys, body, message):
    def guarded(right, params, inputs, out):
        body(right, params, inputs, out)

    found = run(make(toys, guarded))
    values = [outcome for outcome in found.outcomes if outcome.case.lane == "exact"]
    assert [outcome.outcome for outcome in values] == ["fail"] * 3
    assert message in values[0].message
    assert found.exit_code == Exit.FAILURE


def test_a_cached_first_answer_fails(run, toys):
    # From the first case on: what was cached is the answer to other values in the same memory.
    assert outcomes(run(make(toys, caching())))[:2] == ["fail", "fail"]


def test_integers_equal_to_a_poison_are_not_called_unwritten(toys, tmp_path):
    # -91 is 0xA5 in int8, the first poison.
    x = np.array([[-91, 0]], dtype=np.int8)
    test = toys.exact_test(0)
    test |= {
        "inputs": {"x": encode(x)},
        "outputs": {"y": {"dtype": "int8", "shape": [1, 2]}},
        "result": {"y": {**encode(np.array([[-91, -91]], dtype=np.int8)), "compare": {"rule": "bits"}}},
    }
    cases = load_suite(toys.write_suite(tmp_path, [toys.group([test])]), min_cases=1).cases
    assert outcomes(run_backend(toys.Butterfly(), cases, toys.policy)) == ["pass"]


def test_an_exception_is_an_error(run, toys):
    def body(right, params, inputs, out):
        if inputs["x"].dtype == np.int32:
            raise RuntimeError("no such kernel")
        right()

    found = run(make(toys, body))
    assert outcomes(found) == ["pass", "pass", "error", "pass"]
    assert found.outcomes[2].message == "RuntimeError: no such kernel"
    assert "Traceback" in found.outcomes[2].trace


def test_even_exiting_is_an_error(run, toys):
    def body(right, params, inputs, out):
        raise SystemExit(0)

    assert run(make(toys, body)).broken


def test_smoke_tells_a_broken_adapter_from_a_wrong_kernel(run, toys):
    def dead(right, params, inputs, out):
        raise ImportError("nothing works")

    broken = run(make(toys, dead))
    assert broken.exit_code == Exit.BROKEN
    assert "smoke" in broken.broken
    assert len(broken.outcomes) == 1

    wrong = run(make(toys, lambda right, p, i, out: out["y"].fill(1)))
    assert wrong.exit_code == Exit.FAILURE
    assert len(wrong.outcomes) == 4


@pytest.mark.parametrize(
    ("raised", "own", "expected"),
    [
        (ShapeError("x"), True, "pass"),
        (type("Deeper", (ShapeError,), {})("x"), True, "pass"),
        (ValueError("x"), False, "pass"),
        (ValueError("x"), True, "fail"),
        (TypeError("x"), False, "fail"),
        (DTypeError("x"), False, "fail"),
        (VectorError("x"), False, "fail"),
        (RuntimeError("x"), False, "fail"),
    ],
)
def test_the_right_error_is_asked_for(run, toys, raised, own, expected):
    def body(right, params, inputs, out):
        if inputs["x"].shape[-1] == 3:
            raise raised
        right()

    assert outcomes(run(make(toys, body, own=own)))[-1] == expected


def test_an_invalid_case_must_raise_and_leave_outputs_alone(run, toys):
    def silent(right, params, inputs, out):
        if inputs["x"].shape[-1] == 2:
            right()

    def hasty(right, params, inputs, out):
        out["y"].flat[0] = 0
        right()

    assert "returned normally, expected ShapeError" in run(make(toys, silent)).outcomes[-1].message
    assert "wrote to y before it raised ShapeError" in run(make(toys, hasty)).outcomes[-1].message


def test_skips(run, toys):
    def no_integers(right, params, inputs, out):
        return Skip("float only", "https://example.org/1") if inputs["x"].dtype.kind == "i" else right()

    found = run(make(toys, no_integers))
    assert outcomes(found) == ["pass", "pass", "skip", "pass"]
    assert found.outcomes[2].message == "float only (https://example.org/1)"
    assert found.exit_code == Exit.CONFORMING


def test_declared_refusals(run, toys):
    found = run(make(toys, lambda right, p, i, o: right(), dtypes=["float32"]))
    assert outcomes(found) == ["pass", "pass", "skip", "pass"]
    nothing = run(make(toys, lambda right, p, i, o: right(), calls=["rope"]))
    assert outcomes(nothing) == ["skip"] * 4
    assert nothing.exit_code == Exit.INCOMPLETE


def test_a_refusal_may_not_depend_on_values(run, toys):
    def choosy(right, params, inputs, out):
        return Skip("not this one") if inputs["x"].flat[0] == 1 else right()

    found = run(make(toys, choosy))
    assert outcomes(found) == ["pass", "fail", "pass", "pass"]
    assert "(not this one), though" in found.outcomes[1].message


def test_a_skip_that_comes_late_is_a_failure(run, toys):
    state = {"calls": 0}

    def body(right, params, inputs, out):
        state["calls"] += 1
        return Skip("tired") if state["calls"] > 1 else right()

    assert "skipped" in run(make(toys, body)).outcomes[0].message


def test_unstrided_backends_are_not_run_strided(run, toys):
    assert outcomes(run(make(toys, lambda r, p, i, o: contiguous_only(r, p, i, o), strided=False))) == ["pass"] * 4


def test_actual_tensors_are_kept_when_asked_for(small, toys):
    case = load_suite(small, min_cases=1).cases[0]
    backend = toys.Butterfly()
    kept = run_case(backend, backend.describe(), case, toys.policy, keep=True).actual
    assert kept["y"].tolist() == [[3, -3], [15, -3], [27, -3]]
    assert not run_case(backend, backend.describe(), case, toys.policy).actual


def test_deliver():
    out = {"y": np.zeros(2, dtype=np.float32)}
    deliver({"y": np.ones(2, dtype=np.float32), "more": 1}, out)
    assert out["y"].tolist() == [1, 1]
    deliver({"y": np.full(2, 1 + 2.0**-30)}, out, cast=True)
    assert out["y"].tolist() == [1, 1]
    for wrong in ({}, {"y": np.ones(2)}, {"y": np.ones(3, dtype=np.float32)}):
        with pytest.raises(OutputMismatch, match="output y"):
            deliver(wrong, out)


def test_a_result_of_the_wrong_shape_is_a_failure_not_an_error(run, toys):
    def body(right, params, inputs, out):
        right()
        deliver({"y": np.zeros(1, dtype=np.float32)}, out)

    assert outcomes(run(make(toys, body)))[:3] == ["fail"] * 3


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], 0),
        ([0, 1], 1),
        ([2, 1], 1),
        ([0, 2], 2),
        ([3, 1], 3),
        ([4, 3], 4),
        ([], 3),
    ],
)
def test_the_gravest_exit_code_wins(codes, expected):
    assert combine_exits(Exit(code) for code in codes) == expected


def deviate(root, *entries, backend="butterfly"):
    listed = [
        {
            "case": case,
            "reason": "known to be wrong",
            "issue": "https://example.org/2",
            "date": "2024-01-01",
            "expiry": expiry,
        }
        for case, expiry in entries
    ]
    (root / "deviations").mkdir()
    document = {"schema": 1, "backend": backend, "deviations": listed}
    (root / "deviations" / "butterfly.json").write_bytes(dump_canonical(document))
    names = [case.name for case in load_suite(root, min_cases=1).cases]
    return load_deviations(root, "butterfly", names, today=date(2024, 6, 1))


def wrong_integers(right, params, inputs, out):
    right()
    if inputs["x"].dtype.kind == "i":
        out["y"] += 1


def test_a_deviation_that_holds(run, toys, small):
    deviations = deviate(small, ("hadamard/exact/*-2", "2024-06-01"))
    found = run(make(toys, wrong_integers), deviations)
    assert outcomes(found) == ["pass", "pass", "xfail", "pass"]
    assert found.exit_code == Exit.CONFORMING
    assert "https://example.org/2" in found.outcomes[2].note


def test_an_unexpected_pass(run, toys, small):
    found = run(toys.Butterfly(), deviate(small, ("hadamard/exact/case-2", "2024-06-02")))
    assert outcomes(found) == ["pass", "pass", "xpass", "pass"]
    assert found.exit_code == Exit.UNEXPECTED_PASS


@pytest.mark.parametrize(
    ("entry", "message"), [(("*/case-2", "2024-05-31"), "expired"), (("rope/*", "2025-01-01"), "no case")]
)
def test_deviations_that_are_failures_themselves(run, toys, small, entry, message):
    deviations = deviate(small, entry)
    found = run(toys.Butterfly(), deviations)
    assert outcomes(found) == ["pass"] * 4
    assert message in found.problems[0]
    assert found.exit_code == Exit.FAILURE
    if message == "expired":
        assert outcomes(run(make(toys, wrong_integers), deviations))[2] == "fail"


def test_deviations_of_another_backend(small):
    with pytest.raises(VectorError, match="other"):
        deviate(small, backend="other")


def write_policy(root, *entries, **defaults):
    (root / "policy.json").write_bytes(dump_canonical({"schema": 1, "defaults": defaults, "entries": list(entries)}))
    return load_policy(root)


ENTRY = {
    "op": "hadamard",
    "lane": "exact",
    "dtype": "float32",
    "reason": "measured on every backend",
    "measured": 2.0,
    "date": "2024-01-01",
}


def test_policy_prefers_the_most_specific_entry(small):
    case = load_suite(small, min_cases=1).cases[0]
    policy = write_policy(
        small,
        {**ENTRY, "ulp": 3},
        {**ENTRY, "ulp": 4, "call": "hadamard_transform"},
        {**ENTRY, "ulp": 5, "backend": "slow"},
        {**ENTRY, "ulp": 9, "call": "hadamard_linear"},
        {**ENTRY, "share": 0.25},
        exact={"ulp": 1},
    )
    assert policy.budget(case, "float32", "any", own=False).ulp == 4
    assert policy.budget(case, "float32", "slow", own=False).ulp == 5
    assert policy.budget(case, "float64", "any", own=False).ulp == 1
    # Only our own backends are narrowed to a share, and held to the preferred choice.
    assert policy.budget(case, "float32", "any", own=False).share == 1.0
    assert policy.budget(case, "float32", "any", own=True).share == 0.25
    assert policy.budget(case, "float32", "any", own=True).preferred


@pytest.mark.parametrize(
    "entry",
    [
        {**ENTRY},
        {**ENTRY, "ulp": 3, "share": 0.5},
        {**ENTRY, "share": 1.5},
        {**{key: value for key, value in ENTRY.items() if key != "reason"}, "ulp": 3},
        {**{key: value for key, value in ENTRY.items() if key != "measured"}, "ulp": 3},
        {**{key: value for key, value in ENTRY.items() if key != "date"}, "ulp": 3},
        {**ENTRY, "ulp": 3, "date": "2024-13-01"},
        {**ENTRY, "ulp": 3, "colour": "red"},
    ],
)
def test_policy_entries_owe_a_reason(small, entry):
    with pytest.raises(VectorError):
        write_policy(small, entry)


def test_policy_entries_are_unique(small):
    with pytest.raises(VectorError, match="two entries"):
        write_policy(small, {**ENTRY, "ulp": 3}, {**ENTRY, "ulp": 4})


def test_the_shipped_policy_loads(small):
    assert load_policy(small).digest


def test_outcomes_can_be_written_as_json(run, toys):
    from walsh.suite.report import case_line

    for outcome in run(make(toys, wrong_integers)).outcomes:
        json.dumps(case_line(outcome), allow_nan=False)


@pytest.mark.parametrize(("description", "own"), [({}, False), ({"own": False}, False), ({"own": True}, True)])
def test_only_our_own_backends_are_held_to_narrowed_budgets(run, toys, monkeypatch, description, own):
    asked = []
    budget = toys.policy.budget

    class Asked:
        def __getattr__(self, name):
            return getattr(toys.policy, name)

        def budget(self, case, dtype, backend, own):
            asked.append(own)
            return budget(case, dtype, backend, own)

    backend = make(toys, lambda right, *_: right(), **description)
    cases = [outcome.case for outcome in run(toys.Butterfly()).outcomes]
    run_backend(backend, cases, Asked())
    assert asked
    assert set(asked) == {own}

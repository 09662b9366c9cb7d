"""No proof, no timing."""

import pytest

from walsh.measure.verdict import NotConforming, judge_report
from walsh.suite.report import Report

MANIFEST, COMMIT = "a" * 64, "c" * 40


def make_report(outcomes=("pass", "pass"), commit=COMMIT, manifest=MANIFEST, problems=()):
    cases = tuple(
        {"backend": "torch", "case": f"case/{i}", "outcome": outcome, "error": 0.0}
        for i, outcome in enumerate(outcomes)
    )
    return Report({"commit": commit, "manifest": manifest}, cases, {"problems": list(problems)})


def test_a_passing_report_of_this_commit_and_these_vectors_is_proof():
    found = judge_report(make_report(("pass", "skip", "xfail")), "torch", MANIFEST, COMMIT)
    assert (found.passed, found.skipped, found.manifest) == (1, 1, MANIFEST)


@pytest.mark.parametrize(
    ("report", "commit", "message"),
    [
        (make_report(manifest="b" * 64), COMMIT, "about vectors"),
        (make_report(commit="d" * 40), COMMIT, "about commit"),
        (make_report(commit=COMMIT + "+"), COMMIT + "+", "uncommitted"),
        (make_report(commit=None), None, "about commit"),
        (make_report(("pass", "fail")), COMMIT, "1 fail, for example case/1"),
        (make_report(("pass", "error")), COMMIT, "1 error"),
        (make_report(("pass", "xpass")), COMMIT, "1 xpass"),
        (make_report(("skip", "skip")), COMMIT, "nothing passed"),
        (make_report(problems=["torch: deviation expired"]), COMMIT, "deviation expired"),
    ],
)
def test_anything_less_is_not(report, commit, message):
    with pytest.raises(NotConforming, match=message):
        judge_report(report, "torch", MANIFEST, commit)


def test_the_proof_of_one_backend_says_nothing_about_another():
    with pytest.raises(NotConforming, match="triton does not conform"):
        judge_report(make_report(), "triton", MANIFEST, COMMIT)


def test_the_digest_depends_on_every_outcome():
    digests = {
        judge_report(make_report(outcomes), "torch", MANIFEST, COMMIT).digest
        for outcomes in (("pass", "pass"), ("pass", "skip"), ("pass", "pass", "pass"))
    }
    assert len(digests) == 3

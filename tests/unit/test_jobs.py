"""What ends a job, and what its log says."""

from __future__ import annotations

import logging

import pytest

from utterflow.errors import UserError
from utterflow.jobs import Progress, check_rejected, job_log, log
from utterflow.records import RejectedRow


def rejected(*reasons: str) -> list[RejectedRow]:
    return [RejectedRow(id=f"r{i}", stage="s", reason=reason) for i, reason in enumerate(reasons)]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("bad key", where="here", fix="mend it"), 1, "bad key"),
        (OSError(28, "No space left on device", "results/x"), 1, "No space left on device: results/x"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_users_and_systems_errors_have_no_traceback(tmp_path, error, status, message):
    with pytest.raises(SystemExit) as ended, job_log(tmp_path / "a" / "job.log"):
        raise error
    assert ended.value.code == status
    text = (tmp_path / "a" / "job.log").read_text()
    assert message in text and "Traceback" not in text


def test_faults_of_the_workflow_keep_their_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), job_log(tmp_path / "job.log"):
        _ = 1 / 0
    assert "Traceback" in (tmp_path / "job.log").read_text()


def test_the_log_is_closed_again(tmp_path):
    with job_log(tmp_path / "job.log"):
        log.info("inside")
    log.info("outside")
    text = (tmp_path / "job.log").read_text()
    assert "inside" in text and "outside" not in text


def test_rejected_rows_are_summed_up_by_kind(caplog):
    log.propagate = True
    with caplog.at_level(logging.WARNING, "utterflow"):
        check_rejected(rejected("missing: a", "missing: b", "broken: c"), 10, 0.5)
    assert "2 rejected as missing; first: r0, missing: a" in caplog.text
    with pytest.raises(UserError, match=r"3 of 10 rows .* max_rejected 0.2 .* missing"):
        check_rejected(rejected("missing: a", "missing: b", "broken: c"), 10, 0.2)
    check_rejected([], 0, 0.0)


def test_progress_says_what_is_left(caplog):
    log.propagate = True
    progress = Progress(4, every=0)
    with caplog.at_level(logging.INFO, "utterflow"):
        progress.advance(1)
        progress.advance(3)
    assert "1/4 rows" in caplog.text and "4/4 rows" in caplog.text

"""The way to a cluster may break while a job is waited for."""

from types import SimpleNamespace

import pytest

from shoal.cluster import jobs as module
from shoal.cluster.errors import ResourceError, RunError
from shoal.cluster.jobs import Job, Jobs
from shoal.experiment import from_dict
from shoal.verbs import jobs as verb

pytest.importorskip("aiohttp", reason="ray[default] is not installed: pip install 'shoal[jobs]'")


class Client:
    """Ray's, over a way that breaks: each call takes the next of its turns."""

    def __init__(self, statuses, tails=()):
        self.statuses, self.tails = list(statuses), list(tails)

    def get_job_info(self, name):
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status is None:
            raise ConnectionError("reset by peer")
        times = {"start_time": 0, "end_time": 0, "driver_exit_code": 0}
        return SimpleNamespace(
            submission_id=name, status=SimpleNamespace(value=status), metadata={}, message="", **times
        )

    async def tail_job_logs(self, name):
        for lines in self.tails.pop(0):
            if lines is None:
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            yield lines


@pytest.fixture
def over(monkeypatch):
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.2)

    def make(*arguments):
        jobs = object.__new__(Jobs)
        jobs.address, jobs._client = "http://head:8265", Client(*arguments)
        return jobs

    return make


def test_a_short_break_is_bridged(over):
    jobs = over(["RUNNING", None, None, "RUNNING", None, "SUCCEEDED"])
    assert jobs.wait("one").status == "SUCCEEDED"


def test_a_long_one_is_told(over):
    with pytest.raises(ResourceError, match="does not answer any more"):
        over(["RUNNING", None]).wait("one")


@pytest.mark.parametrize(
    "tails",
    [
        [["a\nb\n", "c\nd\n"]],
        [["a\nb\n", None], ["a\n", "b\nc\n", "d\n"]],
        [["a\nb\n", "c\n", None], [None], ["a\nb\nc\nd\n"]],
    ],
)
def test_what_a_job_prints_is_handed_on_once(over, tails):
    heard = []
    assert over(["RUNNING"] * 4 + ["SUCCEEDED"], tails).follow("one", heard.append).has_ended
    assert "".join(heard) == "a\nb\nc\nd\n"


def test_logs_that_cannot_be_read_do_not_keep_from_the_end(over):
    heard = []
    job = over(["RUNNING", "RUNNING", "FAILED"], [["a\n", None]] + [[None]] * 9).follow("one", heard.append)
    assert (job.status, heard) == ("FAILED", ["a\n"])


def test_a_cluster_that_is_lost_is_no_wrong_request(over, monkeypatch):
    lost = over(["RUNNING", None])
    monkeypatch.setattr(lost, "attempts", lambda key: [Job("one", "RUNNING")], raising=False)
    monkeypatch.setattr(verb, "Jobs", lambda address: lost)
    experiment = from_dict(
        {
            "data": {"path": "s3://lake/rows.parquet", "target": "y"},
            "cluster": {"storage_path": "s3://bucket/runs", "cache_path": "/tmp/shards"},
        }
    )
    with pytest.raises(RunError, match="job one was lost sight of, and may go on") as told:
        verb.submit("train", experiment, lost.address, wait=True)
    assert told.value.exit_code == 1

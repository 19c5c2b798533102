"""Jobs on actors and tasks: each once, in order, one at a time per actor; actors end however the jobs do."""

from collections import Counter, deque
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from pipeline.distributed import actor_pool
from pipeline.distributed.actor_pool import (
    JobFailure,
    NodeLostError,
    WorkerStartError,
    outcomes_of_actors,
    results_of_actors,
    results_of_tasks,
)


class FakeRay:
    """Ray's calls, in this process: the reference last given out is the first to be done."""

    def __init__(self, monkeypatch) -> None:
        self.submitted, self.killed, self.most_running = [], [], 0
        self.dead = []
        self.num_late, self.has_node = 0, True
        self.lost_with_their_node, self.die_at_start = set(), set()
        self._running = []
        monkeypatch.setattr(actor_pool, "ray", self)
        self.no_room_from = 10**9
        monkeypatch.setattr(actor_pool, "_readiness", self.readiness)
        monkeypatch.setattr(actor_pool, "_is_alive", lambda actor: actor not in self.lost_with_their_node)

    def start_actor(self) -> str:
        self.started = getattr(self, "started", 0) + 1
        return f"actor {self.started}"

    def submit(self, actor, job):
        reference = (actor, job)
        self.submitted.append(reference)
        self._running.append(reference)
        self.most_running = max(self.most_running, len(self._running))
        busy = Counter(actor for actor, _ in self._running)
        assert actor is None or busy[actor] == 1
        return reference

    def readiness(self, actor):
        """Of an actor for which there is no room, it comes after all that runs."""
        reference = (actor, "is there")
        self._running.insert(0 if int(actor.split()[1]) >= self.no_room_from else len(self._running), reference)
        return reference

    def wait(self, references, num_returns, timeout):
        assert (set(references), num_returns) == (set(self._running), 1)
        if self.num_late:
            self.num_late -= 1
            return [], self._running
        return [self._running.pop()], self._running

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "own")

    def nodes(self):
        return [{"NodeID": "own", "Alive": self.has_node}, {"NodeID": "other", "Alive": True}]

    def get(self, reference):
        actor, job = reference
        if actor in self.lost_with_their_node or (actor in self.die_at_start and job == "is there"):
            raise RayActorError
        if job == "bad":
            raise ValueError("a bad job")
        if job == "raises":
            raise RayTaskError("make", "traceback", KeyError("9x9"))
        if job == "breaks the GPU":
            raise RayTaskError("make", "traceback", RuntimeError("CUDA error: an illegal memory access"))
        if job == "kills" or (job == "kills once" and self.submitted.count(reference) + len(self.dead) == 1):
            self.dead.append(reference)
            raise RayActorError
        if job == "is cut off" and actor == "actor 1":
            raise ActorUnavailableError("socket closed", None)
        return f"result of {job}"

    def kill(self, actor):
        self.killed.append(actor)


@pytest.fixture
def ray(monkeypatch):
    return FakeRay(monkeypatch)


@pytest.mark.parametrize("num_jobs", [0, 1, 2, 3, 10])
def test_each_job_runs_once_in_order_on_no_more_actors_than_jobs(ray, num_jobs):
    jobs = [f"job {number}" for number in range(num_jobs)]
    with results_of_actors(ray.start_actor, ray.submit, jobs, 3) as results:
        assert sorted(results) == sorted((job, f"result of {job}") for job in jobs)
        assert ray.killed == []
    assert [job for _, job in ray.submitted] == jobs
    assert ray.most_running == min(num_jobs, 3)
    assert ray.killed == [f"actor {number}" for number in range(1, min(num_jobs, 3) + 1)]


def test_the_next_job_goes_to_the_idle_actor_before_another_result_is_awaited(ray):
    with results_of_actors(ray.start_actor, ray.submit, ["a", "b", "c"], 2) as results:
        assert next(results) == ("b", "result of b")
        assert next(results) == ("c", "result of c")
    assert ray.submitted == [("actor 1", "a"), ("actor 2", "b"), ("actor 2", "c")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_actors_end_when_the_block_is_left_early(ray, error):
    def run():
        with results_of_actors(ray.start_actor, ray.submit, ["a", "b", "c"], 2) as results:
            next(results)
            raise error

    with pytest.raises(error):
        run()
    assert ray.killed == ["actor 1", "actor 2"]


def test_late_results_are_awaited_while_the_node_of_the_program_is_there(ray):
    ray.num_late = 3
    with results_of_actors(ray.start_actor, ray.submit, ["a", "b"], 1) as results:
        assert list(results) == [("a", "result of a"), ("b", "result of b")]
    assert ray.num_late == 0


def test_a_program_whose_node_is_lost_does_not_wait_for_ever(ray):
    ray.num_late, ray.has_node = 1, False
    with (
        pytest.raises(NodeLostError, match="the same command goes on"),
        results_of_actors(ray.start_actor, ray.submit, ["a", "b"], 2) as results,
    ):
        next(results)
    assert ray.killed == ["actor 1", "actor 2"]


def test_the_error_of_a_job_is_raised_and_the_actors_end(ray):
    with (
        pytest.raises(ValueError, match="a bad job"),
        results_of_actors(ray.start_actor, ray.submit, ["a", "bad", "c"], 2) as results,
    ):
        list(results)
    assert ray.killed == ["actor 1", "actor 2"]


def test_actors_end_when_one_of_them_cannot_start(ray):
    def start():
        if getattr(ray, "started", 0):
            raise RuntimeError("no more")
        return ray.start_actor()

    with pytest.raises(RuntimeError, match="no more"), results_of_actors(start, ray.submit, ["a", "b"], 2):
        pass
    assert ray.killed == ["actor 1"]


def test_tasks_are_all_submitted_at_once_and_come_as_they_finish(ray):
    results = results_of_tasks(lambda job: ray.submit(None, job), ["a", "b", "c"])
    assert list(results) == [(job, f"result of {job}") for job in "cba"]
    assert [job for _, job in ray.submitted] == ["a", "b", "c"]
    assert ray.most_running == 3
    with pytest.raises(ValueError, match="a bad job"):
        list(results_of_tasks(lambda job: ray.submit(None, job), ["a", "bad"]))


def test_an_actor_that_dies_is_replaced_and_its_job_is_done_again(ray):
    jobs = deque(["a", "kills once", "b"])
    with outcomes_of_actors(ray.start_actor, ray.submit, jobs, 2, 3) as outcomes:
        assert sorted(outcomes) == [(job, f"result of {job}") for job in ("a", "b", "kills once")]
    assert (ray.started, len(ray.dead)) == (3, 1)
    assert ray.killed == ["actor 1", "actor 2", "actor 3"]


def test_an_actor_for_which_there_is_no_room_any_more_keeps_no_job_waiting(ray):
    """As where a host is lost: what it had in hand goes to those that are left."""
    ray.no_room_from = 3
    jobs = deque(["a", "kills once", "b", "c"])
    with outcomes_of_actors(ray.start_actor, ray.submit, jobs, 2, 3) as outcomes:
        found = dict(outcomes)
    assert found == {job: f"result of {job}" for job in ("a", "b", "c", "kills once")}
    assert (ray.started, len(ray.dead)) == (3, 1)
    assert {actor for actor, _ in ray.submitted} == {"actor 1", "actor 2"}
    assert ray.killed == ["actor 1", "actor 2", "actor 3"]


def test_an_actor_that_dies_before_it_is_there_costs_no_job_an_attempt(ray):
    """As one that was started on a host that was just being lost; but where none can start, jobs fail."""
    ray.die_at_start = {"actor 3"}
    with outcomes_of_actors(ray.start_actor, ray.submit, deque(["a", "kills once", "b"]), 2, 2) as outcomes:
        assert dict(outcomes) == {job: f"result of {job}" for job in ("a", "b", "kills once")}
    assert (ray.started, len(ray.dead)) == (4, 1)
    ray.die_at_start = {f"actor {number}" for number in range(5, 100)}
    with outcomes_of_actors(ray.start_actor, ray.submit, deque(["kills", "c"]), 1, 2) as outcomes:
        assert all(isinstance(outcome, JobFailure) for _, outcome in outcomes)
    assert ray.started == 4 + 5  # in whose hands it died, one that cost no attempt, one for it and two for the other


def test_an_actor_that_cannot_be_reached_is_ended_so_that_it_keeps_no_room(ray):
    with outcomes_of_actors(ray.start_actor, ray.submit, deque(["a", "is cut off"]), 1, 2) as outcomes:
        assert dict(outcomes) == {job: f"result of {job}" for job in ("a", "is cut off")}
    assert ray.submitted == [("actor 1", "a"), ("actor 1", "is cut off"), ("actor 2", "is cut off")]
    assert ray.killed == ["actor 1", "actor 1", "actor 2"]


def test_a_job_whose_actors_all_die_fails_and_loses_no_other(ray):
    with outcomes_of_actors(ray.start_actor, ray.submit, deque(["kills", "a", "b"]), 1, 3) as outcomes:
        found = dict(outcomes)
    assert (found["a"], found["b"]) == ("result of a", "result of b")
    assert isinstance(found["kills"].error, RayActorError)
    assert (ray.started, len(ray.dead)) == (4, 3)


def test_a_job_that_raises_fails_and_others_may_be_added_in_its_place(ray):
    jobs, found = deque(["raises", "a"]), {}
    with outcomes_of_actors(ray.start_actor, ray.submit, jobs, 1, 3) as outcomes:
        for job, outcome in outcomes:
            found[job] = outcome
            if job == "raises":
                jobs.append("b")
    assert (found["a"], found["b"]) == ("result of a", "result of b")
    assert isinstance(found["raises"], JobFailure)
    assert isinstance(found["raises"].error, RayTaskError)
    assert isinstance(found["raises"].error.cause, KeyError)
    assert ray.started == 1


def test_without_another_attempt_the_death_of_an_actor_is_raised(ray):
    with pytest.raises(RayActorError), results_of_actors(ray.start_actor, ray.submit, ["kills", "a"], 1) as results:
        list(results)
    assert ray.killed == ["actor 1"]


def test_actors_that_a_lost_node_took_while_they_were_idle_cost_a_job_no_attempt(ray):
    jobs, found = deque(["a", "b", "c", "d"]), {}
    with outcomes_of_actors(ray.start_actor, ray.submit, jobs, 4, 2) as outcomes:
        for job, outcome in outcomes:
            found[job] = outcome
            if job == "a":  # the last of the four: all actors are idle
                ray.lost_with_their_node = {"actor 1", "actor 2", "actor 3"}
                jobs.append("last")
    assert found["last"] == "result of last"
    assert ray.submitted[4:] == [("actor 1", "last"), ("actor 4", "last")]


def test_an_actor_whose_gpu_failed_gets_no_other_job(ray):
    with outcomes_of_actors(ray.start_actor, ray.submit, deque(["breaks the GPU", "a", "raises", "b"]), 1, 3) as found:
        outcomes = dict(found)
    assert (outcomes["a"], outcomes["b"]) == ("result of a", "result of b")
    assert [actor for actor, _ in ray.submitted] == ["actor 1", "actor 2", "actor 2", "actor 2"]
    assert ray.killed == ["actor 1", "actor 1", "actor 2"]  # the first at once


TRACEBACK = """The actor died because of an error raised in its creation task, ray::A.__init__() (pid=1)
  File "job.py", line 5, in __init__
    raise CheckpointError("...")
CheckpointError: x/base.safetensors is damaged
Restore it"""


def test_the_error_of_a_constructor_is_told_at_once(ray, monkeypatch):
    def get(reference):
        raise RayActorError(error_msg=TRACEBACK, actor_init_failed=True)

    monkeypatch.setattr(ray, "get", get)
    told = "a worker process cannot be set up: CheckpointError: x/base.safetensors is damaged\nRestore it"
    with (
        pytest.raises(WorkerStartError, match=rf"^{told}$"),
        outcomes_of_actors(ray.start_actor, ray.submit, deque(["a", "b"]), 1, 3) as outcomes,
    ):
        next(outcomes)
    assert ray.started == 1

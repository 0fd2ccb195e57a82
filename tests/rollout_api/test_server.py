"""What the server promises: order, steps, leases, restarts, minimums, staleness, room."""

from __future__ import annotations

import gzip
import json
import re
import zlib

import msgspec
import pytest
from api_server import environment, group, registration

from shoal.rollout_api.protocol import GROUP_FIELDS, BatchReply
from shoal.rollout_api.server.records import ServerOptions


def firsts(reply: dict) -> list[int] | None:
    """The first token of each group in a batch."""
    return None if reply["batch"] is None else [each["tokens"][0][0] for each in reply["batch"]]


def begin(client, batch_size: int = 8, **values) -> None:
    """Registers a trainer that has asked for a batch once."""
    assert client.post("/register", json=registration(batch_size, **values)).status_code == 200
    assert client.get("/batch").json()["batch"] is None


def post(client, *numbers: int, **values) -> None:
    for number in numbers:
        assert client.post("/scored_data", json=group(first=number, **values)).json() == {"status": "received"}


def test_the_reason_for_no_batch_says_who_is_silent_or_that_nobody_is_there(start):
    client = start(ServerOptions(environment_timeout=0.0))
    client.post("/register", json=registration(8))

    def reason() -> str:
        return client.get("/batch").json()["reason"]

    assert reason().endswith("; no environment is registered")
    client.post("/register-env", json=environment())
    assert re.search(r"; silent: \w+_0 for \d+ s$", reason())
    client.post("/disconnect-env", json={"env_id": 0})
    assert reason().endswith("; every environment has said goodbye")
    client.post("/scored_data", json=group())
    assert reason() == "4 of 8 sequences are waiting"


def test_batches_come_oldest_first_and_step_counts_what_was_delivered(start):
    client = start()
    begin(client)
    post(client, 1, 2, 3, 4)
    assert client.get("/status").json() == {"current_step": 0, "queue_size": 4, "weights_version": 0}
    assert firsts(client.get("/batch").json()) == [1, 2]
    assert client.get("/status").json()["current_step"] == 1
    assert firsts(client.get("/batch").json()) == [3, 4]
    assert client.get("/status").json() == {"current_step": 2, "queue_size": 0, "weights_version": 1}


def test_every_group_in_a_batch_has_all_14_fields_as_they_were_sent(start):
    client = start()
    begin(client, 4)
    sent = group(inference_logprobs=[[1.0, -0.1, -1e-07]] * 4, group_overrides={"é": [None, {"a": 1.0}]})
    client.post("/scored_data", json=sent)
    answer = client.get("/batch")
    (received,) = answer.json()["batch"]
    # Each once, also where a parser would take the last of two.
    assert [answer.text.partition('"lease"')[0].count(f'"{name}":') for name in GROUP_FIELDS] == [1] * 14
    assert sorted(received) == sorted(GROUP_FIELDS)
    assert received == {**dict.fromkeys(GROUP_FIELDS), **sent}


def test_scores_may_be_booleans_and_become_numbers(start):
    client = start()
    begin(client, 4)
    client.post("/scored_data", json=group(scores=[True, False, 1, 0.5]))
    (received,) = client.get("/batch").json()["batch"]
    assert received["scores"] == [1.0, 0.0, 1, 0.5]
    assert not any(isinstance(score, bool) for score in received["scores"])


def test_data_posted_before_the_registration_is_kept(start):
    client = start()
    post(client, 1, 2)
    assert client.get("/info").json() == {"batch_size": -1, "max_token_len": -1}
    client.post("/register", json=registration(8))
    assert client.get("/info").json() == {"batch_size": 8, "max_token_len": 512}
    assert firsts(client.get("/batch").json()) == [1, 2]


def test_no_batch_says_why(start):
    client = start()
    begin(client)
    post(client, 1)
    assert client.get("/batch").json() == {"batch": None, "reason": "4 of 8 sequences are waiting"}


def test_an_explicit_batch_comes_again_until_it_is_acknowledged(start):
    client = start()
    begin(client)
    post(client, 1, 2, 3, 4)
    first = client.get("/batch?ack=explicit").json()
    again = client.get("/batch?ack=explicit").json()
    assert first == again
    assert again["step"] == 1
    assert client.post("/ack", json={"lease": first["lease"]}).json() == {"status": "success"}
    assert client.post("/ack", json={"lease": first["lease"]}).status_code == 200
    second = client.get("/batch?ack=explicit").json()
    assert firsts(second) == [3, 4]
    assert second["step"] == 2


def test_a_stock_trainer_acknowledges_by_asking_for_the_next(start, tmp_path):
    client = start()
    begin(client)
    post(client, 1, 2, 3, 4)
    client.get("/batch")
    assert "shoal_api_leased_batches 1\n" in client.get("/metrics").text
    client.get("/batch")
    assert "shoal_api_acknowledged_total 1\n" in client.get("/metrics").text
    assert client.get("/batch").json()["batch"] is None
    assert "shoal_api_leased_batches 0\n" in client.get("/metrics").text
    assert "shoal_api_stored_bytes 0\n" in client.get("/metrics").text


def test_a_restart_keeps_registration_environments_groups_and_leases(start):
    client = start()
    begin(client, starting_step=5)
    assert client.post("/register-env", json=environment()).json()["env_id"] == 0
    post(client, 1, 2, 3, 4, env_id=0)
    leased = client.get("/batch?ack=explicit&weights_version=7").json()
    client = start()
    assert client.get("/info").json()["batch_size"] == 8
    assert client.get("/status").json() == {"current_step": 6, "queue_size": 2, "weights_version": 7}
    assert client.request("GET", "/status-env", json={"env_id": 0}).json()["self_queue_size"] == 2
    assert client.get("/latest_example").json()["tokens"][0][0] == 4
    assert client.get("/batch?ack=explicit").json() == leased
    client.post("/ack", json={"lease": leased["lease"]})
    client = start()
    assert firsts(client.get("/batch?ack=explicit").json()) == [3, 4]
    assert client.post("/register-env", json=environment()).json()["wandb_name"] == "sums_1"


def test_a_second_registration_begins_the_steps_anew_and_keeps_the_data(start):
    client = start()
    begin(client)
    client.post("/register-env", json=environment())
    post(client, 1, 2, 3, env_id=0)
    assert firsts(client.get("/batch").json()) == [1, 2]
    client.post("/register", json=registration(4, starting_step=3))
    assert client.get("/status").json()["current_step"] == 3
    # What the first trainer was given and never acknowledged comes again, in its old size.
    assert firsts(client.get("/batch").json()) == [1, 2]
    assert firsts(client.get("/batch").json()) == [3]
    assert client.get("/status").json()["current_step"] == 5


def test_environments_wait_for_the_trainer_to_ask_once(start):
    client = start()
    assert client.post("/register-env", json=environment()).json() == {"status": "wait for trainer to start"}
    client.post("/register", json=registration(starting_step=2))
    assert client.post("/register-env", json=environment()).json() == {"status": "wait for trainer to start"}
    client.get("/batch")
    expected = {
        "status": "success",
        "env_id": 0,
        "wandb_name": "sums_0",
        "checkpoint_dir": "checkpoints",
        "starting_step": 2,
        "checkpoint_interval": 10,
        "num_steps": 100,
    }
    assert client.post("/register-env", json=environment()).json() == expected


def test_a_key_is_stored_once(start):
    client = start()
    begin(client)
    post(client, 1, 1, group_key="one")
    answer = client.post("/scored_data_list", json=[group(group_key="one"), group(first=2, group_key="two")])
    assert answer.json() == {"status": "received", "groups_processed": 2}
    batch = client.get("/batch?ack=explicit").json()
    assert firsts(batch) == [1, 2]
    assert [info["key"] for info in batch["groups"]] == ["one", "two"]
    client.post("/ack", json={"lease": batch["lease"]})
    client = start()
    post(client, 1, group_key="one")
    assert client.get("/status").json()["queue_size"] == 0


def test_versions_are_the_groups_own_or_the_trainers_at_arrival(start):
    client = start()
    begin(client)
    client.get("/batch?weights_version=4")
    post(client, 1)
    post(client, 2, generation_params={"weights_version": 3, "temperature": 1.0})
    batch = client.get("/batch?ack=explicit").json()
    assert [(info["weights_version"], info["stamped"]) for info in batch["groups"]] == [(4, True), (3, False)]


def test_groups_staler_than_the_bound_are_dropped_and_counted(start):
    client = start(ServerOptions(max_staleness=2))
    begin(client)
    for number, version in enumerate([0, 5, 3, 4, 2], 1):
        post(client, number, generation_params={"weights_version": version})
    assert firsts(client.get("/batch?weights_version=5").json()) == [2, 3]
    assert client.get("/batch").json()["reason"] == "4 of 8 sequences are waiting"
    assert "shoal_api_stale_total 2\n" in client.get("/metrics").text
    assert "shoal_api_waiting_groups 1\n" in client.get("/metrics").text


def test_a_stock_trainers_version_is_what_it_acknowledged(start):
    client = start()
    begin(client, 4, starting_step=10)
    post(client, 1, 2, 3)
    versions = [client.get("/batch").json()["groups"][0]["weights_version"] for _ in range(3)]
    assert versions == [10, 10, 10]
    assert client.get("/status").json()["weights_version"] == 12


def test_a_minimum_is_waited_for_and_a_silent_environment_is_not(start):
    client = start(ServerOptions(minimum_wait=1000.0))
    begin(client)
    client.post("/register-env", json=environment("much", min_batch_allocation=0.5))
    client.post("/register-env", json=environment("little"))
    post(client, 1, 2, env_id=1)
    assert "environment 0 has 0 of the 4" in client.get("/batch").json()["reason"]
    client = start(ServerOptions(minimum_wait=0.0))
    assert firsts(client.get("/batch").json()) == [1, 2]
    post(client, 3, 4, env_id=1)
    client = start(ServerOptions(minimum_wait=1000.0, environment_timeout=0.0))
    assert firsts(client.get("/batch?ack=explicit").json()) == [3, 4]


def test_a_disconnected_environments_minimum_is_not_waited_for(start):
    client = start(ServerOptions(minimum_wait=1000.0))
    begin(client)
    client.post("/register-env", json=environment(min_batch_allocation=0.5))
    post(client, 1, 2)
    assert client.get("/batch").json()["batch"] is None
    assert client.post("/disconnect-env", json={"env_id": 0}).json() == {"status": "success"}
    assert firsts(client.get("/batch").json()) == [1, 2]


def test_the_environments_status_counts_in_its_own_groups(start):
    client = start()
    begin(client)
    client.post("/register-env", json=environment("a", weight=1.0, group_size=4, min_batch_allocation=0.25))
    client.post("/register-env", json=environment("b", weight=3.0, group_size=2))
    post(client, 1, 2, 3, env_id=0)
    client.post("/scored_data", json=group(2, env_id=1))
    status = {env_id: client.request("GET", "/status-env", json={"env_id": env_id}).json() for env_id in (0, 1)}
    assert status[0]["queue_size"] == (12 + 2) // 4
    assert status[0]["self_queue_size"] == 3
    assert status[1]["queue_size"] == (2 + 12 - 2) // 2  # less the other's minimum of 2 sequences
    assert status[1]["self_queue_size"] == 1
    assert [status[env_id]["env_weight"] for env_id in (0, 1)] == [0.25, 0.75]
    assert status[0]["unallocated_fraction"] == 0.75
    assert status[0]["max_group_size"] == 4


def test_groups_of_one_are_counted_for_other_environments(start):
    # Atropos's server reports 0 here, so that backpressure fails.
    client = start()
    begin(client)
    client.post("/register-env", json=environment("a", group_size=1))
    client.post("/register-env", json=environment("b", group_size=1))
    for _ in range(5):
        client.post("/scored_data", json=group(1, env_id=0))
    assert client.request("GET", "/status-env", json={"env_id": 1}).json()["queue_size"] == 5


@pytest.mark.parametrize("weights", [[0.0, 0.0], [0.0, 1.0]])
def test_weights_of_zero_are_no_error(start, weights):
    client = start()
    begin(client)
    for weight in weights:
        client.post("/register-env", json=environment(weight=weight))
    status = client.request("GET", "/status-env", json={"env_id": 0}).json()
    assert status["env_weight"] == (0.5 if sum(weights) == 0 else 0.01)


def test_a_nearly_full_server_holds_environments_back_and_a_full_one_says_when_to_come_again(start):
    client = start(ServerOptions(max_groups=5))
    begin(client, 64, num_steps=100)
    client.post("/register-env", json=environment())
    post(client, 1, 2, 3, env_id=0)
    assert client.request("GET", "/status-env", json={"env_id": 0}).json()["queue_size"] == 3
    post(client, 4, env_id=0)
    status = client.request("GET", "/status-env", json={"env_id": 0}).json()
    # As many as the remaining steps use; at more, a stock environment would take the run for finished.
    assert status["queue_size"] == status["self_queue_size"] == 100 * 64 // 4
    assert status["current_step"] + status["queue_size"] * 4 // 64 <= 100
    post(client, 5)
    refused = client.post("/scored_data", json=group())
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert "--max-groups" in refused.json()["detail"]
    assert client.get("/status").json()["queue_size"] == 5


def test_stored_bytes_are_bounded(start):
    client = start(ServerOptions(max_bytes=1000))
    for _ in range(3):
        answer = client.post("/scored_data", json=group(30))
    assert answer.status_code == 503
    assert "--max-gigabytes" in answer.json()["detail"]


def test_extra_fields_are_refused_or_dropped(start):
    client = start()
    refused = client.post("/scored_data", json=group(advantage=[]))
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["msg"] == "unknown field; did you mean advantages?"
    client = start(ServerOptions(drop_extra=True))
    begin(client, 4)
    post(client, 1, anything=[1])
    assert tuple(client.get("/batch").json()["batch"][0]) == GROUP_FIELDS


def test_a_reset_forgets_everything_but_never_gives_a_number_twice(start):
    client = start()
    begin(client)
    post(client, 1, 2)
    before = client.get("/batch?ack=explicit").json()
    assert client.get("/reset_data").text == "Reset successful"
    assert client.get("/info").json()["batch_size"] == -1
    assert client.get("/wandb_info").json() == {"group": None, "project": None}
    begin(client)
    post(client, 3, 4)
    after = client.get("/batch?ack=explicit").json()
    assert firsts(after) == [3, 4]
    assert after["lease"] > before["lease"]
    assert after["groups"][0]["id"] > before["groups"][1]["id"]


def test_replies_are_gzipped_for_who_takes_it_and_is_worth_it(start):
    client = start()
    begin(client, 64)
    client.post(
        "/scored_data", content=gzip.compress(json.dumps(group(64)).encode()), headers={"content-encoding": "gzip"}
    )
    with client.stream("GET", "/batch?ack=explicit", headers={"accept-encoding": "gzip"}) as reply:
        assert reply.headers["content-encoding"] == "gzip"
        zipped = b"".join(reply.iter_raw())
    assert len(zipped) == int(reply.headers["content-length"])
    plain = client.get("/batch?ack=explicit", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert zlib.decompress(zipped, 31) == plain.content
    assert "content-encoding" not in client.get("/info", headers={"accept-encoding": "gzip"}).headers


def test_long_groups_go_through_the_worker_process(start):
    client = start()
    begin(client, 64)
    tokens = [[1000 + number for number in range(1000)]] * 64
    sent = {"tokens": tokens, "masks": tokens, "scores": [1.0] * 64}
    assert client.post("/scored_data", json=sent).json() == {"status": "received"}
    wrong = client.post("/scored_data", json={**sent, "masks": tokens[:-1]})
    assert wrong.json()["detail"][0]["loc"] == ["body", "masks"]
    (received,) = client.get("/batch").json()["batch"]
    assert received["tokens"] == tokens


def test_an_unregistered_trainer_is_told_in_atroposs_words(start):
    answer = start().get("/batch")
    assert answer.status_code == 409
    assert answer.json()["status"] == "error"
    assert answer.json()["batch"] == []
    assert "register" in answer.json()["message"]


def test_a_batch_reply_reads_as_the_protocols_type(start):
    client = start()
    begin(client, 4)
    post(client, 1)
    reply = msgspec.json.decode(client.get("/batch").content, type=BatchReply)
    assert reply.batch is not None
    assert reply.batch[0].tokens == [[1, 2, 3]] * 4
    assert reply.groups is not None
    assert reply.lease is not None


def test_health_and_metrics(start):
    client = start()
    assert client.get("/healthz").json() == {"status": "ok"}
    post(client, 1)
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE shoal_api_groups_total counter\n" in metrics.text
    assert "shoal_api_groups_total 1\n" in metrics.text
    assert "shoal_api_tokens_total 12\n" in metrics.text

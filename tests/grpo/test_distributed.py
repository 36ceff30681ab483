"""The start of a rank: the others are found, or one line says where they were waited for."""

import socket
from datetime import timedelta

import pytest

import grpo.distributed
from envs.base import TaskError
from grpo.distributed import PeerError, PeerRefused, World
from grpo.errors import ConfigError
from grpo.exits import exit_code

RANKS = {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}


@pytest.fixture
def meet(monkeypatch):
    """A function that makes a rank of two, which waits for the other one for a moment only."""
    monkeypatch.setattr(grpo.distributed, "MEETING", timedelta(seconds=0.2))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)

    def meet(rank, address, port):
        variables = RANKS | {"RANK": rank, "MASTER_ADDR": address, "MASTER_PORT": str(port)}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return World()

    return meet


@pytest.fixture
def port():
    """A port of this machine where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("rank", "address", "reason"),
    [
        ("1", "127.0.0.1", "timed out"),
        ("1", "no-such-host.invalid", "timed out"),
        ("0", "127.0.0.1", "1/2 clients joined"),
    ],
)
def test_ranks_that_do_not_come_are_waited_for_a_while(meet, port, capfd, rank, address, reason):
    with pytest.raises(PeerError) as error:
        meet(rank, address, port)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"the ranks do not find each other: rank {rank} of 2 waited ")
    assert f" s at MASTER_ADDR:MASTER_PORT {address}:{port}: " in line
    assert reason in line
    assert capfd.readouterr().err == ""  # torch writes a stack of each attempt


def test_another_server_where_the_ranks_are_to_meet_is_one_line(meet, capfd):
    silent = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(PeerError, match=r"rank 1 of 2 waited .* but it does not respond$"):
        meet("1", "127.0.0.1", silent.getsockname()[1])
    assert capfd.readouterr().err == ""
    silent.detach()  # stays open: torch's thread, which still waits, would write what it lacks


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (ConfigError("group_size"), PeerRefused, 2),
        (TaskError("no such task"), PeerRefused, 2),
        (OSError("disk full"), PeerError, 1),
    ],
)
def test_the_other_ranks_end_with_the_code_of_the_one_that_failed(monkeypatch, error, kind, code):
    world, told = World.single(), []
    world.world_size = 2
    monkeypatch.setattr(world, "all_gather", told.append)
    world.tell(error)
    assert told[0].error is kind

    def other():
        raise told[0].error("rank 1 has failed")

    assert exit_code(other) == code

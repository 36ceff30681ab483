"""The pretended GPU itself: what it refuses, what it counts, that its numbers are right."""

import pytest
import torch

from grpo.transfer import to_device, to_host
from tests.support.fake_device import DEVICE, DeviceTensor, MixedDevicesError

NUMBERS = [1.0, 2.0, 3.0]


@pytest.fixture
def x(device):
    return torch.tensor(NUMBERS).to(DEVICE)


def test_values_and_gradients_are_those_of_the_cpu(device):
    def compute(where):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2).to(where)
        layer(torch.tensor(NUMBERS, device=where)).log_softmax(-1)[0].backward()
        torch.optim.AdamW(layer.parameters(), fused=True).step()
        return [x for p in layer.parameters() for x in (p, p.grad)]

    there, here = compute(DEVICE), compute("cpu")
    assert all(x.device == DEVICE for x in there)
    for one, other in zip(there, here, strict=True):
        assert torch.equal(one.detach().cpu(), other.detach())


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x + y,
        lambda x, y: y.add_(x),
        lambda x, y: torch.cat([x, y]),
        lambda x, y: torch.where(y > 0, x, 0.0),
        lambda x, y: x[y.long() - 1],
        lambda x, y: x[y > 1],
        lambda x, y: y[x.long() - 1],
        lambda x, y: x.index_select(0, y.long() - 1),
        lambda x, y: torch.nn.functional.embedding(y.long() - 1, x[:, None]),
        lambda x, y: torch.searchsorted(x, y),
    ],
)
def test_tensors_of_both_devices_are_refused(x, mix):
    with pytest.raises(MixedDevicesError, match="in main memory"):
        mix(x, torch.tensor(NUMBERS))


def test_a_single_number_may_be_in_main_memory(x):
    assert (x * torch.tensor(2.0)).tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0].item(),
        lambda x: float(x.sum()),
        lambda x: bool(x[0] > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x[x > 1],
        lambda x: torch.equal(x, x),
        lambda x: torch.arange(4)[x[0].long() :],
        lambda x: torch.tensor(NUMBERS).to(DEVICE),
        lambda x: torch.tensor(NUMBERS).to(DEVICE, non_blocking=True),  # not pinned
        lambda x: torch.empty(3, pin_memory=True).to(DEVICE),
        lambda x: torch.tensor(NUMBERS, device=DEVICE),
        lambda x: x.copy_(torch.tensor(NUMBERS)),
        lambda x: torch.empty(3).copy_(x),
    ],
)
def test_the_host_waits_once(device, x, wait):
    assert device.count(lambda: wait(x))[0] == 1


@pytest.mark.parametrize(
    ("launches", "work"),
    [
        (1, lambda x: x * 2),
        (2, lambda x: (x + 1).sum()),
        (1, lambda x: x.add_(1)),
        (1, lambda x: x.clone()),
        (1, lambda x: torch.zeros(3, device=DEVICE)),
        (1, lambda x: x.to(torch.float64)),
        (1, lambda x: torch.empty(3, pin_memory=True).to(DEVICE, non_blocking=True)),
        (1, lambda x: x.copy_(torch.empty(6, pin_memory=True)[:3], non_blocking=True)),
        (0, lambda x: x[1:].view(-1).detach()),
        (0, lambda x: x.to(DEVICE)),
        (0, lambda x: torch.empty(3, device=DEVICE)),
        (0, lambda x: x.shape),
        (0, lambda x: torch.tensor(NUMBERS).nonzero()),
    ],
)
def test_the_host_does_not_wait(device, x, launches, work):
    assert device.count(lambda: work(x)) == (0, launches)


def test_several_tensors_go_there_in_one_copy(device):
    some = (
        torch.arange(3),
        torch.tensor([[True, False], [True, True]]),
        torch.tensor(2.5, dtype=torch.float64),
        torch.empty(0, 4, dtype=torch.long),
        torch.arange(12.0).view(3, 4)[:, 1:3],
    )
    there = []
    assert device.count(lambda: there.extend(to_device(some, DEVICE))) == (0, 1)
    for one, other in zip(there, some, strict=True):
        assert isinstance(one, DeviceTensor)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one.cpu(), other)
    assert all(map(torch.equal, to_device(some, torch.device("cpu")), some))


def test_numbers_come_back_in_one_copy(device, x):
    sums = [{"a": x[0], "b": x[1].long()}, {"a": x[2], "b": x[0].long()}, {}]
    back = []
    waits, _ = device.count(lambda: back.extend(to_host(sums)))
    assert waits == 1
    assert back == [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 1.0}, {}]
    assert all(v.device.type == "cpu" for each in back for v in each.values())
    assert to_host([]) == []

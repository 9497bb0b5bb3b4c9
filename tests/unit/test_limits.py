import math

import pytest
import torch

from vw2_robot.devices import Hardware, open_device
from vw2_robot.errors import InputError
from vw2_robot.limits import Count, Rate, Share, Unbounded, check_number, number


@pytest.mark.parametrize(
    ("kind", "allowed", "refused"),
    [
        (int, [0, 1, 2**63 - 1], [-1, 2**63]),
        (int | None, [0, None], [-1]),
        (float, [0.0, -1.5, 3], [math.nan, math.inf, -math.inf]),
        (Count, [1, 7], [0, -1, 2**63]),
        (Rate | None, [0.1, 30, None], [0, -1, math.nan, math.inf]),
        (Share, [0.1], [0, 1, math.nan]),
        (Unbounded, [math.inf, 0.0], [math.nan]),
        (str, ["text"], []),
    ],
)
def test_a_number_is_what_its_type_allows(kind, allowed, refused):
    for value in allowed:
        check_number(kind, value, "seed")
    for value in refused:
        with pytest.raises(InputError, match=r"seed=.*, expected a"):
            check_number(kind, value, "seed")


@pytest.mark.parametrize("value", ["abc", None, True, 1.5, 0])
def test_a_value_outside_a_dataclass_is_checked_with_its_type(value):
    with pytest.raises(InputError, match=r"env\.image_size="):
        number(Count, value, "env.image_size")
    assert number(Count, 8.0, "env.image_size") == 8
    assert isinstance(number(Rate, 5, "env.hz"), float)


@pytest.mark.parametrize("name", ["mps", "xpu", "meta", "cuda:99", "tpu", ""])
def test_a_device_that_cannot_compute_is_refused_by_the_name_of_its_option(name):
    with pytest.raises(InputError, match=rf"hardware\.device={name}"):
        open_device(name, option="hardware.device")
    assert open_device("cpu").type == "cpu"


def test_auto_takes_the_gpu_of_a_mac_where_there_is_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: torch.ones(1))  # no such GPU here
    assert open_device("auto").type == "mps"
    with pytest.raises(InputError, match=r"hardware\.device=auto: Apple's GPUs have no float64"):
        Hardware(precision="float64").torch_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert open_device("auto").type == "cuda"

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_world() -> ModuleType:
    """The module beside this file."""
    spec = importlib.util.spec_from_file_location("toy_world", Path(__file__).with_name("toy_world.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

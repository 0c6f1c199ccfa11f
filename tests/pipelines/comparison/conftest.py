from __future__ import annotations

import pytest

from artifacts.store import Store
from tests.shelf import Shelf


@pytest.fixture
def shelf(store: Store) -> Shelf:
    return Shelf(store)

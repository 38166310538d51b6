"""What `import robustmim` offers."""

from __future__ import annotations

import pytest

import robustmim


def test_every_public_name_is_there():
    assert set(robustmim.__all__) == set(robustmim._HOMES)
    for name in robustmim.__all__:
        assert getattr(robustmim, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        robustmim.nothing  # noqa: B018

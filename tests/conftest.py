"""What every test can use: the stores of `servers`, and ``--nightly``."""

import pytest

from servers import (
    bucket,
    bucket_config,
    moto_endpoint,
    s3_config,
    s3_server,
    seaweed_endpoint,
)

__all__ = [
    "bucket",
    "bucket_config",
    "moto_endpoint",
    "s3_config",
    "s3_server",
    "seaweed_endpoint",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run the long tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--nightly"):
        return
    skipped = pytest.mark.skip(reason="long; only with --nightly")
    for item in items:
        if "nightly" in item.keywords:
            item.add_marker(skipped)

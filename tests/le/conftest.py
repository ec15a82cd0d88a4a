"""Fixtures of the LE's tests."""

import logging

import pytest


@pytest.fixture
def log(caplog):
    """What was logged, from INFO on."""
    caplog.set_level(logging.INFO)
    return caplog

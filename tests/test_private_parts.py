"""If a library version lacks the private attributes that imgfs uses, imgfs falls back to public APIs and logs it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import trio

from imgfs import private_parts
from imgfs.private_parts import H11_STATE, PARTS, PYFUSE3_TRIO, replace_trio, trailing_data
from imgfs.registry.http.request import Request
from imgfs.registry.http.transport import Transport
from imgfs.registry.limits import Limits
from imgfs.registry.statistics import HostStatistics
from imgfs.testing.registry import FakeRegistry

PACKAGE = Path(private_parts.__file__).parent


@pytest.fixture(autouse=True)
def missing(monkeypatch: pytest.MonkeyPatch) -> set[object]:
    found: set[object] = set()
    monkeypatch.setattr(private_parts, "_missing", found)
    return found


async def connections_of_two_requests() -> int:
    transport = Transport(Limits())
    with FakeRegistry() as fake:
        for _ in range(2):
            answer = await transport.send(Request("GET", f"{fake.url}/v2/", "x"), HostStatistics())
            assert await answer.read() == b"{}"
            assert await answer.read() == b""
            await answer.aclose()
        peers = {request.peer for request in fake.log}
    await transport.aclose()
    return len(peers)


async def test_the_installed_versions_have_the_private_parts(missing: set[object]) -> None:
    import pyfuse3

    assert await connections_of_two_requests() == 1
    assert replace_trio(pyfuse3, trio, trio)
    assert missing == set()


async def test_without_the_state_of_h11_each_connection_serves_one_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(private_parts, "H11_STATE", H11_STATE.__class__("httpcore", ("_renamed",), "a", "b"))
    with caplog.at_level(logging.WARNING, "imgfs"):
        assert await connections_of_two_requests() == 2
    assert len(caplog.records) == 1, "the log says it once"


@pytest.mark.parametrize("state", [None, SimpleNamespace(trailing_data="x"), SimpleNamespace(trailing_data=())])
def test_an_h11_state_of_an_unknown_form_is_not_used(state: object) -> None:
    assert (
        trailing_data(SimpleNamespace(_stream=SimpleNamespace(_connection=SimpleNamespace(_h11_state=state)))) is None
    )


def test_a_pyfuse3_without_the_trio_lookup_is_not_patched(missing: set[object]) -> None:
    other = ModuleType("pyfuse3")
    assert not replace_trio(other, trio, object())
    assert not hasattr(other, "trio")
    assert missing == {PYFUSE3_TRIO}


def test_no_other_module_uses_private_parts() -> None:
    read = r"\b(?:httpx|httpcore|h11|pyfuse3|trio)(?:\.\w+)*\._[a-z]"
    named = r"[\"']_(?:httpcore_stream|h11_state)[\"']"
    found = [str(path) for path in PACKAGE.rglob("*.py") if re.search(f"{read}|{named}", path.read_text())]
    assert found == [private_parts.__file__]
    assert {part.package for part in PARTS} == {"httpcore", "pyfuse3"}

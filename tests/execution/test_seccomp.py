"""Profiles of the host become filters: imgfs decides their conditions, and reports a bad profile with its path."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import Invalid, NotFound
from imgfs.execution.bundle.seccomp import (
    PLACES,
    SIZE_MAX,
    Machine,
    default_profile,
    filter_of,
    parse_profile,
    this_machine,
)
from imgfs.execution.bundle.spec import CAPABILITIES
from imgfs.execution.warmup import warm_up
from imgfs.kernel.abi import runs_x32
from imgfs.kernel.syscalls import numbers_of

AMD64 = Machine("amd64", "6.1.0-13-amd64")
MAP = [
    {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
    {"architecture": "SCMP_ARCH_S390X", "subArchitectures": None},
]


def profile(*rules: dict[str, Any], **more: object) -> bytes:
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "archMap": MAP, "syscalls": rules} | more).encode()


def allowed(name: str, **conditions: object) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW"} | conditions


def names(data: bytes, *capabilities: str, machine: Machine = AMD64) -> list[str]:
    made = parse_profile(data, capabilities, machine, "test")
    return [name for rule in made["syscalls"] for name in rule["names"]]


def test_a_filter_has_the_words_of_the_runtime_specification() -> None:
    arguments = [{"index": 0, "value": 2**64 - 1, "op": "SCMP_CMP_NE"}]
    rules = allowed("socket", args=arguments, errnoRet=1, comment=""), {"name": "read", "action": "SCMP_ACT_LOG"}
    made = parse_profile(profile(*rules, defaultErrno="ENOSYS"), (), AMD64, "")
    assert made == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            {
                "names": ["socket"],
                "action": "SCMP_ACT_ALLOW",
                "errnoRet": 1,
                "args": [{"index": 0, "value": 2**64 - 1, "valueTwo": 0, "op": "SCMP_CMP_NE"}],
            },
            {"names": ["read"], "action": "SCMP_ACT_LOG"},
        ],
    }


def test_conditions_are_those_of_capabilities() -> None:
    data = profile(
        allowed("both", includes={"caps": ["CAP_A", "CAP_B"]}),
        allowed("without", excludes={"caps": ["CAP_A", "CAP_C"]}),
        allowed("always", includes={}, excludes={}),
    )
    assert names(data) == ["without", "always"]
    assert names(data, "CAP_A") == ["always"]
    assert names(data, "CAP_A", "CAP_B") == ["both", "always"]


def test_conditions_are_those_of_the_machine() -> None:
    data = profile(
        allowed("here", includes={"arches": ["amd64", "x32"]}),
        allowed("there", includes={"arches": ["s390x"]}),
        allowed("elsewhere", excludes={"arches": ["amd64"]}),
        allowed("new", includes={"minKernel": "6.2"}),
        allowed("old", excludes={"minKernel": "6.1"}),
        allowed("since", includes={"minKernel": "4.8"}),
    )
    assert names(data) == ["here", "since"]
    s390x = Machine("s390x", "6.10")
    assert names(data, machine=s390x) == ["there", "elsewhere", "new", "since"]
    assert parse_profile(data, (), s390x, "")["architectures"] == ["SCMP_ARCH_S390X"]
    assert "architectures" not in parse_profile(data, (), Machine("vax", "6.1"), "")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "Input data was truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `defaultAction`"),
        (b'{"defaultAction": "\xff"}', "."),
        (profile({"action": "SCMP_ACT_ALLOW"}), "a rule has no names"),
        (profile(allowed("x", errno="EWHAT")), "EWHAT: is not an errno"),
        (profile(allowed("x", includes={"minKernel": "new"})), "'new': is not a kernel version"),
        (b"[" * 10**5, "."),
    ],
)
def test_a_malformed_profile_is_refused_with_its_path(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(data)
    with pytest.raises(Invalid, match=f"seccomp profile {path}: .*{said}.*; correct it"):
        filter_of(str(path), CAPABILITIES)


def test_a_profile_that_is_too_large_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b" " * (SIZE_MAX + 1))
    with pytest.raises(Invalid, match="more than"):
        filter_of(str(tmp_path / "large"), CAPABILITIES)
    with pytest.raises(NotFound, match="does not exist; choose another"):
        filter_of(str(tmp_path / "none"), CAPABILITIES)


def test_a_profile_is_read_once_and_again_after_a_change(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(profile(allowed("read")))
    warm_up(str(path))
    first = filter_of(str(path), CAPABILITIES)
    assert filter_of(str(path), CAPABILITIES) is first
    assert filter_of(str(path), ()) is not first
    path.write_bytes(profile(allowed("read"), allowed("write")))
    second = filter_of(str(path), CAPABILITIES)
    assert second is not None
    assert [rule["names"] for rule in second["syscalls"]] == [["read"], ["write"]]


def test_only_the_order_of_names_in_a_rule_is_changed() -> None:
    made = filter_of(PLACES[1], CAPABILITIES)
    parsed = parse_profile(Path(PLACES[1]).read_bytes(), CAPABILITIES, this_machine(), "")
    assert made is not None
    for rule in made["syscalls"]:
        numbers = list(numbers_of(rule["names"]).values())
        assert numbers == sorted(numbers, reverse=True)
    assert made != parsed
    assert _unordered(made) == _unordered(parsed)


def test_x32_is_in_a_filter_where_the_kernel_runs_its_programs() -> None:
    made = filter_of(PLACES[1], CAPABILITIES)
    assert made is not None
    assert ("SCMP_ARCH_X32" in made["architectures"]) is runs_x32()
    parsed = parse_profile(Path(PLACES[1]).read_bytes(), CAPABILITIES, this_machine(), "")
    others = [one for one in parsed["architectures"] if one != "SCMP_ARCH_X32"]
    assert [one for one in made["architectures"] if one != "SCMP_ARCH_X32"] == others


def _unordered(made: dict[str, Any]) -> dict[str, Any]:
    rules = [rule | {"names": sorted(rule["names"])} for rule in made["syscalls"]]
    return made | {"syscalls": rules, "architectures": sorted({*made["architectures"], "SCMP_ARCH_X32"})}


def test_a_missing_profile_fails_a_start_but_not_the_warmup(tmp_path: Path) -> None:
    warm_up(str(tmp_path / "none"))
    with pytest.raises(NotFound):
        filter_of(str(tmp_path / "none"), CAPABILITIES)


def test_the_default_profile_is_the_administrators_then_the_distributions(tmp_path: Path) -> None:
    places = [str(tmp_path / "first"), str(tmp_path / "second")]
    assert default_profile(places) is None
    Path(places[1]).touch()
    assert default_profile(places) == places[1]
    Path(places[0]).touch()
    assert default_profile(places) == places[0]
    assert filter_of("none", CAPABILITIES) is None


def test_profile_of_containers_common() -> None:
    data = Path(PLACES[1]).read_bytes()
    made = parse_profile(data, CAPABILITIES, this_machine(), "")
    rules = [(name, rule["action"]) for rule in made["syscalls"] for name in rule["names"]]
    assert ("openat", "SCMP_ACT_ALLOW") in rules
    assert ("chroot", "SCMP_ACT_ALLOW") in rules  # by CAP_SYS_CHROOT
    assert [action for name, action in rules if name == "bpf"] == ["SCMP_ACT_ERRNO"]  # without CAP_SYS_ADMIN
    assert made["architectures"]


KEYS = st.sampled_from(["defaultAction", "syscalls", "names", "action", "args", "includes", "caps", "archMap"])
VALUES = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8
)


@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_accepted_or_refused_with_an_error(data: bytes) -> None:
    with suppress(Invalid):
        assert isinstance(parse_profile(data, CAPABILITIES, AMD64, "test")["defaultAction"], str)

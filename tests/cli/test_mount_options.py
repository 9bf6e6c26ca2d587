"""What `-o` may say: mount(8)'s words, those of imgfs, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.cli.service.mount_options import MountOptions, option_names, parse_options
from imgfs.errors import ImgfsError, Invalid, Unsupported


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        ([], MountOptions()),
        ([""], MountOptions()),
        (["rw,nodev,nosuid"], MountOptions(nosuid=True)),
        (
            ["ro,noauto,_netdev,x-systemd.automount,x-systemd.requires=a.service,comment=x"],
            MountOptions(is_read_only=True),
        ),
        (["ro,rw"], MountOptions()),
        (["noexec,nosuid,nodev,suid,dev,exec"], MountOptions()),
        (["noexec,nosuid,nodev,suid,exec"], MountOptions(nosuid=True)),
        (["rw,ro"], MountOptions(is_read_only=True)),
        (["defaults,user=joe,users,nofail,noatime,exec,suid,dev"], MountOptions()),
        (["state=/s,config=/c.toml"], MountOptions(Path("/s"), Path("/c.toml"))),
        (["state=/a", "state=/b"], MountOptions(Path("/b"))),
        (["allow_other"], MountOptions(given=(("access", "all"),))),
        (["access=group:x,views=fuse"], MountOptions(given=(("access", "group:x"), ("views", "fuse")))),
        (["plain_http=a,plain_http=b:1"], MountOptions(given=(("plain_http", "a"), ("plain_http", "b:1")))),
        (['auth_file="/a,b",ro'], MountOptions(given=(("auth_file", "/a,b"),), is_read_only=True)),
        (["platform="], MountOptions(given=(("platform", ""),))),
    ],
)
def test_lists_are_read(texts: list[str], options: MountOptions) -> None:
    assert parse_options(texts) == options


def test_a_path_is_of_where_it_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_options(["state=here"]).state == tmp_path / "here"


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("acess=all", Invalid, "did you mean 'access'?"),
        ("nodevs", Invalid, "did you mean 'nodev'?"),
        ("uid=1000", Invalid, "mount option 'uid'"),
        ("state", Invalid, "did you mean 'state'?"),
        ("views", Invalid, "views: has no value; write views=VALUE, one of kernel, fuse"),
        ("plugins=x", Invalid, "mount option 'plugins'"),
        ("ro=1", Invalid, "mount option 'ro'"),
        ("zzzzzzzz", Invalid, "imgfs.toml(5) list"),
        ("noexec", Unsupported, "omit it"),
        ("remount,ro", Unsupported, "unmount it and mount it again"),
        ("rw,relatime,user_id=0,group_id=0,allow_other,remount,ro", Unsupported, "unmount it and mount it again"),
    ],
)
def test_what_is_unknown_is_refused_with_the_likely_spelling(text: str, kind: type[ImgfsError], said: str) -> None:
    with pytest.raises(kind) as caught:
        parse_options([text])
    assert said in caught.value.message


def test_sloppy_passes_the_unknown_over() -> None:
    assert parse_options(["nonsense,acess=all,ro"], sloppy=True) == MountOptions(is_read_only=True)


@given(st.text(max_size=40))
def test_any_text_is_options_or_a_sentence(text: str) -> None:
    try:
        assert parse_options([text])
    except ImgfsError as error:
        told = error.message
    else:
        return
    assert told.startswith("mount option ")


def test_names_for_completion_are_taken() -> None:
    for name in option_names():
        if name not in ("state=", "config="):
            parse_options([f"{name}x" if name.endswith("=") else name])

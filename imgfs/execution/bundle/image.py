"""What an image's config says of the process that is to run (image-spec, config.md, "config"): foreign bytes."""

from __future__ import annotations

import msgspec

from imgfs.errors import Invalid, Malformed
from imgfs.execution.signals import signal_number
from imgfs.oci.manifest import ImageConfig, check_depth, parse_config

WORDS_MAX = 1 << 20
"""Bytes of arguments, environment and labels together: half of what execve(2) takes."""


class _Process(msgspec.Struct, rename="pascal"):
    user: str | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    stop_signal: str | None = None
    labels: dict[str, str] | None = None


class _Config(msgspec.Struct):
    config: _Process | None = None


class ImageProcess(msgspec.Struct, frozen=True):
    """The process as the image has it."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict[str, str])


def parse_process(data: bytes) -> tuple[ImageConfig, ImageProcess]:
    """Read an image config. Raises Malformed, TooLarge, and Invalid where it says what no process can have."""
    config = parse_config(data)
    check_depth(data, "image config")
    try:
        said = msgspec.json.decode(data, type=_Config).config or _Process()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"image config: {error}") from None
    process = ImageProcess(
        said.user or "",
        tuple(said.env or ()),
        tuple(said.entrypoint or ()),
        tuple(said.cmd or ()),
        said.working_dir or "",
        said.stop_signal or "",
        said.labels or {},
    )
    _check(process)
    return config, process


def _check(process: ImageProcess) -> None:
    labels = [text for pair in process.labels.items() for text in pair]
    words = [*process.env, *process.entrypoint, *process.cmd, process.user, process.working_dir, *labels]
    if any("\0" in word for word in words):
        raise Invalid("image config: a NUL in what the process is to get; the image has to be built anew")
    if sum(len(word) for word in words) > WORDS_MAX:
        raise Invalid(f"image config: arguments, environment and labels are over {WORDS_MAX} bytes")
    if process.stop_signal:
        signal_number(process.stop_signal, "image config: StopSignal")

"""A container's terminal: input, output and size; and the caller's terminal has its old settings afterwards."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest

from tests.execution.box import PATIENCE, Box, until
from tests.support.mounted import IMGFS

PROMPT = b"# "


class Terminal:
    """A terminal of 33 rows and 99 columns with `imgfs` in it."""

    def __init__(self, box: Box, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        termios.tcsetwinsize(self.ours, (33, 99))
        self.before = termios.tcgetattr(theirs)
        self.said = b""
        self.theirs = theirs
        self.process = subprocess.Popen(
            [*IMGFS, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=box.environment,
            start_new_session=True,
        )

    def type(self, text: bytes) -> None:
        self.said = b""
        os.write(self.ours, text)

    def shows(self, text: bytes) -> None:
        """Wait until the terminal shows `text`."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            if select.select([self.ours], [], [], 0.1)[0]:
                self.said += os.read(self.ours, 65536)

    def ends(self) -> int:
        """Return the exit code, and assert that the terminal has its old settings."""
        code = self.process.wait(PATIENCE)
        assert termios.tcgetattr(self.theirs) == self.before
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal(box: Box) -> Iterator[Terminal]:
    """Run a shell in a container."""
    made = Terminal(box, "run", "-it", "--name", "one", "box", "sh")
    made.shows(PROMPT)
    yield made
    made.close()


def test_typing_size_interrupt_and_exit_code(box: Box, terminal: Terminal) -> None:
    terminal.type(b"busybox stty size; busybox tty; echo $TERM\n")
    terminal.shows(b"33 99\r\n/dev/pts/0\r\nxterm\r\n")
    termios.tcsetwinsize(terminal.ours, (44, 111))
    terminal.process.send_signal(signal.SIGWINCH)  # the kernel sends it to the foreground group

    def is_resized() -> bool:
        terminal.type(b"busybox stty size\n")
        terminal.shows(PROMPT)
        return b"44 111" in terminal.said

    until(is_resized)
    terminal.type(b"sh -c 'echo go''ing; sleep 1000'\n")
    terminal.shows(b"going\r\n")
    terminal.type(b"\x03")
    terminal.shows(PROMPT)
    terminal.type(b"echo $?\n")
    terminal.shows(b"130\r\n")
    terminal.type(b"exit 5\n")
    assert terminal.ends() == 5
    assert not box.record("one").log.exists()


def test_the_terminal_is_restored_when_the_command_is_ended(box: Box, terminal: Terminal) -> None:
    box.kill("one")
    assert terminal.ends() == 137


def test_a_killed_command_leaves_its_container_running(box: Box, terminal: Terminal) -> None:
    terminal.type(b"trap '' HUP; while true; do echo flood; echo $((n=n+1)) > /n; done\n")
    terminal.shows(b"flood\r\nflood\r\n")
    terminal.process.kill()
    terminal.process.wait()
    path = box.rootfs("one") / "n"

    def count() -> int:
        return int(path.read_text() or "0")

    before = count()
    until(lambda: count() > before + 1000)
    box.kill("one")


def test_terminal_of_a_container_in_the_background_is_logged(box: Box) -> None:
    done = box.run("-dt", "--name", "two", "box", "sh", "-c", "busybox tty; echo err >&2")
    assert done.stdout == b"two\n"
    until(lambda: box.record("two").status().status == "stopped")
    until(lambda: not box.record("two").is_supervised())
    assert box.record("two").log.read_bytes() == b"/dev/pts/0\r\nerr\r\n"

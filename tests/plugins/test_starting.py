"""The start of plugins: in order of requirements, with access to required objects only, and with a report for each."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from imgfs.errors import Invalid, NoSpace
from imgfs.plugins.contract import Context, Kind, Plugin
from imgfs.plugins.started import Given, NotStarted
from tests.plugins.plugging import NUMBER, OTHER, WORD, broken, failing, running, word


async def test_each_gets_what_it_requires_whatever_order_they_are_found_in(tmp_path: Path) -> None:
    last = word("z", WORD, kind=OTHER, make=lambda context: " ".join(context.all(WORD)))
    async with running(tmp_path, last, word("a", "word.b"), word("b")) as made:
        assert made.one(OTHER) == "a b"
        assert list(made.reports) == ["other.z", "word.a", "word.b"]
        assert all(report.status == "running" for report in made.reports.values())


async def test_what_the_program_brings_is_required_like_a_plugin(tmp_path: Path) -> None:
    plugin = word("a", NUMBER, make=lambda context: str(context.one(NUMBER)))
    async with running(tmp_path, plugin, given=[Given(NUMBER, 7)]) as made:
        assert made.one(WORD) == "7"


async def test_a_cycle_is_refused_by_name(tmp_path: Path) -> None:
    plugins = [word("a", "word.b"), word("b", OTHER), word("c", "word.a", kind=OTHER), word("d")]
    with pytest.raises(Invalid) as caught:
        async with running(tmp_path, *plugins):
            pass
    links = ("word.a requires word.b", "word.b requires other.c", "other.c requires word.a")
    assert sum(link in caught.value.message for link in links) >= 2
    assert "word.d" not in caught.value.message


@pytest.mark.parametrize("need", [OTHER, "other.x"])
async def test_what_requires_something_that_is_not_installed_does_not_start(tmp_path: Path, need: str) -> None:
    with pytest.raises(NotStarted, match=r"plugin word\.a: requires other.*which does not run; none is installed"):
        async with running(tmp_path, word("a", need)):
            pass


async def test_an_optional_one_that_fails_is_skipped_and_so_is_who_requires_it(tmp_path: Path) -> None:
    plugins = [
        word("bad", make=failing, optional=True),
        word("torn", "word.bad", optional=True),
        word("good"),
        word("any", WORD, kind=OTHER, make=lambda context: " ".join(context.all(WORD))),
    ]
    async with running(tmp_path, *plugins) as made:
        assert made.one(OTHER) == "good"
        status = {name: report.status for name, report in made.reports.items()}
        reason = "RuntimeError: no luck at all"
        assert status == {
            "word.bad": f"off: {reason}",
            "word.torn": f"off: requires word.bad, which does not run (word.bad: {reason})",
            "word.good": "running",
            "other.any": "running",
        }


async def test_one_that_cannot_be_loaded_is_the_reason_of_who_requires_it(tmp_path: Path) -> None:
    with pytest.raises(NotStarted, match=r"plugin word\.a: requires other, .* \(other\.x: ImportError: gone\)"):
        async with running(tmp_path, word("a", OTHER), broken("other.x", "ImportError: gone")):
            pass


async def test_a_needed_one_that_fails_stops_the_start_with_its_errno(tmp_path: Path) -> None:
    def full(_: Context) -> str:
        raise NoSpace("disk: full; make room")

    with pytest.raises(NotStarted, match=r"plugin word\.a: disk: full; make room") as caught:
        async with running(tmp_path, word("a", make=full)):
            pass
    assert caught.value.errno == errno.ENOSPC


async def test_one_that_would_end_the_program_is_skipped_too(tmp_path: Path) -> None:
    def leave(_: Context) -> str:
        raise SystemExit("I leave")

    async with running(tmp_path, word("a", make=leave, optional=True), word("b")) as made:
        assert made.reports["word.a"].status == "off: SystemExit: I leave"
        assert made.one(WORD) == "b"


async def test_what_is_of_no_use_at_the_moment_says_why_and_its_kind_is_asked_each_time(tmp_path: Path) -> None:
    def obstacle(value: str, state: Path) -> str:
        return "" if (state / value).exists() else f"{value} is missing"

    plugin = Plugin(Kind("tool", str, obstacle), "a", lambda _: "hammer")
    async with running(tmp_path, plugin) as made:
        report = made.reports["tool.a"]
        assert report.status == "unavailable: hammer is missing"
        (tmp_path / "hammer").touch()
        assert report.status == "running"


async def test_one_that_cannot_be_asked_harms_nobody(tmp_path: Path) -> None:
    def obstacle(value: str, state: Path) -> str:
        raise ZeroDivisionError("no\nluck")

    async with running(tmp_path, Plugin(Kind("tool", str, obstacle), "a", lambda _: "hammer")) as made:
        assert made.reports["tool.a"].status == "unavailable: ZeroDivisionError: no luck"


async def test_an_object_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotStarted, match=r"word\.a: TypeError: `make` returned int, expected str"):
        async with running(tmp_path, Plugin(WORD, "a", lambda _: 1)):
            pass


async def test_one_gets_nothing_that_it_does_not_require(tmp_path: Path) -> None:
    plugin = word("a", make=lambda context: context.one(OTHER))
    with pytest.raises(NotStarted, match="kind other; declare it in the plugin's `requires`"):
        async with running(tmp_path, word("b", kind=OTHER), plugin):
            pass


async def test_of_two_where_one_is_needed_both_are_named(tmp_path: Path) -> None:
    async with running(tmp_path, word("a"), word("b")) as made:
        with pytest.raises(Invalid, match=r"word\.a, word\.b run, and exactly one is needed; .* disabled_plugins"):
            made.one(WORD)
        with pytest.raises(NotStarted, match="no plugin of kind other runs"):
            made.one(OTHER)


class Scene:
    """Plugins that hold a resource open, with a task that uses it until the end."""

    def __init__(self) -> None:
        self.told: list[str] = []

    @asynccontextmanager
    async def first(self, context: Context) -> AsyncGenerator[str]:
        self.told.append("open first")
        try:
            yield "first"
        finally:
            self.told.append("close first")

    @asynccontextmanager
    async def second(self, context: Context) -> AsyncGenerator[str]:
        self.told.append("open second")
        context.nursery.start_soon(self._work)
        yield "second"
        self.told.append("close second")

    async def _work(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.told.append("work ends")


async def test_what_is_held_open_is_closed_in_reverse_after_all_work_has_ended(tmp_path: Path) -> None:
    scene = Scene()
    async with running(tmp_path, word("a", make=scene.first), word("b", "word.a", make=scene.second)):
        await trio.testing.wait_all_tasks_blocked()
    assert scene.told == ["open first", "open second", "work ends", "close second", "close first"]


async def test_a_start_that_fails_closes_what_had_started(tmp_path: Path) -> None:
    scene = Scene()
    with pytest.raises(NotStarted, match="no luck"):
        async with running(tmp_path, word("a", make=scene.first), word("b", "word.a", make=failing)):
            pass
    assert scene.told == ["open first", "close first"]


async def test_an_optional_one_that_cannot_be_closed_keeps_nobody_from_ending(tmp_path: Path) -> None:
    scene = Scene()

    @asynccontextmanager
    async def bad(_: Context) -> AsyncGenerator[str]:
        yield "bad"
        raise RuntimeError("no luck")

    first, last = word("a", make=scene.first), word("b", "word.a", make=bad, optional=True)
    async with running(tmp_path, first, last) as made:
        assert made.all(WORD) == ["first", "bad"]
    assert scene.told == ["open first", "close first"]
    with pytest.raises(RuntimeError, match="no luck"):
        async with running(tmp_path, word("b", make=bad)):
            pass
    with pytest.raises(ZeroDivisionError):
        async with running(tmp_path, last, first):
            raise ZeroDivisionError


async def test_work_that_fails_ends_everything_with_its_own_error(tmp_path: Path) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    def make(context: Context) -> str:
        context.nursery.start_soon(fail)
        return "made"

    with pytest.raises(ZeroDivisionError):
        async with running(tmp_path, word("a", make=make)):
            await trio.sleep_forever()


class Options(msgspec.Struct, frozen=True):
    size: int = 3
    names: list[str] = []


SIZED = Plugin(WORD, "a", lambda context: "x" * context.options(Options).size, options=Options)


async def test_options_come_from_the_plugins_section_or_are_defaults(tmp_path: Path) -> None:
    async with running(tmp_path, SIZED) as made:
        assert made.one(WORD) == "xxx"
    async with running(tmp_path, SIZED, sections={"word": {"a": {"size": 1}}}) as made:
        assert made.one(WORD) == "x"
        assert made.reports["word.a"].settings == {"size": 1, "names": []}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"word": {"a": {"sice": 1}}}, r"\[plugins\.word\.a\]: unknown option 'sice'; did you mean 'size'"),
        ({"word": {"a": {"zzz": 1}}}, "known are size, names"),
        ({"word": {"a": {"size": "big"}}}, r"\[plugins\.word\.a\]: Expected `int`, got `str` - at `\$\.size`"),
        ({"word": {"b": {"size": 1}}}, r"\[plugins\.word\.b\]: unknown option 'size'; it has none"),
        ({"word": {"aa": {}}}, r"\[plugins\.word\.aa\]: no such plugin is installed; did you mean 'word\.a'"),
        ({"zz": {"zz": {}}}, r"known are word\.a, word\.b"),
    ],
)
async def test_a_wrong_section_is_refused_with_the_cure(
    tmp_path: Path, sections: dict[str, dict[str, dict[str, object]]], said: str
) -> None:
    with pytest.raises(Invalid, match=said):
        async with running(tmp_path, SIZED, word("b", optional=True), sections=sections):
            pass

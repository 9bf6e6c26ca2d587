"""Installed plugins are found by entry point, and a failing module does not hide the other plugins."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgfs.errors import Invalid
from imgfs.layers.plugin import COMPRESSION
from imgfs.plugins.alone import objects_of
from imgfs.plugins.finding import FoundPlugin, find_plugins
from tests.plugins.plugging import install

CODE = """
from imgfs.plugins.contract import Kind, Plugin
PLUGIN = Plugin(Kind("word", str), "it", lambda _: "it")
"""


FLAWED = """
import msgspec
from imgfs.plugins.contract import Kind, Plugin
class Options(msgspec.Struct):
    size: int
WORD = Kind("word", str)
async def work(context):
    return "it"
PLUGIN = Plugin({}, "it", {})
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of installed distributions besides those of the environment."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def one(name: str) -> FoundPlugin:
    (found,) = (found for found in find_plugins() if found.name == name)
    return found


def test_a_plugin_is_found_with_its_distribution(site: Path) -> None:
    install(site, "finding_good", CODE, "word.it = finding_good:PLUGIN")
    found = one("word.it")
    assert (found.distribution, found.failure) == ("finding_good 1.0", "")
    assert found.plugin is not None
    assert found.plugin.name == "word.it"


@pytest.mark.parametrize(
    ("module", "code", "said"),
    [
        ("finding_raising", "1 / 0", "ZeroDivisionError: division by zero"),
        ("finding_needy", "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("finding_torn", "def", "SyntaxError"),
        ("finding_empty", "", "has no attribute 'PLUGIN'"),
        ("finding_other", "PLUGIN = 1", "is int, expected a Plugin"),
        ("finding_exiting", "raise SystemExit('I leave')", "SystemExit: I leave"),
        ("finding_kindless", FLAWED.format("'word'", "str"), "`kind` is str, expected a Kind"),
        ("finding_unmade", FLAWED.format("WORD", "'it'"), "`make` is str, expected a function of a Context"),
        ("finding_async", FLAWED.format("WORD", "work"), "`make` is a coroutine, expected an ordinary function"),
        ("finding_one", FLAWED.format("WORD", "str, requires='a.b'"), "`requires` is str, expected a tuple"),
        ("finding_kind", FLAWED.format("WORD", "str, requires=WORD"), "`requires` is Kind, expected a tuple"),
        ("finding_bare", FLAWED.format("WORD", "str, requires=('a',)"), "`requires` has 'a', expected a Kind or"),
        ("finding_dict", FLAWED.format("WORD", "str, options=dict"), "expected a subclass of msgspec.Struct"),
        ("finding_no_default", FLAWED.format("WORD", "str, options=Options"), "`options`: size has no default"),
        ("finding_told", FLAWED.format("WORD", "str, exports='home'"), "`exports` is str, expected a dict"),
        ("finding_misnamed", CODE.replace('"it"', '"that"'), "leads to the plugin word.that; give both the same name"),
    ],
)
def test_what_cannot_be_loaded_has_its_reason(site: Path, module: str, code: str, said: str) -> None:
    install(site, module, code, f"word.it = {module}:PLUGIN")
    found = one("word.it")
    assert found.plugin is None
    assert said in found.failure
    assert one("compression.gzip").plugin is not None


def test_two_of_one_name_are_refused_with_both_distributions(site: Path) -> None:
    install(site, "finding_first", CODE, "word.it = finding_first:PLUGIN")
    install(site, "finding_second", CODE, "word.it = finding_second:PLUGIN")
    with pytest.raises(Invalid) as caught:
        find_plugins()
    assert "plugin word.it" in caught.value.message
    assert "finding_first 1.0" in caught.value.message
    assert "finding_second 1.0" in caught.value.message


@pytest.mark.parametrize("name", ["word", "word.a/b", "word.a.b", "Word.it"])
def test_a_name_that_is_no_kind_and_id_is_refused(site: Path, name: str) -> None:
    install(site, "finding_odd", CODE, f"{name} = finding_odd:PLUGIN")
    with pytest.raises(Invalid, match=r"of finding_odd 1\.0: expected <kind>\.<id>"):
        find_plugins()


def test_what_is_disabled_is_not_even_imported(site: Path) -> None:
    install(site, "finding_disabled", "raise AssertionError", "word.it = finding_disabled:PLUGIN")
    (found,) = (found for found in find_plugins(disabled=["word.it"]) if found.name == "word.it")
    assert (found.plugin, found.failure) == (None, "disabled in imgfs.toml")


def test_beside_the_daemon_those_of_one_kind_are_made_and_others_not_imported(site: Path) -> None:
    code = """
from imgfs.layers.compression import Compression, Stored
from imgfs.layers.plugin import COMPRESSION
from imgfs.plugins.contract import Plugin
GOOD = Plugin(COMPRESSION, "good", lambda _: Compression("good", Stored))
NEEDY = Plugin(COMPRESSION, "needy", lambda _: Compression("needy", Stored), requires=("layers.local",))
BAD = Plugin(COMPRESSION, "bad", lambda context: context.nursery)
"""
    names = ["good", "needy", "bad"]
    install(site, "finding_alone", code, *(f"compression.{name} = finding_alone:{name.upper()}" for name in names))
    install(site, "finding_far", "raise AssertionError", "word.it = finding_far:PLUGIN")
    assert [made.word for made in objects_of(COMPRESSION)] == ["good", "gzip", "none", "xz", "zstd"]

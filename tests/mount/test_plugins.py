"""Plugins as a user installs them: a third-party plugin at work, and the reports about plugins that do not run."""

from __future__ import annotations

import errno
import json
import lzma
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.execution.records.record import InstalledRuntime
from imgfs.execution.records.records import ContainerRecords
from imgfs.execution.runtimes.choice import remember_refusal
from imgfs.kernel.mounts import mount_at
from imgfs.testing.build import BuiltLayer, image
from imgfs.testing.entries import File
from imgfs.testing.layertar import layer_tar
from tests.archives.memory import layout_members, saved, tar
from tests.mount.archiving import imgfs
from tests.mount.scene import Scene, refused, serving
from tests.plugins.plugging import install
from tests.support.mounted import Mounted

RUNTIME = """
from imgfs.execution.plugin import RUNTIME
from imgfs.execution.options import RuntimeProgram
from imgfs.plugins.contract import Plugin
NAME = "imgfs-test-runtime"
PLUGIN = Plugin(RUNTIME, "own", lambda _: RuntimeProgram("own", NAME), exports={"program": NAME})
"""
PLUGIN = "from imgfs.plugins.contract import Kind, Plugin\nPLUGIN = Plugin(Kind('word', str), 'it', {})\n"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("plugins")) as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of distributions besides the environment, for daemons that are started later."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path / "site"), os.getenv("PYTHONPATH")])))
    return tmp_path / "site"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    with Mounted(tmp_path) as made:
        yield made


def xz_layer(name: str) -> BuiltLayer:
    tar = layer_tar([File(name, f"{name}\n".encode() * 1000)])
    return BuiltLayer(tar, "xz", lzma.compress(tar), {})


def test_layers_of_a_plugins_compression_are_pulled_and_read(scene: Scene) -> None:
    name = scene.serve(image([xz_layer("one"), xz_layer("two")]), "xz")
    assert (name / "rootfs/one").read_text() == "one\n" * 1000
    assert (name / "rootfs/two").read_text() == "two\n" * 1000
    assert scene.mount.run("pull", f"{scene.registry.host}/xz:1").returncode == 0


def test_an_archive_with_such_layers_is_proved_too(scene: Scene, tmp_path: Path) -> None:
    good, bad = xz_layer("good"), xz_layer("bad")
    image([good]).write_layout(tmp_path / "good", "1")
    done = scene.mount.run("import", str(tmp_path / "good"), "localhost/good:1")
    assert done.returncode == 0, done.stderr
    lie = BuiltLayer(bad.tar, "xz", lzma.compress(good.tar), {})
    image([lie]).write_layout(tmp_path / "bad", "1")
    done = scene.mount.run("import", str(tmp_path / "bad"), "localhost/bad:1")
    assert (done.returncode, "the image config says" in done.stderr) == (6, True), done.stderr


def test_a_compressed_archive_of_a_plugins_format_is_imported(scene: Scene, tmp_path: Path) -> None:
    made = image([xz_layer("packed")])
    archive = tmp_path / "layout.tar.xz"
    archive.write_bytes(lzma.compress(tar(layout_members(made, "localhost/packed:1").items())))
    for source, data in ((str(archive), None), ("-", archive.read_bytes())):
        ended = imgfs(scene, "import", source, data=data)
        assert (ended.returncode, ended.stdout.decode()) == (0, f"localhost/packed:1 {made.digest}\n"), ended.stderr
    assert (scene.images / "localhost/packed:1/rootfs/packed").read_text() == "packed\n" * 1000
    archive.write_bytes(archive.read_bytes()[:-100])
    ended = imgfs(scene, "import", archive)
    assert ended.returncode != 0
    assert b"xz stream" in ended.stderr


def test_a_docker_archive_with_layers_of_a_plugins_format_is_imported(scene: Scene, tmp_path: Path) -> None:
    made = image([xz_layer("docker")])
    files = saved(made, "localhost/docker:1")
    (layer,) = (file for file in files if file.endswith("layer.tar"))
    archive = tmp_path / "docker.tar"
    archive.write_bytes(tar((files | {layer: made.layers[0].blob}).items()))
    ended = imgfs(scene, "import", archive)
    assert ended.returncode == 0, ended.stderr
    name = scene.images / "localhost/docker:1"
    (described,) = json.loads((name / "manifest.json").read_bytes())["layers"]
    assert described["mediaType"] == made.layers[0].media_type(docker=False)
    assert (name / "rootfs/docker").read_text() == "docker\n" * 1000


def test_each_installed_plugin_is_a_directory(scene: Scene) -> None:
    xz = scene.mount.path / ".imgfs/plugins/compression/xz"
    assert sorted(os.listdir(xz)) == ["config", "exports", "status"]
    assert (xz / "status").read_text() == "running\n"
    assert tomllib.loads((xz / "config").read_text()) == {"memory_mib": 128}
    assert "# default\nplugins.compression.xz.memory_mib = 128\n" in (scene.mount.path / ".imgfs/config").read_text()
    exports = tomllib.loads((xz / "exports").read_text())
    assert exports["type"] == "imgfs.layers.compression.Compression"
    assert exports["media_type"].endswith("tar+xz")
    assert exports["distribution"].startswith("imgfs-xz-layers ")
    assert (scene.mount.path / ".imgfs/plugins/content/local/status").read_text() == "running\n"
    with refused(errno.EPERM):
        (xz / "status").write_text("stopped\n")
    with refused(errno.ENOENT):
        os.stat(xz.parent / "brotli")


def test_a_runtime_says_whenever_it_is_asked_whether_it_is_of_use(
    site: Path, mount: Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "imgfs-test-runtime"
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{tmp_path}")
    install(site, "mount_runtime", RUNTIME, "runtime.own = mount_runtime:PLUGIN")
    mount.start()
    status = mount.path / ".imgfs/plugins/runtime/own/status"
    missing = "unavailable: imgfs-test-runtime is not installed: not found in PATH"
    assert status.read_text() == f"{missing}\n"
    assert missing in mount.run("plugins").stdout
    program.touch(0o755)
    assert status.read_text() == "running\n"
    root = ContainerRecords(mount.state).runtime_root
    root.mkdir(parents=True)
    remember_refusal(InstalledRuntime("own", str(program)), "no\ncgroups", root)
    assert status.read_text() == "unavailable: refused this host: no cgroups\n"


def test_the_command_lists_them(scene: Scene) -> None:
    listed = json.loads(scene.mount.run("plugins", "--format", "json").stdout)
    (xz,) = (one for one in listed if one["kind"] == "compression" and one["id"] == "xz")
    assert (xz["status"], xz["options"]) == ("running", {"memory_mib": 128})
    table = scene.mount.run("plugins").stdout.splitlines()
    assert table[0].split() == ["PLUGIN", "FROM", "STATUS"]
    assert len(table) == 1 + len(listed)


def test_one_of_others_that_cannot_be_imported_is_told_and_the_tree_is_shown(site: Path, mount: Mounted) -> None:
    install(site, "mount_broken", "import no_such_module", "word.it = mount_broken:PLUGIN")
    mount.start()
    reason = "off: ModuleNotFoundError: No module named 'no_such_module'"
    assert (mount.path / ".imgfs/plugins/word/it/status").read_text() == f"{reason}\n"
    assert reason in mount.run("plugins").stdout
    assert "no_such_module" in mount.log()
    for command in (("config", "show", "--state", str(mount.state)), ("man", "imgfs.toml")):
        done = mount.run(*command)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("module", "code", "points", "said", "code_"),
    [
        ("mount_failing", PLUGIN.format("lambda _: 1 / 0"), ["word.it"], "plugin word.it: ZeroDivisionError", 1),
        ("mount_missing", PLUGIN.format("str, ('word.no',)"), ["word.it"], "requires word.no, which does not run", 1),
        ("mount_cycle", PLUGIN.format("str, ('word.it',)"), ["word.it"], "word.it requires word.it", 2),
        ("mount_twice", "", ["content.local"], "plugin content.local: ", 2),
        (
            "mount_second",
            "from imgfs.content.plugin import CONTENT\n" + PLUGIN.format("str").replace("Kind('word', str)", "CONTENT"),
            ["content.it"],
            "plugin content.it: TypeError: `make` returned str, expected ContentStore",
            1,
        ),
    ],
)
def test_what_cannot_be_started_stops_the_start_with_a_sentence(
    site: Path, mount: Mounted, module: str, code: str, points: list[str], said: str, code_: int
) -> None:
    install(site, module, code, *(f"{point} = {module}:PLUGIN" for point in points))
    done = mount.try_start()
    assert (done.returncode, said in done.stderr) == (code_, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not mount_at(str(mount.path))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[plugins.compression.xz]\nmemory_mb = 5", "unknown option 'memory_mb'; did you mean 'memory_mib'?"),
        ("[plugins.compression.xy]", "no such plugin is installed; did you mean 'compression.xz'?"),
        ('disabled_plugins = ["compression.xy"]', "did you mean 'compression.xz'?"),
    ],
)
def test_a_wrong_option_stops_the_start_with_the_cure(tmp_path: Path, config: str, said: str) -> None:
    with Mounted(tmp_path, config) as mount:
        done = mount.try_start()
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
        assert not mount_at(str(mount.path))


def test_options_count_and_one_that_is_disabled_is_off(tmp_path: Path) -> None:
    config = (
        'platform = "linux/amd64"\ndisabled_plugins = ["compression.zstd"]\n[plugins.compression.xz]\nmemory_mib = 1'
    )
    with serving(tmp_path, config) as scene:
        status = scene.mount.path / ".imgfs/plugins/compression/zstd/status"
        assert status.read_text() == "off: disabled in imgfs.toml\n"
        with refused(errno.EFBIG):
            os.listdir(f"{scene.serve(image([xz_layer('limited')]), 'limited')}/rootfs/")


def test_a_needed_one_that_is_disabled_stops_the_start(tmp_path: Path) -> None:
    with Mounted(tmp_path, 'disabled_plugins = ["content.local"]') as mount:
        done = mount.try_start()
        assert done.returncode == 1
        assert "content.local: disabled in imgfs.toml" in done.stderr

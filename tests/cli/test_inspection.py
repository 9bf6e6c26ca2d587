"""`imgfs inspect` over a plain tree."""

from __future__ import annotations

import json

from imgfs.testing.images import AMD64, ARM64, File, attestation, image, index, layer
from tests.cli.conftest import Run
from tests.cli.plain_tree import PlainTree

BOX = image([layer([File("f", b"x")]), layer([File("g", b"y")], "zstd")], config={"config": {"Cmd": ["/f"]}})
ARM = image([layer([File("f", b"arm")])], platform=ARM64)
BOTH = index([BOX, ARM, attestation(BOX)])


def inspected(run: Run, *arguments: str) -> dict[str, object]:
    done = run("inspect", *arguments)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_json_has_documents_and_layers(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box", "too")
    assert inspected(run, "box") == {
        "name": "box",
        "digest": BOX.digest,
        "names": ["box", "too"],
        "platform": "linux/amd64",
        "platforms": ["linux/amd64"],
        "layers": [
            {
                "digest": one.digest,
                "diff_id": one.diff_id,
                "media_type": one.media_type(docker=False),
                "size": len(one.blob),
            }
            for one in BOX.layers
        ],
        "manifest": json.loads(BOX.document),
        "config": json.loads(BOX.config),
        "index": None,
    }


def test_by_digest_there_is_no_name(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    assert inspected(run, BOX.digest)["name"] is None


def test_index_lists_its_platforms_without_attestations(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box", index=BOTH)
    found = inspected(run, "box")
    assert found["platforms"] == [str(AMD64), str(ARM64)]
    assert found["index"] == json.loads(BOTH.document)


def test_platform_chooses_another_manifest_of_the_index(run: Run, tree: PlainTree) -> None:
    digest = tree.add(BOX, "box", index=BOTH)
    directory = tree.images / digest / "platforms" / ARM64.slug
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_bytes(ARM.document)
    (directory / "config.json").write_bytes(ARM.config)
    found = inspected(run, "box", "--platform", "linux/arm64")
    assert found["manifest"] == json.loads(ARM.document)
    assert found["platform"] == str(ARM64)


def test_platform_that_is_not_there_is_not_found_and_the_failure_names_those_that_are(
    run: Run, tree: PlainTree
) -> None:
    tree.add(BOX, "box", index=BOTH)
    done = run("inspect", "box", "--platform", "linux/s390x")
    assert done.exit_code == 3
    assert "it has linux/amd64, linux/arm64/v8" in done.stderr


def test_malformed_platform_is_usage(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    assert run("inspect", "box", "--platform", "linux").exit_code == 2


def test_table_is_the_gist(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    text = run("inspect", "box", "--format", "table").stdout
    assert f"digest     {BOX.digest}" in text
    assert [line.split()[0] for line in text.splitlines()[-3:]] == ["LAYER", "0", "1"]


def test_missing_document_fails_in_the_daemons_words(run: Run, tree: PlainTree) -> None:
    digest = tree.add(BOX, "box")
    (tree.images / digest / "config.json").unlink()
    tree.complain(digest, "config: registry answered 404")
    done = run("inspect", "box")
    assert done.exit_code == 3
    assert done.stderr.startswith("imgfs: config: registry answered 404\n")
    assert "`imgfs status box`" in done.stderr


def test_malformed_document_fails_verification(run: Run, tree: PlainTree) -> None:
    digest = tree.add(BOX, "box")
    (tree.images / digest / "config.json").write_bytes(b"[]")
    assert run("inspect", "box").exit_code == 6

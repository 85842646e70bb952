"""Checkpoints on the disk: whole or not at all, and known to be so."""

import binascii
import json
import os
from pathlib import Path

import pytest

from etw_lightning.files.checkpoint_folder import (
    STATE,
    describe_files,
    draft_of,
    files_below,
    folder_of,
    publish,
    remove,
    remove_checkpoints,
    remove_drafts,
    saved_checkpoints,
    set_aside,
    what_is_wrong,
)


def save(run, step, content=b"weights"):
    """Write a checkpoint of two files, one of them in a folder of shards."""
    folder = folder_of(run, step)
    draft = draft_of(folder)
    (draft / STATE / "shards").mkdir(parents=True)
    (draft / STATE / "meta").write_bytes(b"few")
    (draft / STATE / "shards" / "rank0").write_bytes(content)
    files = describe_files(draft, files_below(draft))
    publish(draft, folder, {"step": step, "files": files})
    return folder


def test_what_is_written_is_found_whole(tmp_path):
    folders = [save(tmp_path, step) for step in (100, 9, 20)]
    found = saved_checkpoints(tmp_path)
    assert [one.step for one in found] == [9, 20, 100]
    assert {one.folder for one in found} == set(folders)
    assert [what_is_wrong(one) for one in found] == ["", "", ""]
    assert found[0].state == folders[1] / STATE
    assert found[0].manifest["files"] == {
        "state.ckpt/meta": [3, binascii.crc32(b"few")],
        "state.ckpt/shards/rank0": [7, binascii.crc32(b"weights")],
    }


def test_all_of_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Files, the manifest and every folder before the rename; the folder it is in behind it."""
    done, sync, rename = [], os.fsync, Path.rename

    def watched_sync(handle):
        done.append(os.fstat(handle).st_ino)
        sync(handle)

    def watched_rename(path, target):
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    folder = save(tmp_path, 3)
    place = done.index("rename")
    before, after = done[:place], done[place + 1 :]
    inside = {path.stat().st_ino for path in (folder, *folder.rglob("*"))}
    assert len(inside) == 6  # three folders, two files and the manifest
    assert inside <= set(before)
    files = {path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
    folders = inside - files
    assert max(map(before.index, files)) < min(map(before.index, folders)), "names come last"
    assert folder.parent.stat().st_ino in after


def test_there_may_be_none(tmp_path):
    assert saved_checkpoints(tmp_path) == []


def test_a_step_that_is_saved_again_is_newer_and_leaves_the_first_alone(tmp_path):
    first, second = save(tmp_path, 3), save(tmp_path, 3, b"others")
    assert second != first
    assert [one.folder for one in saved_checkpoints(tmp_path)] == [first, second]
    assert save(tmp_path, 3).name == "step-00000003-2"


def test_drafts_and_other_folders_are_no_checkpoints(tmp_path):
    draft_of(folder_of(tmp_path, 1)).mkdir(parents=True)
    for name in ("step-1", "step-00000002.damaged", "best"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "step-00000003").write_text("a file")
    assert saved_checkpoints(tmp_path) == []
    remove_drafts(tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def cut(folder):
    (folder / STATE / "shards" / "rank0").write_bytes(b"weigh")


def change(folder):
    (folder / STATE / "shards" / "rank0").write_bytes(b"weightz")


def lose(folder):
    (folder / STATE / "meta").unlink()


def cut_manifest(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def name_nothing(folder):
    (folder / "manifest.json").write_text('{"files": {}}')


def lead_out(folder):
    (folder.parent / "evil").write_bytes(b"")
    (folder / "manifest.json").write_text(json.dumps({"files": {"../evil": [0, 0]}}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "state.ckpt/shards/rank0 has 5 bytes of 7"),
        (change, "state.ckpt/shards/rank0 has another checksum"),
        (lose, "state.ckpt/meta is missing"),
        (cut_manifest, "its manifest.json is missing or cut"),
        (name_nothing, "its manifest.json is missing or cut"),
        (lead_out, "names '../evil', which lies outside"),
    ],
)
def test_damage_is_seen(tmp_path, damage, said):
    damage(save(tmp_path, 1))
    (saved,) = saved_checkpoints(tmp_path)
    assert said in what_is_wrong(saved)
    assert bool(what_is_wrong(saved, contents=False)) == (damage is not change)
    aside = set_aside(saved)
    assert aside.is_dir()
    assert saved_checkpoints(tmp_path) == []


def test_what_is_removed_is_gone_at_once(tmp_path):
    folder = save(tmp_path, 1)
    remove(folder)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_what_others_have_put_there_stays(tmp_path):
    save(tmp_path, 1)
    remove_checkpoints(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    save(tmp_path, 2)
    draft_of(folder_of(tmp_path, 3)).mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"of another callback")
    remove_checkpoints(tmp_path)
    assert [one.name for one in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    remove_checkpoints(tmp_path / "nowhere")

"""What is kept for the next start: private, whole, ours, bounded, and never a reason to fail."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from loadwise.compiler.store import PackageStore
from loadwise.compiler.store.seal import MANIFEST
from loadwise.compiler.store.transfer import export_packages, import_packages, operator_key
from loadwise.errors import ConfigurationError


def package(folder: Path, text: str = "code") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "code.bin").write_text(text)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> PackageStore:
    return PackageStore(tmp_path / "store")


def put(store: PackageStore, name: str, tmp_path: Path, text: str = "code") -> bool:
    return store.put(name, package(tmp_path / "new", text), {"name": name})


def content(store: PackageStore, name: str) -> str | None:
    with store.find(name) as folder:
        return None if folder is None else (folder / "code.bin").read_text()


def test_package_is_found_by_another_process_on_the_same_directory(
    store: PackageStore, tmp_path: Path
) -> None:
    assert put(store, "a", tmp_path)
    assert content(PackageStore(store.root), "a") == "code"
    assert content(store, "b") is None


def test_directory_and_key_are_this_users_alone(store: PackageStore, tmp_path: Path) -> None:
    put(store, "a", tmp_path)
    assert store.root.stat().st_mode & 0o777 == 0o700
    assert (store.root / ".key").stat().st_mode & 0o777 == 0o600


def damage_file(folder: Path) -> None:
    (folder / "code.bin").write_text("evil")


def add_file(folder: Path) -> None:
    (folder / "more.so").write_text("evil")


def take_file(folder: Path) -> None:
    (folder / "code.bin").unlink()


def link_file(folder: Path) -> None:
    (folder / "code.bin").rename(folder.parent / "elsewhere")
    (folder / "code.bin").symlink_to(folder.parent / "elsewhere")


def forge_seal(folder: Path) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(values | {"hmac": "0" * 64}))


def break_seal(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\xff{")


def rename_entry(folder: Path) -> None:
    folder.rename(folder.with_name("b"))


@pytest.mark.parametrize(
    "harm", [damage_file, add_file, take_file, link_file, forge_seal, break_seal, rename_entry]
)
def test_entry_that_was_tampered_with_is_not_there_and_may_be_put_again(
    store: PackageStore, tmp_path: Path, harm: Any
) -> None:
    put(store, "a", tmp_path)
    harm(store.root / "a")
    assert content(store, "a") is None
    assert content(store, "b") is None
    assert put(store, "a", tmp_path, "new")
    assert content(store, "a") == "new"


def test_entry_sealed_with_another_key_is_foreign(store: PackageStore, tmp_path: Path) -> None:
    other = PackageStore(tmp_path / "other")
    put(other, "a", tmp_path)
    put(store, "b", tmp_path)
    (other.root / "a").rename(store.root / "a")
    assert content(store, "a") is None
    assert list(store.entries()) == ["b"]


def test_least_recently_used_go_when_the_store_is_full(tmp_path: Path) -> None:
    store = PackageStore(tmp_path / "store")
    for name in ("a", "b"):
        put(store, name, tmp_path, "x" * 1000)
    kept_bytes = sum(path.stat().st_size for path in (store.root / "a").iterdir())
    store.max_bytes = 2 * kept_bytes + 100
    assert content(store, "a") is not None
    put(store, "c", tmp_path, "x" * 1000)
    assert [content(store, name) is not None for name in ("a", "b", "c")] == [True, False, True]


def test_package_larger_than_the_store_is_not_kept_and_the_store_says_so(tmp_path: Path) -> None:
    store = PackageStore(tmp_path / "store", max_bytes=10)
    assert not put(store, "a", tmp_path, "x" * 100)
    assert "larger than the store" in store.problem


def test_directory_that_others_may_enter_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o755)
    (tmp_path / "store").chmod(0o755)
    store = PackageStore(tmp_path / "store")
    assert not put(store, "a", tmp_path)
    assert content(store, "a") is None
    assert "0700" in store.problem


@pytest.mark.parametrize(("number", "said"), [(28, "No space left on device"), (30, "Read-only file system")])
def test_full_or_read_only_disk_keeps_nothing_breaks_nothing_and_leaves_what_was_there(
    store: PackageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    put(store, "a", tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(number, said)

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        assert not put(store, "a", tmp_path, "new")
        assert not put(store, "b", tmp_path)
    assert said in store.problem
    assert content(store, "a") == "code"
    assert not list(store.root.glob(".new-*"))
    assert put(store, "b", tmp_path)
    assert store.problem == ""


def test_place_where_no_directory_can_be_made_is_a_store_that_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = PackageStore(tmp_path / "file" / "store")
    assert not put(store, "a", tmp_path)
    assert store.entries() == {}
    assert store.problem


def test_servers_that_share_a_directory_never_see_half_a_package(store: PackageStore, tmp_path: Path) -> None:
    put(store, "a", tmp_path, "0" * 1000)
    seen: list[str | None] = []

    def write(text: str) -> None:
        mine = PackageStore(store.root)
        folder = package(tmp_path / f"from-{text}", text * 1000)
        for _ in range(20):
            assert mine.put("a", folder, {"name": "a"})

    def read() -> None:
        mine = PackageStore(store.root)
        seen.extend(content(mine, "a") for _ in range(40))

    threads = [threading.Thread(target=write, args=(text,)) for text in "12"]
    threads += [threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 40
    assert {None if text is None else (len(text), len(set(text))) for text in seen} == {(1000, 1)}


def test_two_servers_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    stores = [PackageStore(tmp_path / "store") for _ in range(8)]
    threads = [
        threading.Thread(
            target=lambda s=s, n=n: s.put(f"n{n}", package(tmp_path / f"p{n}"), {"name": f"n{n}"})
        )
        for n, s in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(stores[0].entries()) == {f"n{n}" for n in range(8)}


# --- elsewhere, with the operator's key ---------------------------------------------------------


@pytest.fixture
def key(tmp_path: Path) -> bytes:
    (tmp_path / "key").write_text("sixteen bytes or more")
    return operator_key(tmp_path / "key")


def test_packages_travel_with_the_operators_key(store: PackageStore, tmp_path: Path, key: bytes) -> None:
    put(store, "a", tmp_path)
    archive = tmp_path / "packages.tar"
    assert export_packages(store, archive, key) == ["a"]
    other = PackageStore(tmp_path / "other")
    assert import_packages(other, archive, key) == ["a"]
    assert content(other, "a") == "code"


def test_archive_of_another_key_or_changed_on_the_way_is_refused_whole(
    store: PackageStore, tmp_path: Path, key: bytes
) -> None:
    put(store, "a", tmp_path)
    archive = tmp_path / "packages.tar"
    export_packages(store, archive, key)
    other = PackageStore(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="not sealed with this key"):
        import_packages(other, archive, b"another")
    archive.write_bytes(archive.read_bytes().replace(b"code", b"evil", 1))
    with pytest.raises(ConfigurationError):
        import_packages(other, archive, key)
    assert other.entries() == {}


@pytest.mark.parametrize("name", ["../evil/code.bin", "/etc/evil", "a/../../evil", "evil", "a/b/c"])
def test_archive_with_foreign_paths_is_refused(tmp_path: Path, key: bytes, name: str) -> None:
    import io
    import tarfile

    archive = tmp_path / "packages.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ConfigurationError, match="does not belong"):
        import_packages(PackageStore(tmp_path / "store"), archive, key)


def test_key_that_is_missing_or_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Cannot read"):
        operator_key(tmp_path / "none")
    (tmp_path / "short").write_text("short")
    with pytest.raises(ConfigurationError, match="at least 16"):
        operator_key(tmp_path / "short")

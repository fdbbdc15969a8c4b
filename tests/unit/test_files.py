"""Who may change the configuration's file, and its folder; which files are still being written."""

from __future__ import annotations

import grp
import os
import time
from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.files import check_trusted, is_young

ADM = grp.getgrnam("adm").gr_gid


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    (folder / "agent.yaml").write_text("interface: eth0\n")
    return folder / "agent.yaml"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o660, 0o664])
def test_what_root_alone_can_change_is_trusted(path: Path, mode: int) -> None:
    path.chmod(mode)
    check_trusted(path)


def test_what_others_can_change_is_refused(path: Path) -> None:
    path.chmod(0o646)
    with pytest.raises(ConfigError, match=r"change the file \(mode 0646\)"):
        check_trusted(path)
    path.chmod(0o644)
    path.parent.chmod(0o757)
    with pytest.raises(ConfigError, match=r"change the folder of the file \(mode 0757\)") as caught:
        check_trusted(path)
    assert caught.value.remedy == f"chmod go-w {path.parent}"


def test_a_group_may_change_it_if_its_members_may_do_everything(path: Path) -> None:
    path.chmod(0o664)
    os.chown(path, 0, ADM)
    with pytest.raises(ConfigError, match="change the file"):
        check_trusted(path, ("staff",))
    check_trusted(path, ("staff", "adm"))
    os.chown(path, 0, 54_321)  # a group that this host does not have
    with pytest.raises(ConfigError, match="change the file"):
        check_trusted(path, ("adm",))


def test_another_users_file_is_refused(path: Path) -> None:
    os.chown(path, 65_534, 0)
    with pytest.raises(ConfigError, match="belongs to another user") as caught:
        check_trusted(path)
    assert caught.value.remedy == f"chown root {path}"


def test_a_sticky_folder_protects_a_file_of_root(path: Path) -> None:
    path.parent.chmod(0o1777)
    check_trusted(path)


def test_a_link_is_as_good_as_what_it_leads_to(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    check_trusted(link)
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="change the file") as caught:
        check_trusted(link)
    assert caught.value.where == str(link)
    path.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=r"folder of the file \(mode 0777\)") as caught:
        check_trusted(link)
    assert caught.value.remedy == f"chmod go-w {tmp_path}"


def test_a_file_that_is_gone_is_for_its_reader_to_say(tmp_path: Path) -> None:
    check_trusted(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(("age_s", "young"), [(0, True), (50, True), (200, False), (-500, False)])
def test_a_file_is_young_for_a_while_after_it_was_written(
    path: Path, age_s: float, young: bool
) -> None:
    then = time.time() - age_s
    os.utime(path, (then, then))
    assert is_young(path, 100) is young


def test_a_file_that_is_gone_is_not_waited_for(path: Path) -> None:
    assert not is_young(path.with_name("gone"), 100)

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.storage.mirror.subject import Survives
from cloister.storage.mirror.volatile_mounts import survives_at

MOUNTS = """\
22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:22 / /ram rw - tmpfs tmpfs rw,size=1k
24 23 8:1 / /ram/disk rw shared:3 master:4 - xfs /dev/sdb rw
25 22 0:23 / /old rw - xfs /dev/sdc rw
26 22 0:24 / /old rw - ramfs none rw
27 22 0:25 / /with\\040space rw - tmpfs tmpfs rw
28 22 0:25 / /first rw - rootfs rootfs rw
a line of another form
"""


@pytest.mark.parametrize(
    ("path", "survives"),
    [
        ("/x.mirror", "power-cut"),
        ("/ramp/x.mirror", "power-cut"),
        ("/ram/x.mirror", "process-death"),
        ("/ram/deep/er/x.mirror", "process-death"),
        ("/ram/disk/x.mirror", "power-cut"),
        ("/old/x.mirror", "process-death"),
        ("/with space/x.mirror", "process-death"),
        ("/first/x.mirror", "process-death"),
    ],
)
def test_the_deepest_and_last_mount_above_a_file_says_it(
    tmp_path: Path, path: str, survives: Survives
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert survives_at(Path(path), mounts=mounts) == survives


def test_a_link_to_a_directory_is_followed(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    (tmp_path / "link").symlink_to("/ram")
    path = tmp_path / "link" / "x.mirror"
    assert survives_at(path, mounts=mounts) == "process-death"


@pytest.mark.parametrize("content", [None, "", "nothing of use\n"])
def test_where_it_cannot_be_told_the_least_is_claimed(
    tmp_path: Path, content: str | None
) -> None:
    mounts = tmp_path / "mountinfo"
    if content is not None:
        mounts.write_text(content)
    assert survives_at(Path("/x.mirror"), mounts=mounts) == "process-death"


@pytest.mark.skipif(not Path("/dev/shm").is_mount(), reason="no /dev/shm")  # noqa: S108
def test_the_kernels_own_list_is_read() -> None:
    assert survives_at(Path("/dev/shm/x.mirror")) == "process-death"  # noqa: S108

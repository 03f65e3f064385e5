"""Limits of control groups, on trees as the kernel shows them where Docker, Kubernetes or systemd made them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.cgroup import cpu_quota, memory_limit
from deploykit.devices import available_cores

PERIOD = 100_000
NO_MEMORY_LIMIT_V1 = 9_223_372_036_854_771_712
V2 = "30 23 0:26 {top} {place} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 23 0:27 {top} {place} rw,nosuid - cgroup cgroup rw,{name}\n"
OTHERS = (
    "22 1 0:5 / / rw - overlay overlay rw,lowerdir=/a:/b\n23 22 0:6 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
)

names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0\n\r", exclude_categories=["C"]), min_size=1, max_size=8
)
names = names.filter(lambda name: name not in (".", ".."))
limits = st.none() | st.integers(1, 10**12)


def escaped(path: str) -> str:
    return "".join(f"\\{ord(letter):03o}" if letter in " \t\\" else letter for letter in path)


@contextmanager
def tree(cgroup: str, mountinfo: str, files: dict[str, str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        texts = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": OTHERS + mountinfo, **files}
        for name, text in texts.items():
            file = root / name.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        yield root


@settings(max_examples=25)  # Each makes a tree of files.
@given(st.lists(st.tuples(names, limits, limits), max_size=4), limits, names)
def test_the_tightest_limit_from_the_own_group_up_to_the_mount_counts(
    groups: list[tuple[str, int | None, int | None]], at_top: int | None, mount: str
) -> None:
    place, group, files = f"/sys/fs/{mount}", "", {}
    for part, quota, memory in [("", at_top, at_top), *groups]:
        group = f"{group}/{part}" if part else group
        files[f"{place}{group}/cpu.max"] = f"{quota or 'max'} {PERIOD}\n"
        files[f"{place}{group}/memory.max"] = f"{memory or 'max'}\n"
    files[f"{place}{group}/below/cpu.max"] = "1 1000000\n"
    quotas = [quota for quota in (at_top, *(each[1] for each in groups)) if quota]
    memories = [memory for memory in (at_top, *(each[2] for each in groups)) if memory]
    with tree(f"0::{group or '/'}\n", V2.format(top="/", place=escaped(place)), files) as root:
        assert cpu_quota(root) == (min(quotas) / PERIOD if quotas else None)
        assert memory_limit(root) == (min(memories) if memories else None)


@settings(max_examples=25)  # Each makes a tree of files.
@given(st.lists(st.tuples(names, limits, limits), max_size=3), st.integers(0, 3))
def test_version_1_keeps_its_controllers_apart_and_may_show_a_part_of_the_tree(
    groups: list[tuple[str, int | None, int | None]], hidden: int
) -> None:
    """Docker without a namespace of its own shows the process's whole path, and mounts the tree from there on."""
    paths = ["/".join(["", *(part for part, _, _ in groups[: depth + 1])]) for depth in range(len(groups))]
    own = paths[-1] if paths else "/"
    top = (["/", *paths])[min(hidden, len(paths))]
    files, shown = {}, []
    for path, (_, quota, memory) in zip(paths, groups, strict=True):
        if top != "/" and not f"{path}/".startswith(f"{top}/"):
            continue
        inner = path.removeprefix(top.rstrip("/"))
        files[f"/sys/fs/cgroup/cpu,cpuacct{inner}/cpu.cfs_quota_us"] = f"{quota or -1}\n"
        files[f"/sys/fs/cgroup/cpu,cpuacct{inner}/cpu.cfs_period_us"] = f"{PERIOD}\n"
        files[f"/sys/fs/cgroup/memory{inner}/memory.limit_in_bytes"] = f"{memory or NO_MEMORY_LIMIT_V1}\n"
        shown.append((quota, memory))
    cgroup = f"4:memory:{own}\n3:cpuset:/elsewhere\n2:cpu,cpuacct:{own}\n1:name=systemd:/\n0::/\n"
    mounts = "".join(
        V1.format(top=escaped(top), place=f"/sys/fs/cgroup/{name}", name=name)
        for name in ("memory", "cpuset", "cpu,cpuacct")
    )
    with tree(cgroup, mounts, files) as root:
        quotas = [quota for quota, _ in shown if quota]
        assert cpu_quota(root) == (min(quotas) / PERIOD if quotas else None)
        assert memory_limit(root) == (min(memory or NO_MEMORY_LIMIT_V1 for _, memory in shown) if shown else None)


@pytest.mark.parametrize(
    ("own", "top"),
    [("/", "/"), ("/", "/../.."), ("/../../kubepods/pod1", "/"), ("/kubepods/pod1/abc", "/docker/xyz")],
    ids=["namespace", "mount above the namespace", "group above the namespace", "another part of the tree"],
)
def test_in_a_container_the_mount_itself_is_the_own_group(own: str, top: str) -> None:
    files = {
        "/sys/fs/cgroup/cpu.max": "250000 100000",
        "/sys/fs/cgroup/memory.max": "1073741824",
        "/cpu.max": "1 100000",
    }
    with tree(f"0::{own}\n", V2.format(top=top, place="/sys/fs/cgroup"), files) as root:
        assert (cpu_quota(root), memory_limit(root)) == (2.5, 2**30)


def test_the_mount_of_another_group_limits_nothing() -> None:
    others = V2.format(top="/machine.slice/other", place="/run/other")
    files = {
        "/run/other/cpu.max": "100000 100000",
        "/run/other/memory.max": "1000",
        "/sys/fs/cgroup/user.slice/cpu.max": "300000 100000",
    }
    for mounts in (
        others + V2.format(top="/", place="/sys/fs/cgroup"),
        V2.format(top="/", place="/sys/fs/cgroup") + others,
    ):
        with tree("0::/user.slice/me\n", mounts, files) as root:
            assert (cpu_quota(root), memory_limit(root)) == (3.0, None)


@pytest.mark.parametrize(
    "text", ["", "max", "max 100000", "0 100000", "100 0", "1 2 3", "-1 100000", "nan 1", "two cores"]
)
def test_what_is_no_quota_limits_nothing(text: str) -> None:
    files = {"/sys/fs/cgroup/cpu.max": text, "/sys/fs/cgroup/memory.max": text.partition(" ")[0] and "max"}
    with tree("0::/\n", V2.format(top="/", place="/sys/fs/cgroup"), files) as root:
        assert (cpu_quota(root), memory_limit(root)) == (None, None)


def test_where_nothing_is_mounted_nothing_limits(tmp_path: Path) -> None:
    assert (cpu_quota(tmp_path), memory_limit(tmp_path)) == (None, None)
    with tree("0::/user.slice\n2:cpu:/\n", "", {}) as root:
        assert (cpu_quota(root), memory_limit(root)) == (None, None)


@pytest.mark.parametrize(
    ("quota", "cores"), [(None, 64), (0.001, 1), (0.5, 1), (1.0, 1), (1.01, 2), (2.0, 2), (63.5, 64), (200.0, 64)]
)
def test_cores_are_those_of_the_quota_rounded_up_and_no_more_than_there_are(
    quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploykit.devices.cpu_quota", lambda: quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.delattr("os.process_cpu_count", raising=False)
    assert available_cores() == cores


def test_what_python_is_told_of_cores_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since 3.13: ``-X cpu_count`` and ``PYTHON_CPU_COUNT``, else the cores that the process is pinned to."""
    monkeypatch.setattr("deploykit.devices.cpu_quota", lambda: 8.0)
    monkeypatch.setattr("os.process_cpu_count", lambda: 3, raising=False)
    assert available_cores() == 3
    monkeypatch.setattr("os.process_cpu_count", lambda: None)
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert available_cores() == 1

"""How much memory and disk is free here, including container limits, and whether a run fits."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common_utils.errors import UserError


class ResourceError(UserError):
    """The run cannot fit; the message names the config field to lower."""


@dataclass(frozen=True)
class Need:
    """``bytes`` that something will take, and the config field (if any) that sets how much."""

    bytes: int
    field: str = ""


def cpu_name() -> str:
    """The CPU's model name, family and model, as Linux reports them.

    Virtual machines often show no more than the brand ("AMD EPYC"), for CPUs with AVX-512 and
    without.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    first = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    found = {name.strip(): value.strip() for name, _, value in first}
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return "{} (family {}, model {})".format(
        *(found.get(key, "?") for key in ("model name", "cpu family", "model"))
    )


def format_bytes(n: float) -> str:
    """``512 B``, ``1.5 KiB``, ``3.2 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _stat_value(path: Path, key: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(v) for k, _, v in (x.partition(" ") for x in lines) if k == key), 0)


def _cgroup_dirs(root: Path, proc: Path) -> list[tuple[Path, int]]:
    """(folder, cgroup version) of this process's groups and their parents that exist."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    out: list[tuple[Path, int]] = []
    for line in lines or ["0::/"]:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        base, version = (root / "memory", 1) if controllers else (root, 2)
        group = base / path.strip("/")
        # inside a container the path may be the host's: then only the root is visible
        out += [(g, version) for g in (group, *group.parents) if g == base or base in g.parents]
    return [(g, v) for g, v in dict.fromkeys(out) if g.is_dir()]


def available_memory(cgroup: str = "/sys/fs/cgroup", proc: str = "/proc") -> int:
    """Bytes of RAM that this process can still use: the smallest amount that the machine and each
    enclosing control group leave (page cache that can be dropped counts as free)."""
    free = []
    for line in _lines(Path(proc) / "meminfo"):
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    for group, version in _cgroup_dirs(Path(cgroup), Path(proc)):
        names = ("memory.max", "memory.current", "inactive_file")
        if version == 1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit, used = _read_int(group / names[0]), _read_int(group / names[1])
        if limit is not None and used is not None:
            free.append(limit - used + _stat_value(group / "memory.stat", names[2]))
    if not free:  # no /proc: not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min(free))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def available_disk(path: str | os.PathLike[str]) -> int:
    """Bytes free for this process on the disk of ``path`` (which need not exist yet)."""
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_fits(
    memory: Mapping[str, Need | int],
    disk: Mapping[str, Need | int] | None = None,
    path: str | os.PathLike[str] = ".",
    headroom: float = 0.05,
) -> list[str]:
    """Lines saying what a run will take, or ResourceError if it cannot fit.

    ``memory`` and ``disk``: purpose -> bytes, with the config field that sets them. ``disk`` is
    needed on the disk of ``path``. ``headroom``: fraction of the free amount that must stay free.
    """
    lines = check_room("memory", memory, available_memory(), headroom)
    return lines + check_room(f"disk ({path})", disk or {}, available_disk(path), headroom)


def check_room(
    kind: str, needs: Mapping[str, Need | int], free: int, headroom: float = 0.05
) -> list[str]:
    """As :func:`check_fits`, for any kind of memory of which ``free`` bytes are left."""
    full = {k: n if isinstance(n, Need) else Need(int(n)) for k, n in needs.items()}
    if not full:
        return []
    total = sum(n.bytes for n in full.values())
    parts = ", ".join(f"{k} {format_bytes(n.bytes)}" for k, n in full.items())
    if total > free * (1 - headroom):
        more = "; free some, or choose another folder" if kind.startswith("disk") else ""
        raise ResourceError(_too_big(kind, parts, total, free, full) + more)
    return [f"{kind}: {parts}; {format_bytes(free)} available"]


def _too_big(kind: str, parts: str, total: int, free: int, needs: Mapping[str, Need]) -> str:
    largest = max((n for n in needs.values() if n.field), key=lambda n: n.bytes, default=None)
    text = (
        f"the run needs {format_bytes(total)} of {kind} ({parts}), "
        f"but {format_bytes(free)} are available"
    )
    return f"{text}; lower {largest.field}" if largest else text

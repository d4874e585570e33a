"""Energy of processors and memory by RAPL, where Linux lets this process read it.

/sys/class/powercap has a counter of microjoules for each zone; most systems let only
root read them. Accelerators are not among them.
"""

from pathlib import Path

POWERCAP = Path('/sys/class/powercap')


class EnergyMeter:
    """Joules since the last reading, of all packages and memories together."""

    def __init__(self, folder: Path = POWERCAP):
        zones = sorted(folder.glob('intel-rapl:*'))  # AMD's have this name too
        self._zones = [zone for zone in zones if _is_counted(zone)]
        self._last = {zone: _microjoules(zone, 'energy_uj') for zone in self._zones}

    def read(self) -> float | None:
        """Joules since the last call; None without a counter."""
        if not self._zones or None in self._last.values():
            return None
        now = {zone: _microjoules(zone, 'energy_uj') for zone in self._zones}
        if None in now.values():
            return None
        total = 0
        for zone, value in now.items():
            used = value - self._last[zone]
            if used < 0:  # the counter has started again
                used += _microjoules(zone, 'max_energy_range_uj') or 0
            total += max(used, 0)
        self._last = now
        return total / 1e6


def _is_counted(zone: Path) -> bool:
    """Whether it is a package or its memory: the other zones are parts of these."""
    try:
        name = (zone / 'name').read_text().strip()
    except OSError:
        return False
    return name.startswith('package') or name == 'dram'


def _microjoules(zone: Path, name: str) -> int | None:
    try:
        return int((zone / name).read_text())
    except (OSError, ValueError):
        return None

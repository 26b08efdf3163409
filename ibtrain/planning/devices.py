"""The GPUs that a run can be planned for: memory, rates and links.

Figures are of the makers' data sheets (dense, without sparsity); memory is what the driver shows a
program, which is a little less than the number on the box.
"""

import difflib
import re
from dataclasses import dataclass

_GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One GPU of a node, and its share of what joins it to others."""

    name: str
    memory: int
    """Bytes that a program can have."""
    half_rate: float
    """Floating-point operations a second of bf16 tensor cores."""
    single_rate: float
    """The same of fp32, without TF32: torch's default."""
    memory_rate: float
    """Bytes a second of its own memory."""
    link_rate: float
    """Bytes a second that it receives from GPUs of its node: NVLink, or the PCIe bus."""
    network_rate: float
    """Bytes a second of its share of its node's network, as such nodes are usually built."""
    host_rate: float
    """Bytes a second between it and its host's memory."""

    def rate(self, precision: str) -> float:
        """Operations a second in a recipe's `precision`: the denominator of MFU."""
        return self.half_rate if precision == "bf16" else self.single_rate


def _device(
    name: str,
    gib: float,
    half: float,
    single: float,
    memory: float,
    link: float,
    network: float,
    host: float,
) -> Device:
    """From GiB, TFLOP/s and GB/s."""
    rates = (1e12 * half, 1e12 * single, 1e9 * memory, 1e9 * link, 1e9 * network, 1e9 * host)
    return Device(name, int(gib * _GIB), *rates)


# name, GiB, bf16 TFLOP/s, fp32 TFLOP/s, then GB/s: memory, links (each way), network, host.
DEVICES = {
    device.name: device
    for device in (
        _device("a100-40g", 39.4, 312, 19.5, 1555, 300, 25, 32),
        _device("a100-80g", 79.1, 312, 19.5, 2039, 300, 25, 32),
        _device("a100-pcie-40g", 39.4, 312, 19.5, 1555, 32, 12.5, 32),
        _device("a100-pcie-80g", 79.1, 312, 19.5, 1935, 32, 12.5, 32),
        _device("h100", 79.1, 989.4, 66.9, 3350, 450, 50, 64),
        _device("h100-pcie", 79.1, 756, 51.2, 2000, 64, 25, 64),
        _device("h100-nvl", 93.1, 835.5, 60, 3900, 64, 25, 64),
        _device("h200", 139.7, 989.4, 66.9, 4800, 450, 50, 64),
        _device("b200", 178.3, 2250, 75, 7700, 900, 50, 64),
        _device("a40", 44.4, 149.7, 37.4, 696, 32, 12.5, 32),
        _device("l40s", 44.4, 362, 91.6, 864, 32, 25, 32),
        _device("rtx4090", 23.5, 165.2, 82.6, 1008, 32, 3, 32),
        _device("rtx3090", 23.6, 71, 35.6, 936, 32, 3, 32),
    )
}

# What drivers and people call them, most particular first.
_PATTERNS = (
    (r"a100.*(pcie|pci-e).*80|a100.*80.*pcie", "a100-pcie-80g"),
    (r"a100.*(pcie|pci-e)", "a100-pcie-40g"),
    (r"a100.*80", "a100-80g"),
    (r"a100(?!\d)", "a100-40g"),
    (r"h100.*nvl", "h100-nvl"),
    (r"h100.*pcie", "h100-pcie"),
    (r"h100(?!\d)", "h100"),
    (r"h200(?!.*nvl)", "h200"),
    (r"b200", "b200"),
    (r"\ba40\b", "a40"),
    (r"l40s", "l40s"),
    (r"rtx ?4090\b(?!.*laptop)", "rtx4090"),
    (r"rtx ?3090\b(?!.*ti)", "rtx3090"),
)


def device_named(name: str) -> Device:
    """The device of a name such as `h100`, or as a driver says it (`NVIDIA A100-SXM4-80GB`).

    Raises:
        ValueError: when it is not in the table.
    """
    plain = name.strip().lower()
    if plain in DEVICES:
        return DEVICES[plain]
    for pattern, known in _PATTERNS:
        if re.search(pattern, plain) and not re.search(r"gh200|gb200", plain):
            return DEVICES[known]
    near = difflib.get_close_matches(plain, DEVICES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"no GPU {name!r} in the table of devices; {hint}there are {', '.join(DEVICES)}"
    )

import pytest

from ibtrain.planning.devices import DEVICES, device_named


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("h100", "h100"),
        ("H200", "h200"),
        (" a100-40g ", "a100-40g"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80g"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40g"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A40", "a40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
    ],
)
def test_a_device_by_what_people_and_drivers_call_it(said, name):
    assert device_named(said) is DEVICES[name]


@pytest.mark.parametrize(
    "said",
    [
        "Tesla V100-SXM2-16GB",
        "NVIDIA GB200",
        "NVIDIA GH200 480GB",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A400",
        "NVIDIA RTX A1000",
        "NVIDIA H200 NVL",
        "",
    ],
)
def test_a_device_that_is_not_in_the_table(said):
    with pytest.raises(ValueError, match=r"no GPU .* in the table of devices; .*a100-40g, "):
        device_named(said)


def test_the_nearest_is_named():
    with pytest.raises(ValueError, match="did you mean 'h100'"):
        device_named("h10")


def test_published_figures():
    """By the data sheets: the SXM cards' dense bf16 and fp32 rates, memory and NVLink one way."""
    a100, h100, h200 = DEVICES["a100-80g"], DEVICES["h100"], DEVICES["h200"]
    assert [a100.rate("bf16"), a100.rate("fp32")] == pytest.approx([312e12, 19.5e12])
    assert [h100.rate("bf16"), h100.rate("fp32")] == pytest.approx([989.4e12, 66.9e12])
    assert h200.rate("bf16") == h100.rate("bf16")
    assert (a100.memory_rate, h100.memory_rate, h200.memory_rate) == (2039e9, 3350e9, 4800e9)
    assert (a100.link_rate, h100.link_rate) == (600e9 / 2, 900e9 / 2)
    for device in DEVICES.values():
        assert device.host_rate <= device.link_rate <= device.memory_rate
        assert 23 * 2**30 < device.memory < 192e9

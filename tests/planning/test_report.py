from dataclasses import replace

from ibtrain.config import load_recipe
from ibtrain.planning.devices import device_named
from ibtrain.planning.plan import Cluster, make_plan
from ibtrain.planning.report import describe


def test_the_plan_as_people_read_it():
    plan = make_plan(load_recipe("vicuna13b"), Cluster(2, 8, device_named("a100-40g")))
    lines = describe(plan).splitlines()
    assert lines[0] == (
        "vicuna13b on 16 a100-40g (2 nodes of 8; 39.4 GiB each): 1 micro-batch of up to 4 samples "
        "a step"
    )
    assert lines[1].startswith("model   14,191,448,832 parameters, 189,624,832 trained (vicuna-13b")
    assert "32 visual, 128 instruction and 257 answer tokens" in lines[2]
    assert "32 + 27 + 16" in lines[3]
    header = "sharding fits GiB of it s/step samples/s MFU GB received/step"
    assert " ".join(lines[5].split()) == header
    assert [line.split()[:2] for line in lines[6:9]] == [
        ["zero1", "yes"],
        ["zero2", "yes"],
        ["zero3", "yes"],
    ]
    assert lines[-1].startswith("take sharding=zero2: it needs ")
    nothing = replace(plan, chosen="", because="no sharding fits: it is too large")
    assert describe(nothing).splitlines()[-1] == "no sharding fits: it is too large"

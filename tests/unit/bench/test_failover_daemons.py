"""Both daemons of the comparison are told the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from agent.config.load import parse
from agent.failover.plan import plan as routers_of
from bench.failover.daemons import VRID, keepalived_text, steelyard_document
from bench.failover.network import BACKUP, MASTER, Pair, Variant
from bench.failover.plan import VARIANTS


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("index", [MASTER, BACKUP])
def test_the_two_configurations_mean_the_same(variant: Variant, index: int, tmp_path: Path) -> None:
    pair = Pair("test", variant, tmp_path)
    node = pair.nodes[index]
    theirs = keepalived_text(pair, node)
    config = parse(yaml.safe_dump(steelyard_document(pair, node, tmp_path)), "test")
    (router,) = routers_of(config).routers

    def said(word: str) -> str:
        (found,) = re.findall(rf"^\s+{word} (\S+)$", theirs, re.MULTILINE)
        return str(found)

    listed = theirs.partition("virtual_ipaddress {")[2].partition("}")[0].split()
    assert listed == [str(vip) for vip in router.vips]
    assert int(said("virtual_router_id")) == router.instance.vrid == VRID
    assert int(said("priority")) == router.instance.priority
    assert int(said("version")) == router.instance.version
    assert float(said("advert_int")) == router.instance.interval_s
    assert said("interface") == router.interface

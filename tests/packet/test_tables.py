"""The kernel's own maps, tries and arrays: what reconcile writes is what it reads again."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.dataplane import contents
from agent.reconcile.apply import Applier
from agent.reconcile.diff import after, diff
from agent.state.desired import desired
from agent.state.tables import TableContents
from tests.examples import examples
from tests.packet.harness import Rig
from tests.property.worlds import ids_for, worlds


@settings(
    deadline=None,
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(history=st.lists(worlds(), min_size=1, max_size=4))
def test_the_kernels_tables_hold_after_each_step_what_the_model_says(rig: Rig, history):
    rig.reset()
    applier = Applier(rig.tables)
    held = contents.read(rig.tables)
    assert held == TableContents()
    for config, around in history:
        for step in diff(held, desired(config, ids_for(config, held), around)):
            applier.apply(step)
            held = after(held, step)
            assert contents.read(rig.tables) == held

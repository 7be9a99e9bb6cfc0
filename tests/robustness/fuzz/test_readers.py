"""Readers return or report one sentence for any bytes, soon and in little memory.

The default run tries a few dozen a reader; `FUZZ_EXAMPLES=20000 pytest tests/robustness/fuzz` is a long one, and
`python -m tests.robustness.fuzz.run` one that is guided by coverage.
"""

from __future__ import annotations

import logging
import os
import time

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from tests.robustness.fuzz.mutating import examples
from tests.robustness.fuzz.targets import survives, targets

resource = pytest.importorskip("resource", reason="Windows does not tell the peak of memory")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
SECONDS = 5.0  # for one input; a few milliseconds are usual
MEGABYTES = 400  # that all inputs of one reader together may leave the process larger by
TARGETS = targets()


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_survives(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    target = TARGETS[name]
    for seed in target.seeds:
        survives(target, seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize="FUZZ_EXAMPLES" not in os.environ,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        given_bytes = data.draw(examples(target.seeds))
        began = time.process_time()
        survives(target, given_bytes)
        assert time.process_time() - began < SECONDS

    fuzz()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10) - before < MEGABYTES

"""The models of a job: a run resumes with the revisions that the job began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openavs.errors import ModelError
from openavs.jobs.progress import check_models

BRANCHES: dict[str, Any] = {"hf:org/sam@dev": {"revision": "d1"}, "hf:org/sam@main": {"revision": "m1"}}


def test_a_pinned_reference_is_the_branch_that_it_was_pinned_from(tmp_path: Path) -> None:
    check_models(tmp_path, BRANCHES)
    check_models(tmp_path, {"hf:org/sam@m1": {"revision": "m1"}, "hf:org/sam@d1": {"revision": "d1"}})


@pytest.mark.parametrize("moved", ["hf:org/sam@dev", "hf:org/sam@main"])
def test_each_of_two_branches_of_a_repository_is_checked(tmp_path: Path, moved: str) -> None:
    check_models(tmp_path, BRANCHES)
    with pytest.raises(
        ModelError, match=r"the model 'hf:org/sam@.*' is at .*new.* and the job in .* began with d1, m1"
    ):
        check_models(tmp_path, {**BRANCHES, moved: {"revision": "new"}})

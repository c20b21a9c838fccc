"""Many names in few letters, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_api.resource.name_ranges import MOST_NAMES, short_names, spelled_out
from videotrain_api.resource.status import GenerationStatus, RunStatus
from videotrain_api.resource.stored_status import read_status

NAMES = st.lists(
    st.one_of(
        st.builds("{}-w{}".format, st.sampled_from(["demo", "demo-w0", "a", "x9"]), st.integers(0, 5000)),
        st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True),
    ),
    max_size=60,
)


@given(NAMES)
def test_every_list_of_names_comes_back_in_its_order(names: list[str]) -> None:
    assert spelled_out(short_names(names)) == names


def test_a_whole_world_takes_a_few_letters() -> None:
    assert short_names([f"demo-w{i}" for i in range(4096)]) == "demo-w[0-4095]"
    assert short_names(["demo-w0"]) == "demo-w0"
    assert short_names([f"demo-w{i}" for i in (0, 1, 2, 7, 9, 10)]) == "demo-w[0-2,7,9-10]"
    assert short_names([]) == ""


NO_LISTS = """
demo-w[0-3  demo-w]0[  ,  demo-w[]  demo-w[-]  demo-w[3-1]  demo-w[1-2-3]  a,,b  demo-w[0-8192]
demo-w[0-4095,0-4095,1]  x[0-999999999999]
"""


@pytest.mark.parametrize("text", [*NO_LISTS.split(), "a," * MOST_NAMES + "a"])
def test_a_text_that_is_none_of_ours_is_refused_before_it_grows(text: str) -> None:
    with pytest.raises(ValueError, match=r"names|numbers|int"):
        spelled_out(text)
    data = {"number": 1, "stage": "train", "reason": "Started", "worldSize": 1, "gpus": 1}
    stored = read_status({"generations": [data | {"members": text, "createdAt": "2026-01-01T00:00:00Z"}]})
    assert stored.status.generations == [], "what cannot be read is left out"
    assert stored.unreadable


def test_a_status_writes_its_members_short() -> None:
    data = {"number": 1, "stage": "train", "reason": "Started", "worldSize": 8, "gpus": 8, "members": "demo-w[0-3]"}
    generation = GenerationStatus.from_wire(data | {"createdAt": "2026-01-01T00:00:00Z"})
    assert generation.members == ["demo-w0", "demo-w1", "demo-w2", "demo-w3"]
    assert RunStatus(generations=[generation]).to_wire()["generations"][0]["members"] == "demo-w[0-3]"

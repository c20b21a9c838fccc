"""What the annotation that asks for traces may say."""

from __future__ import annotations

import pytest

from videotrain_api.resource.profiles import parse_profile


@pytest.mark.parametrize(
    ("text", "steps", "ranks"),
    [
        ("steps=5 ranks=8,0,8", 5, (0, 8)),
        ("ranks=3", 3, (3,)),
        ("steps=1", 1, (0,)),
        ("id=again", 3, (0,)),
        (" ranks=1   steps=20 ", 20, (1,)),
    ],
)
def test_a_request_is_read(text, steps, ranks):
    assert parse_profile(text) == (steps, ranks)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("steps=0", "steps: '0'; allowed: 1 to 20"),
        ("steps=21", "steps: '21'"),
        ("steps=-1", "steps: '-1'"),
        ("steps=٣", "steps"),
        ("ranks=", "'ranks=' is not understood"),
        ("ranks=1,,2", "ranks: ''"),
        ("ranks=a", "ranks: 'a'"),
        ("ranks=" + ",".join(map(str, range(17))), "ranks: 17 of them; allowed: at most 16"),
        ("steps=1 steps=2", "each once"),
        ("true", "'true' is not understood; allowed: steps=N, ranks=N,N,... and id=WORD"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(text, why):
    with pytest.raises(ValueError, match=why.replace("(", r"\(")):
        parse_profile(text)

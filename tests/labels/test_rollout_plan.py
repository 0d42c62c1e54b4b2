"""The plan against brute force: what is a prefix, what is proven, what early stop may and may not change."""

from hypothesis import given
from hypothesis import strategies as st

from minos_ray.labels.rollouts import ROOT, Draw, decide, forest, grow, rounds

# Solutions as prefixes of letters: "ab" has the prefixes "a" and "ab"; many share their beginnings.
SOLUTIONS = st.lists(st.tuples(st.text("ab", min_size=1, max_size=4), st.booleans()), min_size=1, max_size=6)
STATUS = st.sampled_from(["correct", "wrong", "wrong", "wrong", "no_answer", "timeout"])


def beginnings(text: str) -> list[str]:
    return [text[:k] for k in range(1, len(text) + 1)]


@st.composite
def recorded(draw: st.DrawFn) -> tuple[list[tuple[str, bool]], int, dict[str, list[str]]]:
    """Solutions, how many completions a prefix gets, and the outcome of each, as if drawn beforehand."""
    solutions = draw(SOLUTIONS)
    completions = draw(st.integers(1, 9))
    texts = sorted({prefix for text, _ in solutions for prefix in beginnings(text)})
    outcomes = st.lists(STATUS, min_size=completions, max_size=completions)
    return solutions, completions, {text: draw(outcomes) for text in texts}


def replay(texts: list[str], outcomes: dict[str, list[str]], asked: dict[str, int]) -> Draw:
    """The recorded outcomes in their order; `asked` counts them."""

    def draw(wanted: list[int], count: int) -> list[list[str]]:
        made = []
        for text in (texts[prefix] for prefix in wanted):
            made.append(outcomes[text][asked[text] : asked[text] + count])
            asked[text] += count
        return made

    return draw


def known(prefix: str, solutions: list[tuple[str, bool]], outcomes: dict[str, list[str]]) -> bool:
    """The definition: some continuation of the prefix is known to reach the answer."""
    longer = [text for text in outcomes if text.startswith(prefix)]
    right = any(correct and text.startswith(prefix) for text, correct in solutions)
    return right or any("correct" in outcomes[text] for text in longer)


@given(SOLUTIONS)
def test_a_tree_holds_every_prefix_once_below_the_next_shorter(solutions: list[tuple[str, bool]]) -> None:
    tree = grow("p", [(beginnings(text), correct) for text, correct in solutions])
    texts = tree.texts()
    assert sorted(texts) == sorted({prefix for text, _ in solutions for prefix in beginnings(text)})
    for text, parent, proven in zip(texts, tree.parents, tree.proven, strict=True):
        assert (texts[parent] if parent != ROOT else "") == text[:-1]
        assert proven == any(correct and other.startswith(text) for other, correct in solutions)


@given(recorded())
def test_early_stop_never_changes_a_hard_label(case: tuple[list[tuple[str, bool]], int, dict[str, list[str]]]) -> None:
    solutions, completions, outcomes = case
    tree = grow("p", [(beginnings(text), correct) for text, correct in solutions])
    texts = tree.texts()
    labels, asked = {}, {}
    for soft in (True, False):
        asked[soft] = dict.fromkeys(texts, 0)
        draw = replay(texts, outcomes, asked[soft])
        decided = decide(tree.parents, tree.proven, completions, soft, draw)
        labels[soft] = [decided.label(prefix) for prefix in range(len(texts))]
        assert [len(made) for made in decided.outcomes] == [asked[soft][text] for text in texts]
    assert labels[True] == labels[False] == [int(known(text, solutions, outcomes)) for text in texts]
    assert set(asked[True].values()) == {completions}
    for text in texts:
        if any(correct and other.startswith(text) for other, correct in solutions):
            assert asked[False][text] == 0, "a right candidate proves its prefixes"
        first = (outcomes[text] + ["correct"]).index("correct") + 1
        assert asked[False][text] <= min(completions, 2 * first), "at most as many again after the first success"


@given(recorded())
def test_each_prefix_alone_is_the_rule_of_math_shepherd(
    case: tuple[list[tuple[str, bool]], int, dict[str, list[str]]],
) -> None:
    _, completions, outcomes = case
    texts = list(outcomes)
    alone, never = [ROOT] * len(texts), [False] * len(texts)
    decided = decide(alone, never, completions, False, replay(texts, outcomes, dict.fromkeys(texts, 0)))
    assert decided.reached == ["correct" in outcomes[text] for text in texts]


@given(st.integers(1, 200))
def test_rounds_add_up(completions: int) -> None:
    made = rounds(completions)
    assert sum(made) == completions and made[0] == 1
    assert all(made[k] <= max(1, sum(made[:k])) for k in range(len(made)))
    assert rounds(8) == [1, 1, 2, 4]


def test_a_prefix_without_room_is_unlabelled_unless_something_proves_it() -> None:
    tree = grow("p", [(["a", "ab"], False), (["c"], False), (["d"], True)])
    decided = decide(tree.parents, tree.proven, 8, False, lambda wanted, count: [[] for _ in wanted])
    assert [decided.label(prefix) for prefix in range(4)] == [-1, -1, -1, 1]
    longer = decide(
        tree.parents, tree.proven, 8, False, lambda wanted, _: [["correct"] if p == 1 else [] for p in wanted]
    )
    assert [longer.label(prefix) for prefix in range(4)] == [1, 1, -1, 1]


def test_trees_side_by_side_do_not_touch() -> None:
    trees = [grow("p", [(["a", "ab"], True)]), grow("q", [(["a", "ac"], False)])]
    assert forest(trees) == ([ROOT, 0, ROOT, 2], [True, True, False, False])

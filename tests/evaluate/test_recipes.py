"""A recipe's hash changes with all that moves a score and with nothing else; seeds belong to problems."""

from dataclasses import replace

import pytest

from starcoder.errors import ConfigError
from starcoder.evaluate.recipes import PUBLISHED, RECIPES, named, published
from starcoder.evaluate.tasks import TASKS, find

PROBLEMS, _ = find(["starter"])[0].load()


def test_the_hash_is_of_what_moves_a_score():
    recipe = named("greedy")
    assert recipe.hash == replace(recipe, name="other", about="other").hash
    for change in (
        {"lead": "#"}, {"path": "a.py"}, {"strip": "both"}, {"stop": ("x",)}, {"temperature": 0.1},
        {"top_p": 0.9}, {"n": 2}, {"max_tokens": 3}, {"dtype": "float32"}, {"layout": "spm"},
    ):  # fmt: skip
        assert replace(recipe, **change).hash != recipe.hash
    assert len({one.hash for one in RECIPES}) == len(RECIPES)


def test_hashes_stay_what_results_say():
    assert named("greedy").hash == "14b2a1f42611"


def test_a_recipe_strips_leads_and_stops():
    recipe = replace(named("evalplus"), lead="# solved\n")
    asked = recipe.asked(PROBLEMS[0], max_tokens=5, seed=0)
    assert asked.request.prefix == "# solved\n" + PROBLEMS[0].request.prefix.strip()
    assert asked.request.sampling.max_tokens == 768
    assert "\nif __name__" in asked.request.sampling.stop
    assert named("greedy").asked(PROBLEMS[0], max_tokens=5, seed=0).request.sampling.max_tokens == 5


def test_every_problem_has_its_own_seed():
    seeds = {named("bigcode").asked(one, max_tokens=5, seed=0).request.sampling.seed for one in PROBLEMS}
    assert len(seeds) == len(PROBLEMS)
    other = named("bigcode").asked(PROBLEMS[0], max_tokens=5, seed=1).request.sampling.seed
    assert other not in seeds


def test_published_numbers_are_of_tasks_and_recipes_we_have():
    assert {one.task for one in PUBLISHED} <= {task.name for task in TASKS}
    assert {one.recipe for one in PUBLISHED} <= {recipe.name for recipe in RECIPES}
    first, *others = published("bigcode/starcoder", "humaneval", "starcoder-prompted")
    assert (first.score, len(others)) == (40.8, 2)
    assert published("./nano", "humaneval", "greedy") == ()


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ConfigError, match="no recipe 'gredy'"):
        named("gredy")

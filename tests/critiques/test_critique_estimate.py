"""What `minos check` says about the cost."""

import asyncio

from minos_ray.critiques.reply import Answer, Cache
from minos_ray.critiques.stage import chosen, expected_cost
from minos_ray.store.run import Run
from tests.critiques.scripted import MakeConfig, MakeRun

PRICES = {"usd_per_million_input": 10.0, "usd_per_million_output": 20.0}
URL = "http://127.0.0.1:9/v1"


def test_before_there_are_labels(make_config: MakeConfig, tmp_path: object) -> None:
    run = Run(f"{tmp_path}/none")
    line = expected_cost(make_config(run, URL, count=100, **PRICES), run)
    assert line == "critique: 100 critiques, about 1.00 USD (of the usual size: no labels yet)"
    assert "about 0.50 USD" in expected_cost(make_config(run, URL, count=100, mode="batch", **PRICES), run)
    assert "free" in expected_cost(make_config(run, "offline"), run)
    few = "critique.max_tokens = 1024 may be too few for a model that thinks"
    assert few in expected_cost(make_config(run, URL, model="gpt-5-mini"), run)
    for enough in (
        {"model": "gpt-4o"},
        {"model": "o3", "max_tokens": 9000},
        {"model": "o3", "reasoning_effort": "low"},
    ):
        assert "may be too few" not in expected_cost(make_config(run, URL, **enough), run)
    assert "cannot be told" in expected_cost(make_config(run, URL, model="of-my-own"), run)


def test_with_labels_the_very_prompts_are_counted_and_what_was_bought_is_not(
    make_run: MakeRun, make_config: MakeConfig
) -> None:
    run = make_run()
    config = make_config(run, URL, max_tokens=1000, **PRICES)
    _, tasks = chosen(config, config.critique, run)
    size = sum(len(message["content"].encode()) + 16 for task in tasks for message in task.request.messages)
    usd, most = (size / 4 * 10 + 40 * 250 * 20) / 1e6, (size / 4 * 10 + 40 * 1000 * 20) / 1e6
    line = expected_cost(config, run)
    assert line == f"critique: 40 critiques to buy, about {usd:.2f} USD, {most:.2f} if every answer is longest"
    cache = Cache(run)

    asyncio.run(cache.add(tasks[0].request.key, Answer("x", "answered", 100, 100, 0.01)))
    assert expected_cost(config, run).startswith("critique: 39 critiques to buy")

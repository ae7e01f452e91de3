"""A property that holds for many seeds, as one test."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest

Test = Callable[..., None]


def each_seed(quick: Iterable[int], soak: Iterable[int] = ()) -> Callable[[Test], Test]:
    """The test's `seed` takes these values one after another; a failure names its seed. Those of `soak` are
    tried in `make soak` only."""

    def decorate(test: Test) -> Test:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def run(*args: Any, seeds: Iterable[int], **fixtures: Any) -> None:
            for seed in seeds:
                try:
                    test(*args, seed=seed, **fixtures)
                except BaseException as error:
                    error.add_note(f"with seed {seed}")
                    raise

        seeds = inspect.Parameter("seeds", inspect.Parameter.KEYWORD_ONLY)
        others = [parameter for name, parameter in signature.parameters.items() if name != "seed"]
        vars(run)["__signature__"] = signature.replace(parameters=[*others, seeds])
        cases = [pytest.param(quick, id="seeds")]
        if soak:
            cases.append(pytest.param(soak, id="more-seeds", marks=pytest.mark.soak))
        marked: Test = pytest.mark.parametrize("seeds", cases)(run)
        return marked

    return decorate

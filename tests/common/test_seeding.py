"""The model's randomness follows the plan's seed and nothing else."""

from __future__ import annotations

import numpy as np
import torch

from common.seeding import derive_seed, numpy_generator, torch_seed


def test_seeds_depend_on_every_name_and_their_borders():
    seeds = {
        derive_seed(*arguments)
        for arguments in [
            (1,),
            (2,),
            (1, "a"),
            (1, "ab"),
            (1, "a", "b"),
            (1, "b", "a"),
            (1, "a", 1),
            (11, "a"),
        ]
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_the_same_in_every_version():
    # A change here would change what every plan trains to; it needs a new plan version.
    assert derive_seed(13, "train", "site-1", 2) == 5375242870134912551


def test_numpy_generator_repeats():
    one, two = numpy_generator(3, "x").random(4), numpy_generator(3, "x").random(4)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, numpy_generator(3, "y").random(4))


def test_torch_is_seeded_inside_and_untouched_outside():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with torch_seed(1, "a"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(2), expected)
    with torch_seed(1, "a"):
        assert torch.equal(torch.rand(3), inside)


def test_torch_is_restored_after_an_error():
    before = torch.get_rng_state()
    try:
        with torch_seed(1, "a"):
            torch.rand(1)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(torch.get_rng_state(), before)

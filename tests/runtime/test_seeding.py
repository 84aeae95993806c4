import torch

from gptscale.runtime.seeding import seed_at, seed_micro_batch


def test_a_seed_follows_from_where_it_is_used_and_never_changes_silently() -> None:
    assert seed_at(1337, 0, 0) == 7783046385639953446
    assert seed_at(1, 2, 3) == 6520558355739401531
    seeds = {seed_at(s, step, first) for s in range(3) for step in range(10) for first in range(0, 80, 8)}
    assert len(seeds) == 300
    assert all(0 <= s < 2**63 for s in seeds)


def test_dropout_masks_repeat_for_the_same_micro_batch() -> None:
    masks = []
    for first in (0, 8, 0):
        seed_micro_batch(1, 5, first)
        masks.append(torch.rand(4))
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])

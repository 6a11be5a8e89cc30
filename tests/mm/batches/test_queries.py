"""What decoders yield for their queries."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from kd_dense.mm.batches.queries import as_queries, own_queries


def test_layers_are_taken_apart():
    logits, boxes = torch.randn(3, 2, 7, 5), torch.randn(3, 2, 7, 4)
    found = as_queries([logits, boxes])
    assert len(found) == 6
    assert torch.equal(torch.stack(found[:3]), logits)
    assert torch.equal(torch.stack(found[3:]), boxes)


def test_a_list_of_layers_stays():
    maps = [*torch.randn(3, 2, 7, 5), *torch.randn(3, 2, 7, 8, 8)]
    found = as_queries(maps, slice(-4, None))
    assert [x.shape[1] for x in found] == [4] * 6
    assert all(torch.equal(x, y[:, 3:]) for x, y in zip(found, maps, strict=True))


def test_queries_that_training_adds_are_left_out():
    plain = SimpleNamespace(num_queries=5)
    assert own_queries(plain, 'bbox_head') == slice(None)
    dino = SimpleNamespace(num_queries=5, dn_query_generator=object())
    assert own_queries(dino, 'bbox_head') == slice(-5, None)
    ddq = SimpleNamespace(cache_dict=dict(dis_query_info=[6, 4]), **vars(dino))
    assert own_queries(ddq, 'bbox_head') == slice(6, 10)
    assert own_queries(SimpleNamespace(student=dino), 'student.bbox_head[:2]') == slice(-5, None)

import torch

from kd_dense.mm.cost.nested import bytes_of, cut
from kd_dense.mm.cost.steps import Batch


def test_bytes_of_each_memory_once():
    x = torch.ones(10)
    assert bytes_of({'a': [x, x.view(2, 5)], 'b': (torch.ones(3, dtype=torch.int64), None)}) == 64
    assert bytes_of('text') == 0


def test_what_is_cut_off_has_its_values_and_can_have_a_gradient():
    x = torch.ones(2, requires_grad=True)
    y, z = 2 * x, torch.ones(2)
    found = cut({'maps': Batch(y, [z]), 'more': (y, 3)})
    batch, (again, number) = found['maps'], found['more']
    assert type(batch) is Batch
    assert number == 3
    for one in (batch.inputs, again):
        assert one.is_leaf
        assert one.requires_grad
        assert one.data_ptr() == y.data_ptr()
    assert not batch.samples[0].requires_grad

import torch

from kd_dense.losses import DistillLoss
from kd_dense.mm.pictures.differences import differences
from kd_dense.registry import MODELS
from tests.mm.pictures.looking import see_loss


@MODELS.register_module()
class UsersLoss(DistillLoss):
    any_channels = True

    def forward(self, student, teacher):
        return self.weight * (student.mean() - teacher.mean()).square()


def test_an_unknown_loss_shows_mean_activations():
    one = see_loss(dict(type='UsersLoss'), 'backbone.layer4')
    shown = differences(one)
    expected = (one.student[0].mean(1) - one.teacher[0].mean(1)).abs()[0]
    assert torch.equal(shown.maps[0], expected)
    assert shown.what == 'difference of mean activation'
    apart = one._replace(student=[one.student[0][..., :2, :2]])  # which has no difference
    assert differences(apart).maps == []

import copy

import torch
from torch import nn

from intern_vision.train.batch_norm import GlobalBatchNorm, synchronise_batch_norms


def test_alone_it_is_the_ordinary_one():
    torch.manual_seed(0)
    for ordinary, x in ((nn.BatchNorm2d(6), torch.randn(4, 6, 3, 2)), (nn.BatchNorm1d(6), torch.randn(8, 6))):
        nn.init.normal_(ordinary.weight)
        ours = GlobalBatchNorm.like(copy.deepcopy(ordinary))
        for mode in (True, False):
            assert torch.equal(ours.train(mode)(x), ordinary.train(mode)(x))
        for name, value in ordinary.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name


def test_a_model_keeps_its_weights_and_their_names():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())).eval()
    before = dict(model.named_parameters())
    names = list(model.state_dict())
    synchronise_batch_norms(model)
    assert isinstance(model[1], GlobalBatchNorm) and isinstance(model[2][0], GlobalBatchNorm)
    assert list(model.state_dict()) == names and not model[1].training
    assert all(parameter is before[name] for name, parameter in model.named_parameters())

import pytest
import torch

from intern_vision.errors import ConfigError, DataError
from intern_vision.models.text import TextEncoder

VOCAB = 50
END = VOCAB - 1


def encoder(num_blocks=2, pooling="end"):
    torch.manual_seed(0)
    return TextEncoder(VOCAB, 12, 32, num_blocks, 4, 24, pooling).eval()


def texts():
    return torch.tensor([[1, 7, 8, 9, END, 0, 0], [1, 5, END, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, END]])


@pytest.mark.parametrize(("num_blocks", "pooling"), [(2, "end"), (2, "mean"), (0, "mean")])
def test_shapes_and_pad_invariance(num_blocks, pooling):
    net, tokens = encoder(num_blocks, pooling), texts()
    embedding, hidden = net(tokens)
    assert embedding.shape == (3, 24)
    assert hidden.shape == (3, 7, 32)
    longer, _ = net(torch.nn.functional.pad(tokens, (0, 4)))
    torch.testing.assert_close(longer, embedding)
    short, _ = net(tokens[1:2, :3])
    torch.testing.assert_close(short, embedding[1:2])


def test_later_tokens_do_not_change_earlier_hidden_states():
    net, tokens = encoder(), texts()
    changed = tokens.clone()
    changed[:, 4:] = 11
    before, after = net(tokens)[1], net(changed)[1]
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[2, 4:], before[2, 4:])


def test_a_later_state_does_read_earlier_tokens():
    net, tokens = encoder(), texts()
    changed = tokens.clone()
    changed[:, 1] = 13
    assert (net(changed)[0] - net(tokens)[0]).abs().amax(1).min() > 1e-4


def test_pads_in_between_are_not_read():
    net = encoder()
    with torch.no_grad():
        before = net(torch.tensor([[1, 0, 7, END]]))[0]
        net.token.weight[0] += 5
        torch.testing.assert_close(net(torch.tensor([[1, 0, 7, END]]))[0], before)


def test_end_pools_the_largest_id():
    net, tokens = encoder(), texts()
    embedding, hidden = net(tokens)
    torch.testing.assert_close(embedding, net.projection(hidden[[0, 1, 2], [4, 2, 6]]))


def test_bag_of_words_is_the_mean_embedding():
    net, tokens = encoder(0, "mean"), texts()
    embedding, _ = net(tokens)
    mean = (net.token.weight[tokens[1, :3]] + net.position[:3]).mean(0)
    torch.testing.assert_close(embedding[1], net.projection(mean))


def test_an_empty_text_stays_finite():
    for pooling in ("end", "mean"):
        net = encoder(2, pooling).train()
        embedding, hidden = net(torch.zeros(2, 5, dtype=torch.int64))
        embedding.sum().backward()
        assert torch.isfinite(embedding).all()
        assert torch.isfinite(hidden).all()
        assert torch.isfinite(net.token.weight.grad).all()


def test_clip_text_tower_size():
    with torch.device("meta"):
        net = TextEncoder(49_409, 77, 512, 12, 8, 1024, "end")
    block = 4 * 512 * 513 + 2 * 4 * 512 * 512 + 5 * 512 + 4 * 512
    expected = 49_409 * 512 + 77 * 512 + 12 * block + 2 * 512 + 513 * 1024
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


def test_faults():
    with pytest.raises(ConfigError, match="multiple of num_heads 5"):
        TextEncoder(VOCAB, 12, 32, 2, 5, 24, "end")
    with pytest.raises(ConfigError, match="sees one token only"):
        TextEncoder(VOCAB, 12, 32, 0, 4, 24, "end")
    with pytest.raises(DataError, match="at most 12 a text, got 13"):
        encoder()(torch.ones(1, 13, dtype=torch.int64))

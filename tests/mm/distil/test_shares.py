"""Terms whose weights follow the gradients: each promise with shares."""

import copy

import pytest
import torch

from tests.mm import methods, toy
from tests.mm.distil import test_promises  # its classes by name would be collected here, too
from tests.mm.distil.test_promises import assert_equal_states, train

STEPS = 3


def terms(**others):
    return dict(
        features=dict(tap='backbone.layer4', loss=toy.CWD, share=0.5),
        logits=dict(tap='decode_head.conv_seg', loss=toy.CWD, share=1.0, **others),
    )


def total(losses):
    return sum(v.sum() for k, v in losses.items() if 'loss' in k)


def stepped(model, call=None, steps=STEPS, scale=1.0):
    """The gradients of the last of some steps on one batch, and all that was logged."""
    call = model if call is None else call
    inputs, samples = toy.batch(model)
    for _ in range(steps):
        model.zero_grad()
        torch.manual_seed(0)
        losses = call(inputs, copy.deepcopy(samples), mode='loss')
        (scale * total(losses)).backward()
    return {n: p.grad / scale for n, p in model.named_parameters()}, losses


@pytest.fixture
def model():
    return toy.build(toy.distilled(terms=terms(), student=toy.segmenter(dropout=0.0))).train()


class TestPull:
    def test_is_the_share_from_the_second_step_on(self, model):
        _, losses = stepped(model)
        torch.testing.assert_close(losses['kd_share_logits'], torch.tensor(1.0))
        assert losses['kd_weight_features'] > 0
        _, losses = stepped(model, steps=30)  # the term behind it was off in the first step
        assert losses['kd_share_features'].item() == pytest.approx(0.5, rel=0.05)

    def test_is_by_the_map_and_not_by_what_the_loss_is_worth(self):
        """A weight of the loss itself cancels."""
        grads = []
        for weight in (1.0, 1000.0):
            own = dict(features=dict(tap='backbone.layer4', loss={**toy.CWD, 'weight': weight}))
            own['features']['share'] = 1.0
            student = toy.segmenter(dropout=0.0)
            model = toy.build(toy.distilled(terms=own, student=student)).train()
            grads.append(stepped(model)[0])
        for name, grad in grads[0].items():
            torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-7)

    def test_of_terms_in_series_counts_the_later_one_as_task(self):
        """What the loss on the logits sends back to the backbone is not the backbone's term."""
        series, alone = (
            toy.build(toy.distilled(terms=t, student=toy.segmenter(dropout=0.0))).train()
            for t in (terms(), dict(features=terms()['features']))
        )
        ratios = [stepped(m)[1]['kd_weight_features'] for m in (series, alone)]
        assert ratios[0] != ratios[1]

    def test_of_stages_does_not_feed_itself(self):
        """A loss on a later stage comes back through the earlier ones, and is no task there."""
        own = dict(stages=dict(tap='backbone', loss=dict(type='PKDLoss'), share=1.0))
        student = toy.segmenter(dropout=0.0)
        model = toy.build(toy.distilled(terms=own, student=student)).train()
        weights = [stepped(model, steps=n)[1]['kd_weight_stages'].item() for n in (3, 30)]
        assert weights[1] == pytest.approx(weights[0], rel=0.01)

    def test_each_part_has_its_own(self):
        names = ('foreground', 'background', 'attention', 'relation')
        parts = {name: 0.1 * (i + 1) for i, name in enumerate(names)}
        fgd = dict(fgd=dict(tap='neck', loss=dict(type='FGDLoss'), share=parts))
        model = toy.build(toy.distilled_detector(terms=fgd)).train()
        inputs, samples = toy.batch(model, methods.scenes('fgd'))
        for _ in range(STEPS):
            losses = model(inputs, copy.deepcopy(samples), mode='loss')
            sum(x.sum() for k, v in losses.items() if 'loss' in k
                for x in (v if isinstance(v, list) else [v])).backward()  # fmt: skip
        for name, share in parts.items():
            assert losses[f'kd_share_fgd.{name}'].item() == pytest.approx(share, rel=0.02)

    def test_parts_that_are_not_named_are_off(self):
        fgd = dict(tap='neck', loss=dict(type='FGDLoss'), share=dict(foreground=1.0))
        model = toy.build(toy.distilled_detector(terms=dict(fgd=fgd))).train()
        losses = toy.losses(model, methods.scenes('fgd'))
        assert [k for k in losses if k.startswith('loss_kd')] == ['loss_kd_fgd.foreground']


class TestPromises:
    @pytest.mark.parametrize('scale', [2.0**-8, 2.0**16])
    def test_a_loss_scale_cancels(self, model, scale):
        plain = copy.deepcopy(model)
        expected, _ = stepped(plain)
        found, _ = stepped(model, scale=scale)
        for name, grad in expected.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-8)

    @pytest.mark.long
    def test_compile(self):
        """Of a stage inside the backbone, which compiled code would keep to itself."""
        torch._dynamo.reset()
        inner = terms()
        inner['features']['tap'] = 'backbone.layer2'
        student = toy.segmenter(dropout=0.0)
        model = toy.build(toy.distilled(terms=inner, student=student)).train()
        plain = copy.deepcopy(model)
        expected, _ = stepped(plain)
        found, losses = stepped(model, torch.compile(model, backend='aot_eager'))
        assert losses['kd_share_logits'].item() == pytest.approx(1.0, rel=1e-4)
        for name, grad in expected.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-6)

    def test_resume_equals_not_having_stopped(self, tmp_path):
        config = toy.distilled(terms=terms(schedule=dict(warmup=2, decay='cosine')))
        run = test_promises.TestPromise8ResumeEqualsNotHavingStopped().run
        resumed, whole = run(config, tmp_path, stop_after=5, max_iters=7)
        assert_equal_states(resumed.model.state_dict(), whole.model.state_dict())
        assert whole.model.kd.features.shares.whole.steps == 7

    def test_accumulation_measures_every_backward_pass(self, tmp_path):
        optimizer = dict(optimizer=dict(type='SGD', lr=1e-2), accumulative_counts=2)
        runner = train(toy.distilled(terms=terms()), tmp_path, optim_wrapper=optimizer)
        share = runner.model.kd.features.shares.whole
        assert share.steps == 4
        assert 0.2 < share.pull < 1.2

    def test_autocast(self, model):
        with torch.autocast('cpu', torch.bfloat16):
            _, losses = stepped(model)
        assert losses['kd_share_logits'].item() == pytest.approx(1.0, rel=0.1)

    @pytest.mark.parametrize('tap', ['backbone.layer4', 'backbone.layer3'])
    def test_activation_checkpointing(self, tap):
        """Blocks that run again in the backward pass, in front of the tap and behind it."""
        found = []
        for again in (False, True):
            own = terms()
            own['features']['tap'] = tap
            student = toy.segmenter(dropout=0.0)
            student.backbone.with_cp = again
            model = toy.build(toy.distilled(terms=own, student=student)).train()
            found.append(stepped(model))
        (expected, plain), (grads, losses) = found
        torch.testing.assert_close(losses['kd_weight_features'], plain['kd_weight_features'])
        for name, grad in expected.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-7)

    def test_ema(self, tmp_path):
        """The averaged student measures nothing, and disturbs nothing."""
        config = toy.distilled(terms=terms())
        hooks = [dict(type='EMAHook')]
        averaged = train(config, tmp_path / 'ema', custom_hooks=hooks).model
        assert_equal_states(train(config, tmp_path / 'plain').model.state_dict(),
                            averaged.state_dict())  # fmt: skip

    def test_a_copy_measures_for_itself(self, model):
        stepped(model)
        twin = copy.deepcopy(model)
        stepped(twin)
        assert twin.kd.features.shares.whole.steps == 2 * STEPS
        assert model.kd.features.shares.whole.steps == STEPS

    def test_no_second_backward_pass_and_no_parameters(self, model):
        names = [name for name, _ in model.named_parameters() if 'share' in name]
        assert not names


class TestErrors:
    def test_a_name_that_would_be_added_up(self):
        """mmengine sums all that has these letters in its name."""
        one = dict(tap='backbone.layer4', loss=toy.CWD, share=1.0)
        with pytest.raises(ValueError, match=r"term 'my_loss' has a share.*name the term other"):
            toy.build(toy.distilled(terms=dict(my_loss=one)))

    @pytest.mark.parametrize('share', [0, -1.0, 'much', dict(whole=-1)])
    def test_no_share(self, share):
        one = dict(tap='backbone.layer4', loss=toy.CWD, share=share)
        with pytest.raises(ValueError, match="term 'one': expected a share > 0"):
            toy.build(toy.distilled(terms=dict(one=one)))

    def test_of_a_part_that_is_not_there(self):
        one = dict(tap='neck', loss=dict(type='FGDLoss'), share=dict(foregruond=1.0))
        with pytest.raises(ValueError, match="no part 'foregruond', did you mean 'foreground'"):
            toy.build(toy.distilled_detector(terms=dict(one=one)))

    def test_of_parts_of_a_loss_without(self):
        one = dict(tap='backbone.layer4', loss=toy.CWD, share=dict(foreground=1.0))
        with pytest.raises(ValueError, match="CWDLoss has no part 'foreground'"):
            toy.build(toy.distilled(terms=dict(one=one)))

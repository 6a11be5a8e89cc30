"""Batches of which some pictures have no labels."""

import copy
import pickle

import pytest
import torch
from mmengine.model import MMDistributedDataParallel

from kd_dense.losses import HolisticLoss
from kd_dense.mm.datasets.unlabelled import Unlabelled as Pictures
from kd_dense.mm.datasets.unlabelled import hide_labels
from kd_dense.mm.distil.unlabelled import parts, step
from kd_dense.mm.hooks.random_state import RandomStateHook
from kd_dense.taps import TapError
from tests.mm import methods, toy, toy_rois
from tests.mm.processes import in_two_processes

BATCH = 4
TERMS = dict(
    features=dict(tap='backbone.layer4', loss=toy.CWD),
    logits=dict(tap='decode_head.conv_seg', loss=toy.CWD),
    labels=dict(tap='decode_head.conv_seg', loss=dict(type='NKDLoss')),
    affinity=dict(tap='backbone.layer4', loss=dict(type='IntRALoss', kernel=3)),
)  # fmt: skip
DETECTION = dict(
    fpn=dict(tap='neck', loss=toy.CWD),
    classes=dict(tap='bbox_head.retina_cls', loss=toy.CWD),
    fgd=dict(tap='neck', loss=dict(type='FGDLoss')),
)
# A term of each that needs no labels, for methods all of whose terms do.
FREE = dict(tap='backbone', loss=toy.CWD)


def config(method='cwd', terms=None, **others):
    """Normalised by groups: what a picture yields does not depend on the others."""
    found = methods.distilled(method, unlabelled=True, **others)
    if terms is not None:
        found.terms = terms
    return found


def segmenter(terms=None, **others):
    return toy.build(config('cwd', TERMS if terms is None else terms, **others)).train()


def detector(**others):
    return toy.build(config('fgd', DETECTION, **others)).train()


def batch(model, hidden, method='cwd', count=BATCH):
    """Pictures, of which those at some places have no labels."""
    inputs, samples = toy.batch(model, methods.scenes(method), count)
    for place in hidden:
        hide_labels(samples[place])
    return inputs, samples


def summed(losses, prefix=''):
    own = [v for k, v in losses.items() if 'loss' in k and k.startswith(prefix)]
    return sum(x.sum() for v in own for x in (v if isinstance(v, list) else [v]))


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-5, atol=1e-6, msg=name)


def ours(losses):
    return {k: v for k, v in losses.items() if k.startswith('loss_kd')}


class TestWhatIsComputed:
    def test_the_students_loss_is_that_of_the_pictures_with_labels(self):
        model = segmenter()
        inputs, samples = batch(model, [0, 2])
        mixed = model.loss(inputs, samples)
        alone = model.loss(inputs[[1, 3]], [samples[1], samples[3]])
        close({'': mixed['decode.loss_ce']}, {'': alone['decode.loss_ce']})
        assert mixed.keys() == alone.keys()

    def test_terms_without_labels_are_those_of_all_pictures(self):
        model = segmenter()
        every = model.loss(*batch(model, []))
        mixed = model.loss(*batch(model, [0, 2]))
        for name in ('loss_kd_features', 'loss_kd_logits'):
            close({name: mixed[name]}, {name: every[name]})
        expected = gradient(model, every['loss_kd_features'] + every['loss_kd_logits'])
        close(gradient(model, mixed['loss_kd_features'] + mixed['loss_kd_logits']), expected)

    def test_terms_that_need_labels_are_those_of_the_labelled_ones(self):
        model = segmenter()
        inputs, samples = batch(model, [0, 2])
        mixed = model.loss(inputs, samples)
        alone = model.loss(inputs[[1, 3]], [samples[1], samples[3]])
        for name in ('loss_kd_labels', 'loss_kd_affinity'):
            close({name: mixed[name]}, {name: alone[name]})
        names = 'loss_kd_labels', 'loss_kd_affinity'
        expected = gradient(model, sum(alone[name] for name in names))
        close(gradient(model, sum(mixed[name] for name in names)), expected)

    def test_a_detector(self):
        model = detector()
        every = model.loss(*batch(model, [], 'fgd'))
        inputs, samples = batch(model, [1, 2], 'fgd')
        mixed = model.loss(inputs, samples)
        alone = model.loss(inputs[[0, 3]], [samples[0], samples[3]])
        for name in ('loss_kd_fpn', 'loss_kd_classes'):
            close({name: mixed[name]}, {name: every[name]})
        for name in (n for n in alone if 'fgd' in n):
            close({name: mixed[name]}, {name: alone[name]})
        for one, other in zip(mixed['loss_cls'], alone['loss_cls'], strict=True):
            torch.testing.assert_close(one, other)

    def test_nothing_is_learnt_of_the_task_where_there_are_no_labels(self):
        model = segmenter()
        inputs, samples = batch(model, [0, 2])
        inputs.requires_grad_()
        losses = model.loss(inputs, samples)
        (task,) = torch.autograd.grad(losses['decode.loss_ce'], inputs, retain_graph=True)
        (kd,) = torch.autograd.grad(losses['loss_kd_logits'], inputs)
        assert [bool(one.any()) for one in task] == [False, True, False, True]
        assert all(bool(one.any()) for one in kd)

    def test_the_backbone_runs_once_and_the_head_twice(self):
        model = segmenter()
        seen = {'backbone': [], 'decode_head': []}
        for name, sizes in seen.items():
            module, forward = getattr(model, name), getattr(model, name).forward
            module.forward = lambda x, f=forward, s=sizes: (
                s.append(len(x if isinstance(x, torch.Tensor) else x[0])), f(x))[1]  # fmt: skip
        model.loss(*batch(model, [0, 2, 3]))
        assert seen == {'backbone': [4], 'decode_head': [1, 3]}
        model.loss(*batch(model, []))
        assert seen == {'backbone': [4, 4], 'decode_head': [1, 3, 4]}

    def test_the_head_runs_once_where_no_term_looks_at_it(self):
        model = segmenter(dict(features=TERMS['features']))
        runs = []
        forward = model.decode_head.forward
        model.decode_head.forward = lambda x: (runs.append(len(x[0])), forward(x))[1]
        model.loss(*batch(model, [0, 2, 3]))
        assert runs == [1]

    def test_only_pictures_without_labels(self):
        model = segmenter()
        every = model.loss(*batch(model, []))
        losses = model.loss(*batch(model, range(BATCH)))
        assert {n.partition('_kd_')[2] for n in losses} == {*TERMS}
        for name in ('loss_kd_features', 'loss_kd_logits'):
            close({name: losses[name]}, {name: every[name]})
        assert losses['loss_kd_labels'] == losses['loss_kd_affinity'] == 0
        assert gradient(model, summed(losses))


class TestPromises:
    def test_with_all_weights_0_it_is_plain_training_on_the_labelled(self):
        """Batch norms included, bit for bit."""
        plain = toy.build(toy.segmenter()).train()
        off = toy.distilled(terms=toy.logits_term(weight=0.0), unlabelled=True)
        model = toy.build(off).train()
        inputs, samples = batch(plain, [2, 3])
        found = []
        for one in (plain, model):
            torch.manual_seed(1)
            losses = (one.loss(inputs[:2], samples[:2]) if one is plain
                      else one.loss(inputs, samples))  # fmt: skip
            found.append((gradient(one, summed(losses, 'decode')), one.state_dict()))
        (expected, state), (grads, other) = found
        assert all(torch.equal(grads[name], grad) for name, grad in expected.items())
        assert all(torch.equal(other[name], value) for name, value in state.items())

    def test_nothing_to_learn_from_is_a_loss_of_zero(self):
        model = segmenter({k: {**v, 'schedule': dict(stop=0)} for k, v in TERMS.items()})
        with hub():
            losses = model.loss(*batch(model, range(BATCH)))
        assert summed(losses) == 0
        assert not any(grad.any() for grad in gradient(model, summed(losses)).values())

    def test_batch_norms_see_all_pictures(self):
        model = toy.build(toy.distilled(unlabelled=True)).train()
        inputs, samples = batch(model, [2, 3])
        expected = copy.deepcopy(model)
        expected.loss(*batch(model, []))
        model.loss(inputs, samples)
        mean = 'backbone.layer1.0.bn1.running_mean'
        torch.testing.assert_close(model.state_dict()[mean], expected.state_dict()[mean])

    @pytest.mark.parametrize(
        'how', ['checkpointing', 'autocast', pytest.param('compile', marks=pytest.mark.long)]
    )
    def test_how_it_runs_does_not_matter(self, how):
        expected = segmenter().loss(*batch(segmenter(), [0, 2]))
        found = config('cwd', TERMS)
        if how == 'checkpointing':
            found.student.backbone.with_cp = True
            found.terms = {k: v for k, v in TERMS.items() if 'decode' in v['tap']}
        model = toy.build(found).train()
        loss = model.loss
        if how == 'compile':
            loss = torch.compile(model.loss, backend='eager')
        with torch.autocast('cpu', torch.bfloat16, enabled=how == 'autocast'):
            losses = loss(*batch(model, [0, 2]))
        assert gradient(model, summed(losses))
        for name, value in ours(losses).items():
            tolerance = 0.1 if how == 'autocast' else 1e-4
            torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=1e-3)

    def test_copies_and_pickles(self):
        model = segmenter()
        one = model.loss(*batch(model, [0, 2]))
        close(ours(copy.deepcopy(model).loss(*batch(model, [0, 2]))), ours(one))
        pickle.loads(pickle.dumps(model))

    def test_resumes_as_if_it_had_not_stopped(self, tmp_path):
        def train(name, iterations, **others):
            runner = toy.runner(
                toy.distilled(unlabelled=True), tmp_path / name, iterations,
                custom_hooks=[RandomStateHook()],
                train_dataloader=dict(
                    batch_size=4, num_workers=0,
                    sampler=dict(type='kd_dense.RatioSampler', batch_size=4, infinite=True),
                    dataset=Pictures(toy.SegScenes(6), beside=toy.SegScenes(4))),
                **others)  # fmt: skip
            runner.train()
            return runner.model.state_dict()

        whole = train('whole', 4)
        train('cut', 2)
        rest = train('cut', 4, resume=True)
        assert all(torch.equal(rest[name], value) for name, value in whole.items())


def hub():
    from contextlib import nullcontext

    from mmengine.logging import MessageHub

    MessageHub.get_current_instance().update_info_dict(dict(iter=0, max_iters=10))
    return nullcontext()


class TestMethods:
    @pytest.mark.parametrize('method', [m for m in methods.METHODS if 'quer' not in m])
    def test_all_work_or_say_that_they_skip(self, method):
        terms = (methods.SEGMENTERS | methods.DETECTORS)[method]
        with hub():
            model = toy.build(config(method, {**terms, 'free': FREE})).train()
            for hidden in ([1], [0, 1, 2, 3]):
                losses = model.loss(*batch(model, hidden, method))
                assert {n.partition('_kd_')[2].partition('.')[0] for n in ours(losses)} == {
                    *terms, 'free',
                }  # fmt: skip
                assert torch.isfinite(summed(losses))
                assert gradient(model, summed(losses))
                for module in model.modules():
                    if isinstance(module, HolisticLoss):
                        module.critic_backward()

    @pytest.mark.parametrize(
        'aimed', [dict(features=0.5, affinity=1.0), dict(logits=1.0), dict(labels=2.0)]
    )
    def test_shares_go_by_what_the_task_pulls(self, aimed):
        """Of all maps together; the task does not pull at those without labels."""
        terms = {name: {**TERMS[name], 'share': share} for name, share in aimed.items()}
        terms.setdefault('free', {**FREE, 'schedule': dict(stop=0)})
        with hub():
            model = segmenter(terms)
            for _ in range(2):
                gradient(model, summed(model.loss(*batch(model, [0, 2]))))
        for name, buffer in model.kd.named_buffers():
            if name.endswith('pull'):
                share = aimed[name.partition('.')[0]]
                assert float(buffer) == pytest.approx(share, rel=0.05), name

    def test_who_skips_is_said_when_the_model_is_built(self, log):
        detector()
        assert "term 'fgd' skips pictures without labels: its loss needs boxes" in log()
        assert "'fpn' skips" not in log()
        toy.build(toy_rois.distilled(terms=dict(**toy_rois.terms(), free=FREE), unlabelled=True))
        assert 'skips pictures without labels: it compares regions that are sampled by' in log()


class TestRefused:
    def test_pictures_that_nobody_has_announced(self):
        model = toy.build(toy.distilled()).train()
        with pytest.raises(ValueError, match=r'without labels has come.*say unlabelled=True in'):
            model.loss(*batch(model, [1]))

    def test_terms_that_all_need_labels(self):
        with pytest.raises(ValueError, match=r'each term needs labels \(fgd\).*add a term that'):
            toy.build(config('fgd'))

    def test_a_head_that_cannot_run_without_labels(self, monkeypatch):
        def fails(*args):
            raise RuntimeError('labels, please')

        monkeypatch.setattr(step, 'forward', fails)
        with pytest.raises(ValueError, match=r"as far as term 'features' needs .*labels, please"):
            segmenter()

    @pytest.mark.parametrize('name', ['boxes', 'looks', 'points'])
    def test_queries(self, name):
        terms = {name: methods.DETECTORS['queries'][name], 'free': FREE}
        with pytest.raises(ValueError, match=f"term '{name}' compares queries of decoders"):
            toy.build(config('queries', terms))


def test_a_student_whose_loss_does_not_call_extract_feat():
    """It runs twice, and what taps yield is put together all the same."""
    model = segmenter(dict(features=TERMS['features'], logits=TERMS['logits']))
    every = model.loss(*batch(model, []))
    kind = type(model).__mro__[2]

    def loss(self, inputs, data_samples):
        x = self.backbone(inputs)
        return self._decode_head_forward_train(x, data_samples)

    original, kind.loss = kind.loss, loss
    try:
        mixed = model.loss(*batch(model, [0, 2]))
    finally:
        kind.loss = original
    close(ours(mixed), ours(every))
    assert gradient(model, summed(mixed))


def test_maps_that_cannot_be_put_together():
    class Recorded(dict):
        def calls(self, name):
            return 1

    one, other = Recorded(x=[torch.zeros(2, 3)]), Recorded(x=[torch.zeros(3, 3)])
    with pytest.raises(TapError, match=r"tap 'x': the maps of 4 pictures cannot be put together"):
        parts.Joined([one, other], 4)['x']


class TestPseudo:
    """Terms that need labels take the teacher's predictions."""

    def test_label_maps(self):
        model = segmenter(pseudo=dict(score_thr=0.0))
        inputs, samples = batch(model, [0, 2])
        pseudo = model.kd_plan.unlabelled.pseudo
        with torch.no_grad():
            sure = pseudo.teacher.model(inputs, mode='tensor').softmax(1).amax(1)
        pseudo.score_thr = float(sure.median())
        predicted = pseudo(inputs[[0, 2]], [samples[0], samples[2]])
        labels = torch.cat([one.gt_sem_seg.data for one in predicted])
        assert {*labels.unique().tolist()} > {255}  # sure of some pixels, and not of others
        found = model.loss(inputs, samples)
        assert (samples[0].gt_sem_seg.data == 255).all()  # as it came
        inputs, samples = batch(model, [])
        for place, one in zip((0, 2), predicted, strict=True):
            samples[place].gt_sem_seg = one.gt_sem_seg
        expected = segmenter().loss(inputs, samples)
        for name in ('loss_kd_labels', 'loss_kd_affinity', 'loss_kd_logits'):
            close({name: found[name]}, {name: expected[name]})
        alone = segmenter().loss(inputs[[1, 3]], [samples[1], samples[3]])
        close({'': found['decode.loss_ce']}, {'': alone['decode.loss_ce']})

    def test_boxes(self):
        model = detector(pseudo=dict(score_thr=0.0))
        head = model.kd_plan.teacher.model.bbox_head
        head.test_cfg.update(score_thr=0.0, max_per_img=5)
        inputs, samples = batch(model, [1, 2], 'fgd')
        predicted = model.kd_plan.unlabelled.pseudo(inputs[1:3], samples[1:3])
        boxes = [one.gt_instances.bboxes for one in predicted]
        assert all(len(one) for one in boxes)
        assert torch.cat(boxes).max() <= 64  # where the student sees them
        found = model.loss(inputs, samples)
        inputs, samples = batch(model, [], 'fgd')
        for place, one in zip((1, 2), predicted, strict=True):
            samples[place].gt_instances = one.gt_instances
        expected = detector().loss(inputs, samples)
        for name in (name for name in found if 'kd' in name):
            close({name: found[name]}, {name: expected[name]})

    def test_the_teacher_sees_them_by_its_own_preprocessing(self):
        made = config('cwd', TERMS, pseudo=dict(score_thr=0.0))
        made.teacher.config.data_preprocessor.update(
            mean=[90.0] * 3, std=[30.0] * 3, bgr_to_rgb=False
        )
        model = toy.build(made).train()
        inputs, samples = batch(model, [0, 1])
        ours = model.kd_plan.unlabelled.pseudo(inputs[:2], samples[:2])
        teacher = model.kd_plan.teacher.model
        theirs, _ = toy.batch(teacher, methods.scenes('cwd'), 2)
        logits = teacher.inference(theirs, [one.metainfo for one in samples[:2]])
        for one, labels in zip(ours, logits.argmax(1), strict=True):
            assert (one.gt_sem_seg.data[0] == labels).float().mean() > 0.99

    def test_a_term_on_regions_skips_all_the_same(self, log):
        terms = dict(**toy_rois.terms(), free=FREE)
        toy.build(toy_rois.distilled(terms=terms, pseudo=dict(score_thr=0.5)))
        assert 'skips pictures without labels: it compares regions' in log()

    @pytest.mark.parametrize(
        ('pseudo', 'message'),
        [
            (dict(score_th=0.5), r"unknown field 'score_th', did you mean 'score_thr'"),
            (dict(score_thr=1.0), r'expects 0 <= score_thr < 1, got score_thr=1.0'),
            (True, r'expected pseudo as dict\(score_thr=0.5\), got True'),
        ],
    )
    def test_bad_fields(self, pseudo, message):
        with pytest.raises(ValueError, match=message):
            segmenter(pseudo=pseudo)

    def test_a_teacher_of_other_classes(self):
        made = config('cwd', dict(features=TERMS['features']), pseudo=dict(score_thr=0.5))
        made.teacher.config.decode_head.num_classes = 7
        with pytest.raises(ValueError, match='predicts 7 classes and the student 5'):
            toy.build(made)

    def test_a_teacher_that_does_not_predict(self):
        made = config('cwd', dict(features=FREE), pseudo=dict(score_thr=0.5))
        made.teacher.config = toy.detector(16)
        with pytest.raises(ValueError, match='the teacher RetinaNet predicts no label maps: take'):
            toy.build(made)


# --- two processes -----------------------------------------------------------------------------

SPLITS = {
    'more on one': [0, 2, 3],
    'none on one': [0, 1],
    'all on one': [2, 3],
    'as many': [0, 2],
    'not one label': [0, 1, 2, 3],
    'all labels': [],
}


def added(rank, world_size, hidden, kind):
    model = {'seg': segmenter, 'det': detector}[kind]()
    outer = MMDistributedDataParallel(model) if world_size > 1 else model
    inputs, samples = batch(model, hidden, 'cwd' if kind == 'seg' else 'fgd')
    mine = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    losses = outer(inputs[mine], samples[mine], mode='loss')
    rest = {k: v for k, v in losses.items() if not k.startswith('loss_kd')}
    model.zero_grad()
    (summed(ours(losses)) + 0 * summed(rest)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def in_both(rank):
    found = {
        (name, kind): added(rank, 2, hidden, kind)
        for name, hidden in SPLITS.items()
        for kind in ('seg', 'det')
    }
    step._synchronised = lambda student: True  # as if there were a SyncBN
    found['synchronised', 'seg'] = added(rank, 2, SPLITS['none on one'], 'seg')
    return found


@pytest.fixture(scope='module')
def ranks():
    return in_two_processes(in_both)


@pytest.mark.parametrize('kind', ['seg', 'det'])
@pytest.mark.parametrize('split', SPLITS)
def test_gradients_of_two_processes_are_those_of_one(ranks, split, kind):
    expected = added(0, 1, SPLITS[split], kind)
    first, second = (found[split, kind] for found in ranks)
    assert any(grad.any() for grad in expected.values())
    for name, grad in first.items():
        assert torch.equal(grad, second[name])
        one = expected.get(name, torch.zeros_like(grad))
        assert (grad - one).abs().max() <= 1e-4 * one.abs().max() + 1e-7, name


def test_norms_over_all_processes_do_not_hang(ranks):
    for name, grad in ranks[0]['none on one', 'seg'].items():
        torch.testing.assert_close(ranks[0]['synchronised', 'seg'][name], grad)

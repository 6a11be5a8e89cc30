"""Students of toys that are distilled by a preset."""

from tests.mm import toy


def build(**others):
    config = toy.distilled_detector(**others) if 'student' in others else toy.distilled(**others)
    config.pop('terms')
    return toy.build(config)


def untrained(config):
    return dict(config=config, checkpoint=None)

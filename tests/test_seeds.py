"""What draws says what a seed can be, before anything else: on the surface of every wing."""

import importlib
import inspect

import numpy as np
import pytest

from vlm2rec_lab.base.errors import SEEDS, checked_seed

DRAW = {
    'shop.drawn': ['make_studio'],
    'shop.leave_one_out': ['leave_one_out', 'hold_out_users'],
    'shop.shares': ['shares'],
    'shop.baskets': ['last_basket'],
    'shop.splits': ['break_ties', 'cold_items'],
    'shop.rows': ['drop_content'],
    'shop.profile': ['sample_users', 'profile'],
    'ranking.candidates': ['sample_negatives', 'popular_negatives', 'with_negatives'],
    'ranking.evaluate': ['evaluate', 'paired_difference'],
    'ranking.baselines': ['baselines'],
    'model.embedder': ['VLMEmbedder.from_pretrained'],
    'model.pair': ['PairEmbedder.from_pretrained'],
    'model.loading': ['load_embedder'],
    'model.tuned': ['tuned_copy'],
    'model.tiny': ['pretrain'],
    'train': ['train'],
    'training.estimate': ['estimate'],
    'diagnosis.report': ['collapse_report'],
    'diagnosis.missing': ['missing_curve'],
    'diagnosis.parts': ['sampled_reports'],
    'recommenders.fit': ['fit'],
    'graph.fit': ['fit_graph'],
    'graph.diagnosis': ['graph_report'],
    'prompts.fit': ['fit_prompts'],
    'federated.blocks': ['blocks'],
    'federated.continual': ['run_blocks'],
    'federated.drift': ['drifting'],
}
WRONG = -1, 1.0, None, True, 'a', SEEDS


def found(room, name):
    "A function of the package."
    at = importlib.import_module(f'vlm2rec_lab.{room}')
    for part in name.split('.'):
        at = getattr(at, part)
    return at


@pytest.mark.parametrize('room, name', [(room, name) for room, names in DRAW.items() for name in names])
def test_a_wrong_seed_is_named_before_anything_is_done(room, name):
    f = found(room, name)
    needed = [
        p
        for p in inspect.signature(f).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    for wrong in WRONG:
        with pytest.raises(ValueError, match='seed is .*: give a whole number from 0 to 4,294,967,295'):
            f(*[None] * len(needed), seed=wrong)


def test_a_seed_of_any_whole_type_is_the_same_seed():
    from vlm2rec_lab.ranking.evaluate import evaluate

    rng = np.random.default_rng(0)
    items, users = ({'text': rng.normal(size=(n, 4))} for n in (30, 20))
    targets = rng.integers(0, 30, 20)
    first = evaluate(items, users, targets, seed=3, negatives=5)
    for same in (np.int64(3), np.uint8(3)):
        again = evaluate(items, users, targets, seed=same, negatives=5)
        assert again.protocol == first.protocol and again.to_dict() == first.to_dict()
    assert type(checked_seed(np.uint8(3))) is int


def test_the_largest_seed_draws():
    from vlm2rec_lab.studio import make_studio

    studio = make_studio('text-easy', seed=SEEDS - 1, items=60, users=60)
    assert len(studio.split(train=30, valid=10, test=10, history=4).test) == 10

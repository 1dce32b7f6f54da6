"""What measures and reports cannot take is refused by the name of its argument; what numpy makes is taken."""

import re
from functools import partial

import numpy as np
import pytest

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.diagnose import RULES, Task, better_weights, collapse_report, fused_gain
from vlm2rec_lab.diagnosis.adds import added_gain
from vlm2rec_lab.diagnosis.evidence import knockout_mean, knockout_permuted, probe_gain, shuffled_gain
from vlm2rec_lab.diagnosis.geometry import agreement_test, mean_cosine, nearest, neighbour_agreement
from vlm2rec_lab.diagnosis.memory import exchange
from vlm2rec_lab.diagnosis.worlds import world
from vlm2rec_lab.ranking.evaluate import bootstrap_interval, bootstrap_means, evaluate
from vlm2rec_lab.ranking.ranks import chance_level, metric_at_k, ranks
from vlm2rec_lab.ranking.sets import set_ranks

WORLD = world(users=60, n_items=30, seed=0)
TASK = Task.of(**WORLD)
TEXT, IMAGE = (WORLD['items'][m] for m in ('text', 'image'))
GAINS = np.linspace(0, 1, 20)
SHUFFLED = partial(shuffled_gain, TEXT, WORLD['sequences']['text'], TASK, n=2)
COUNTS = {  # (function, argument that counts something): a call that lacks it
    ('knockout_permuted', 'seed'): partial(knockout_permuted, TASK, 'text', 2),
    ('knockout_permuted', 'permutations'): lambda permutations: knockout_permuted(TASK, 'text', permutations),
    ('shuffled_gain', 'seed'): SHUFFLED,
    ('probe_gain', 'seed'): partial(probe_gain, TASK, 'text'),
    ('probe_gain', 'folds'): partial(probe_gain, TASK, 'text'),
    ('better_weights', 'seed'): partial(better_weights, TASK),
    ('added_gain', 'seed'): partial(added_gain, TASK, 'text'),
    ('exchange', 'seed'): partial(exchange, 9),
    ('nearest', 'k'): partial(nearest, TEXT),
    ('nearest', 'chunk'): partial(nearest, TEXT),
    ('bootstrap_interval', 'n'): partial(bootstrap_interval, GAINS),
    ('metric_at_k', 'k'): partial(metric_at_k, ranks(TEXT, TEXT, np.arange(30), progress=False)),
    ('chance_level', 'k'): partial(chance_level, 30),
}
COUNTS |= {
    ('neighbour_agreement', a): partial(neighbour_agreement, TEXT, IMAGE) for a in ('k', 'most', 'seed', 'chunk')
}
COUNTS |= {
    ('agreement_test', a): partial(agreement_test, TEXT, IMAGE) for a in ('k', 'most', 'permutations', 'seed', 'pairs')
}


def refused(name, call):
    with pytest.raises(ValueError, match=rf"\b{name}(=| is )"):
        call()


@pytest.mark.parametrize('f, name', COUNTS)
def test_what_counts_is_a_whole_number(f, name):
    for wrong in (-1, 1.5, 3.0, float('nan'), float('inf'), True, '3', None, []):
        refused(name, lambda: COUNTS[f, name](**{name: wrong}))
    COUNTS[f, name](**{name: np.int64(3)})


@pytest.mark.parametrize('wrong', [-1, float('nan'), True, '3', None, 1.5])
def test_shares_and_weights_are_numbers(wrong):
    refused('level', lambda: bootstrap_interval(GAINS, 10, level=wrong))
    if wrong != 1.5:
        refused('shrink', lambda: probe_gain(TASK, 'text', shrink=wrong))
        refused('factors', lambda: better_weights(TASK, factors=(0.5, wrong)))
        refused('factors', lambda: added_gain(TASK, 'text', factors=(0.5, wrong)))
        refused(r"rules\['users'\]", lambda: collapse_report(**WORLD, rules=dict(RULES, users=wrong)))
    for none in (wrong, '123'):
        refused('factors', lambda: better_weights(TASK, factors=none))


def test_draws_without_a_seed_are_asked_for_by_none_alone():
    for wrong in (-1, 1.5, True, '3', [1, 2]):
        refused('seed', lambda: bootstrap_means(GAINS, 5, wrong))
    assert len(bootstrap_means(GAINS, 5, None)) == 5


@pytest.mark.parametrize('f', [knockout_mean, knockout_permuted, probe_gain, added_gain])
def test_a_modality_that_there_is_not_is_told(f):
    "A knockout of nothing would be a modality that nobody misses."
    with pytest.raises(DataError, match="no modality 'imgae'; did you mean 'image'"):
        f(TASK, 'imgae')
    with pytest.raises(DataError, match="no modality 'imgae'"):
        fused_gain(TASK, modalities=['text', 'imgae'])


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_no_user_ranks_first_because_a_vector_is_unknown(value):
    "A comparison with NaN is false: nothing would stand above the target."
    for side in ('items', 'sequences'):
        vectors = dict(items=TEXT, sequences=WORLD['sequences']['text'].copy())
        vectors[side] = vectors[side].copy()
        vectors[side][3] = value
        with pytest.raises(ValueError, match=f'{side} has NaN or infinity in 1 of .* the first is row 3'):
            ranks(**vectors, targets=WORLD['targets'], progress=False)
        sets = np.arange(61), WORLD['targets']
        with pytest.raises(ValueError, match=f'{side} has NaN or infinity'):
            set_ranks(**vectors, sets=sets, progress=False)


def test_targets_are_rows_of_items():
    for wrong, said in ((-1, 'row 0 is -1'), (30, 'row 0 is 30'), (0.5, 'row 0 is 0.5')):
        targets = WORLD['targets'].astype(float)
        targets[0] = wrong
        with pytest.raises(ValueError, match=f'targets: {said}'):
            ranks(TEXT, WORLD['sequences']['text'], targets, progress=False)


def test_cosines_are_of_directions():
    "Vectors of any length have the neighbours of their directions, and those of length 1 are left as they are."
    rng = np.random.default_rng(0)
    unit = TEXT / np.linalg.norm(TEXT, axis=1, keepdims=True)
    longer = unit * rng.uniform(0.5, 50, (30, 1)).astype(np.float32)
    plain = (unit.astype(float) @ unit.T)[~np.eye(30, dtype=bool)].mean()
    assert abs(mean_cosine(longer) - plain) < 1e-5 and abs(mean_cosine(unit) - plain) < 1e-5
    two = [agreement_test(x, IMAGE, k=3) for x in (unit, longer)]
    assert two[0]['value'] == two[1]['value'] and abs(two[0]['spearman'] - two[1]['spearman']) < 1e-6


@pytest.mark.parametrize(
    'wrong, said',
    [
        (dict(rules=None), 'rules=None: change some with dict(RULES, users=200)'),
        (dict(rules=['users']), 'rules='),
        (dict(name=3), 'name=3: give the heading'),
        (dict(split='shop'), 'split is str: give a Split'),
        (dict(titles=3), 'titles is int: give a list of names'),
        (dict(items={'text': None, 'image': IMAGE}), "items['text']"),
        (dict(items={'text': 3, 'image': IMAGE}), "items['text']"),
    ],
)
def test_a_report_names_the_argument(wrong, said):
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        collapse_report(**WORLD | wrong, progress=False)


def test_evaluate_takes_what_numpy_makes():
    found = [evaluate(**WORLD, k=k, seed=s, bootstrap=b, progress=False).to_dict() for k, s, b in ((5, 1, 9),)]
    made = map(np.int64, (5, 1, 9))
    assert evaluate(**WORLD, **dict(zip(('k', 'seed', 'bootstrap'), made)), progress=False).to_dict() == found[0]

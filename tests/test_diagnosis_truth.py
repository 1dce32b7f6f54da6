"""Verdicts and sentences that must be true where modalities are weak, references strange, vectors missing, hits few."""

import warnings

import numpy as np
import pytest
from lifts import exactly, sure

from vlm2rec_lab.base.errors import DataWarning
from vlm2rec_lab.cli import main
from vlm2rec_lab.diagnosis.adds import added_gain, popularity_gain
from vlm2rec_lab.diagnosis.decision import where_missing
from vlm2rec_lab.diagnosis.evidence import Task, fused_gain
from vlm2rec_lab.diagnosis.headline import headline
from vlm2rec_lab.diagnosis.inputs import read_fusion
from vlm2rec_lab.diagnosis.report import collapse_report
from vlm2rec_lab.diagnosis.settings import judged_case
from vlm2rec_lab.diagnosis.verdict import REASONS, RULES, VERDICTS, Lift, judge, rivals, says_the_same, severity
from vlm2rec_lab.diagnosis.worlds import hurt, world
from vlm2rec_lab.ranking.evaluate import Estimate

SIDES = ('items', 'sequences')
QUICK = dict(permutations=5, bootstrap=400, progress=False)


def judged(w, reference=None, **more):
    "A report whose warnings are expected."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        warnings.simplefilter('error', RuntimeWarning)
        return collapse_report(**w, reference=reference, **QUICK, **more)


def image(w, reference=None, **more):
    "What the report says of the image."
    return judged(w, reference, **more).modalities['image']


def before(w):
    "A world as the reference of another."
    return {side: w[side] for side in SIDES}


def grouped(users=1000, seed=9000, size=8, fuse='concat'):
    "The text tells the group of an item, the image which of the group it is."
    rng, item = np.random.default_rng(seed), np.arange(400)
    y = rng.integers(0, 400, users)
    base = {'text': rng.normal(size=(400 // size, 24))[item // size], 'image': rng.normal(size=(size, 24))[item % size]}
    items = {m: x + 0.2 * rng.normal(size=x.shape) for m, x in base.items()}
    sequences = {m: x[y] + 0.6 * rng.normal(size=(users, 24)) for m, x in base.items()}
    return dict(items=items, sequences=sequences, targets=y, fuse=fuse)


def coloured(users=1000, seed=0, fuse='sum'):
    "The text tells what an item is about, the image only which of four colours it has."
    rng = np.random.default_rng(seed)
    z, taste = rng.normal(size=(300, 8)), rng.normal(size=(users, 8))
    colour, likes = rng.integers(0, 4, 300), rng.integers(0, 4, users)
    score = taste @ z.T / 8**0.5 + 1.5 * (colour == likes[:, None]) + 0.3 * rng.gumbel(size=(users, 300))
    hue, turn = rng.normal(size=(4, 16)), rng.normal(size=(8, 16)) / 4
    sides = {'items': (z, colour, 0.3), 'sequences': (taste, likes, 0.5)}
    told = {
        side: {
            'text': x @ turn + 0.2 * rng.normal(size=(len(x), 16)),
            'image': hue[c] + noise * rng.normal(size=(len(x), 16)),
        }
        for side, (x, c, noise) in sides.items()
    }
    return dict(told, targets=score.argmax(1), fuse=fuse)


def best_sellers(seed=2):
    "An image that knows nothing but roughly what sells, and says so to every user."
    w, rng = world(1000, 300, seed, popular=0.1), np.random.default_rng(seed)
    sold = np.bincount(w['targets'], minlength=300) + 10.0 * rng.normal(size=300)
    w['items']['image'] = sold[:, None] / 10 * np.eye(1, 16) + 3 * np.eye(1, 16, 1)
    w['sequences']['image'] = np.tile(np.eye(1, 16), (1000, 1))
    return w | dict(fuse='concat')


@pytest.mark.parametrize('users', [300, 1000, 5000])
@pytest.mark.parametrize('make', [grouped, lambda u, s: grouped(u, s, 4, 'sum'), coloured], ids=['8', '4', 'colours'])
def test_a_weak_modality_that_is_alone_in_what_it_knows_is_no_death(make, users):
    for seed in (1, 2):
        x = image(make(users, seed))
        assert (x['verdict'], x['reason']) == ('healthy', 'unique')
        assert 'weak' in x['sentence'] and 'only it knows' in x['sentence']


def test_the_example_of_the_issue():
    x = image(grouped())
    assert x['verdict'] == 'healthy'
    assert 'leaving it out changes NDCG by -0.4' in x['sentence']
    assert x['evidence']['added']['low'] > 0.4


def test_weak_and_needed_but_not_heard_is_under_used():
    x = image(grouped(fuse={'text': 1, 'image': 0.002}))
    assert (x['verdict'], x['reason']) == ('under-used', 'unheard')
    assert 'would add +0.' in x['sentence']


DEATHS = ['noise', 'noise in items', 'noise in sequences', 'permuted', 'constant']


@pytest.mark.parametrize('how', DEATHS)
@pytest.mark.parametrize('fuse', ['sum', 'concat'])
def test_the_dead_are_named_without_a_reference(how, fuse):
    for users in (300, 1000):
        x = image(hurt(world(users, 300, 3), 'image', how) | dict(fuse=fuse))
        assert x['verdict'] == 'collapsed', (users, x['sentence'])


def test_what_sells_is_no_content():
    x = image(best_sellers())
    e = x['evidence']
    assert (x['verdict'], x['reason']) == ('collapsed', 'liked')
    assert e['added_common']['low'] > 0 >= e['added']['low']
    assert 'to every user alike' in x['sentence']


def selling(seed, content=0.0, zipf=0.5, users=1000, n_items=300):
    "A shop with few best sellers. The image tells how an item sells, and more or less of what it is."
    w = world(users, n_items, seed, zipf=zipf, dims=24)
    rng, way = np.random.default_rng(seed + 50), np.eye(24)[0]
    sold = np.log1p(np.bincount(w['targets'], minlength=n_items))[:, None] * way / 5
    known = {side: x['image'] / np.linalg.norm(x['image'], axis=1, keepdims=True) for side, x in list(w.items())[:2]}
    items = sold + 0.15 * rng.normal(size=(n_items, 24)) + content * known['items']
    sequences = way + 0.05 * rng.normal(size=(users, 24)) + content * known['sequences']
    out = {'items': {**w['items'], 'image': items}, 'sequences': {**w['sequences'], 'image': sequences}}
    return out | dict(targets=w['targets'], fuse='concat'), w


@pytest.mark.parametrize('seed', [0, 2, 4])
@pytest.mark.parametrize('known', [False, True])
def test_what_may_be_best_sellers_alone_is_not_called_healthy(known, seed):
    "Where a few items make nearly all sales, nobody can tell whether the image knows who asks: it does not."
    w, whole = selling(seed, zipf=1.2, users=500)
    said = judged(w, before(whole) if known else None, missing=())
    x = said.modalities['image']
    assert (x['verdict'], x['reason']) == ('undecided', 'popular unclear')
    assert 'depends on who asks' in headline(said.data)['said']
    assert x['evidence']['personal_ratio']['low'] <= 0 and 'users apart at all' in x['sentence']


@pytest.mark.parametrize('seed', [0, 3, 4])
@pytest.mark.parametrize('content', [0, 0.3])
def test_who_knows_users_is_not_dead_beside_who_knows_sales(content, seed):
    "The image ranks ten times as well, by what sells; the text says far more of who asks."
    w, _ = selling(seed, content=content, zipf=1.2, users=2000)
    said = judged(w, missing=())
    text, shown = (said.modalities[m] for m in ('text', 'image'))
    assert text['verdict'] == 'healthy', text['sentence']
    assert content == 0 or (shown['verdict'] == 'healthy') == (seed != 3), 'seed 3: not surely better than chance'
    if text['reason'] == 'apart':
        assert 'relative to' not in text['sentence']
        assert said.verdict != 'healthy' or 'Weak only beside what shows' in said.data['summary']
        assert 'goes to every user alike' in text['sentence'] and text['evidence']['personal_ratio']['low'] > 0.25


@pytest.mark.parametrize(
    'own, beside, said',
    [
        ((-0.1, 0.2), (-0.1, 0.2), 'yes'),
        ((-0.1, 0.2), (-0.5, 0.6), 'open'),
        ((-0.1, 0.3), (-0.1, 0.2), 'open'),  # no hardly: it may be more
        ((0.05, 0.2), (0.1, 0.5), 'open'),
        ((0.05, 0.2), (0.3, 0.9), 'no'),
        ((0.05, 0.3), (0.05, 0.2), 'open'),  # some, and surely little beside the other's
        ((0.26, 0.3), (0.05, 0.2), 'no'),
        ((0.05, 0.3), (0.05, 0.3), 'no'),
        ((-0.1, 0.2), (np.nan, np.nan), 'open'),  # nobody else tells users apart
        ((0.05, 0.2), (np.nan, np.nan), 'no'),
    ],
)
def test_whether_all_users_are_told_the_same(own, beside, said):
    "By the interval of what depends on who asks: as a part of its own gain, and beside the most that another has."
    evidence = dict(personal=Estimate(sum(own) / 2, *own), personal_ratio=Estimate(sum(beside) / 2, *beside))
    assert RULES['collapsed'] == 0.25 and says_the_same(sure(1.0), evidence, 0.02) == said
    assert says_the_same(sure(1.0, False), evidence, 0.02) == says_the_same(sure(1.0), {}, 0.02) == 'no'


@pytest.mark.parametrize('m, seed', [('image', 0), ('image', 4), ('text', 1), ('text', 2)])
def test_what_another_gains_below_nothing_hides_nobody(m, seed):
    "By luck the list of best sellers ranks better for exchanged users; that is no reason to call the other one dead."
    task, _, truth, _ = judged_case(f'sales alone without reference: popularity 1.2, {m}', 1000, seed)
    said = judged(dict(items=task.items, sequences=task.sequences, targets=task.targets, fuse=task.fuse), missing=())
    found = said.modalities
    (well,) = set(found) - {m}
    assert truth[m] == 'collapsed' and found[m]['evidence']['personal']['value'] < 0.02
    if (m, seed) == ('text', 2):  # not surely better than shuffled items, among which luck finds a best seller
        assert (found[well]['verdict'], found[well]['reason']) == ('undecided', 'apart unclear')
    else:
        assert (found[well]['verdict'], found[well]['reason']) == ('healthy', 'apart')
        assert 'who asks, ' + well + ' gains more than any other.' in found[well]['sentence']
    assert (found[m]['verdict'], found[m]['reason']) == ('undecided', 'popular unclear')


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('names', [('text',), ('text', 'image')])
def test_best_sellers_and_nothing_else_are_not_healthy(names, seed):
    w = world(1000, 300, seed, zipf=1)
    for m in names:
        w = hurt(w, m, 'sales alone')
    w = w | {side: {m: w[side][m] for m in names} for side in SIDES}
    for x in judged(w | dict(fuse='concat'), missing=()).modalities.values():
        assert (x['verdict'], x['reason']) == ('undecided', 'popular unclear'), x['sentence']


def test_one_modality_below_chance():
    w = world(300, 100, 0, noise={'image': 0.3})
    w['sequences'] = {'image': -w['sequences']['image']}
    x = image(w)
    assert (x['verdict'], x['reason']) == ('undecided', 'nothing') and x['evidence']['lift']['value'] < 0


def test_a_weak_one_that_tells_users_apart_is_told_from_a_silent_one():
    asked = dict(best=sure(1.0), fused=sure(1.0), drop=exactly(0.0), share=exactly(0.05))
    much, little, either = Estimate(0.8, 0.5, 1.1), Estimate(0.1, 0.0, 0.2), Estimate(0.3, 0.1, 0.5)
    assert judge(sure(0.1), **asked)[0] == judge(sure(0.1), **asked, apart=little)[0] == 'silent'
    assert judge(sure(0.1), **asked, apart=either)[0] == 'apart unclear'
    assert judge(sure(0.1), **asked, apart=much)[0] == 'apart unheard'
    assert judge(sure(0.1), **asked | dict(share=exactly(0.5)), apart=much)[0] == 'apart'
    assert judge(sure(0.1, False), **asked, apart=much)[0] == 'apart unclear'
    assert judge(sure(0.1, False), **asked, apart=either)[0] == 'silent'


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_who_shows_everyone_the_best_sellers_knows_nothing(seed):
    w, known = selling(seed)
    said = judged(w, missing=())
    x, e = said.modalities['image'], said.modalities['image']['evidence']
    assert (x['verdict'], x['reason']) == ('collapsed', 'popular')
    assert e['lift_ratio']['value'] > 0.5 > 0.25 > e['personal']['high']
    assert 'the same to every user' in x['sentence'] and 'depends on who asks' in headline(said.data)['said']
    assert said.modalities['text']['verdict'] == 'healthy'
    y = image(w, before(known), missing=())
    assert (y['verdict'], y['reason']) == ('collapsed', 'lost to popularity')


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_a_list_of_best_sellers_is_no_measure_of_the_others(seed):
    said = judged(selling(seed, zipf=1)[0], missing=())
    found, ndcg = said.modalities, {m: x['evidence']['ndcg']['value'] for m, x in said.modalities.items()}
    assert ndcg['text'] < 0.25 * ndcg['image']
    assert {m: x['verdict'] for m, x in found.items()} == {'text': 'healthy', 'image': 'collapsed'}
    assert said.data['best'] == 'text'


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_best_sellers_and_content_are_content(seed):
    w, known = selling(seed, content=2)
    assert image(w, missing=())['verdict'] == 'healthy'
    for world_, reference in ((known, None), (known, before(known))):
        found = judged({**world_, 'fuse': 'concat'}, reference, missing=()).modalities
        assert {x['verdict'] for x in found.values()} == {'healthy'}


def test_what_depends_on_who_asks_by_hand():
    w, _ = selling(3)
    task = Task.of(**w)
    others = np.random.default_rng(0).permutation(len(w['targets']))
    exchanged = {side: dict(w[side]) for side in SIDES}
    exchanged['sequences'] = {m: x[others] for m, x in w['sequences'].items()}
    there = Task.of(**exchanged, targets=w['targets'], fuse='concat')
    own, other = ({m: fused_gain(t, modalities=[m]) for m in t.items} for t in (task, there))
    e = image(w, missing=())['evidence']
    lost = (own['image'] - other['image']).mean()
    assert e['personal']['value'] == pytest.approx(lost / (own['image'] - task.chance).mean())
    assert e['personal_ratio']['value'] == pytest.approx(lost / (own['text'] - other['text']).mean())


def test_a_modality_alone_has_no_others_to_add_to():
    w = world()
    only = Task.of({'a': w['items']['text']}, {'a': w['sequences']['text']}, w['targets'])
    assert added_gain(only, 'a') is None


@pytest.mark.parametrize('fuse', ['sum', 'concat', {'text': 1, 'image': 3}, 'own'])
def test_what_is_added_can_be_asked_of_every_fusion(fuse):
    def own(vectors):
        return np.concatenate(list(vectors.values()), 1)

    task = Task.of(**(grouped() | dict(fuse=own if fuse == 'own' else fuse)))
    mine, common = added_gain(task, 'image')
    assert 0.4 < mine.mean() < 0.6
    assert abs(common.mean()) < 0.02
    assert len(mine) == 1000


def test_a_modality_that_hurts_is_said_to_hurt():
    noisy = world(noise={'text': 2, 'image': 4})
    r = judged(noisy)
    x, without = r.modalities['image'], Task.of(**noisy)
    rise = fused_gain(without, modalities=['text']).mean() - fused_gain(without).mean()
    if x['reason'] == 'hurts':
        assert f'{rise:+.3f}'[:4] in x['sentence']
    loud = judged(world(noise={'text': 0.2, 'image': 1.2}))
    x = loud.modalities['image']
    assert x['reason'] == 'hurts'
    assert 'the ranking is better without it: +0.' in x['sentence']
    assert 'better without image' in loud.data['summary']
    assert not any(m['advice'] == 'Nothing to repair.' for m in loud.modalities.values())


def test_no_sentence_says_that_ndcg_falls_by_what_a_permutation_costs():
    assert not any('falls by' in sentence for _, sentence, _ in REASONS.values())
    x = image(world())
    e = x['evidence']['drop_mean']
    assert f'{-e["value"]:+.3f} [{-e["high"]:+.3f}, {-e["low"]:+.3f}]' in x['sentence']


def test_the_only_living_modality_is_not_said_by_another():
    asked = dict(best=sure(0.2), fused=sure(0.05), drop=exactly(0.01), share=exactly(0.4))
    assert judge(sure(0.2), living=True, **asked)[0] == 'spare'
    assert judge(sure(0.2), living=False, **asked)[0] == 'drowned'


def turned(w, modalities=('text', 'image')):
    "A reference whose histories and items lie in different spaces."
    rng, out = np.random.default_rng(7), {side: dict(w[side]) for side in SIDES}
    for m in modalities:
        out['sequences'][m] = w['sequences'][m] @ np.linalg.qr(rng.normal(size=(16, 16)))[0]
    return out


@pytest.mark.parametrize('turn', [('text', 'image'), ('image',)])
@pytest.mark.parametrize('how', ['noise', 'permuted'])
def test_a_death_beside_an_unaligned_reference_is_a_death(turn, how):
    w = world(1000, 300, 5)
    x = image(hurt(w, 'image', how), turned(w, turn))
    assert (x['verdict'], x['reason']) == ('collapsed', 'lost to a probe')
    assert 'linear probe on the reference' in x['sentence']


def test_health_beside_an_unaligned_reference_is_health():
    w = world(1000, 300, 5)
    assert image(w, turned(w))['verdict'] == 'healthy'


def test_vectors_that_are_still_unaligned_are_not_healthy():
    w = world(1000, 300, 5)
    x = image({**w, **turned(w, ['image'])}, turned(w))
    assert (x['verdict'], x['reason']) == ('collapsed', 'unaligned')


@pytest.mark.parametrize('side', SIDES)
@pytest.mark.parametrize('popular', [0, 1.5])
def test_a_reference_in_another_order_is_warned_of_and_not_believed(side, popular):
    w = world(1000, 300, 5, popular=popular)
    n = len(w['targets']) if side == 'sequences' else 300
    order = np.random.default_rng(0).permutation(n)
    mixed = before(w) | {side: {m: x[order] for m, x in w[side].items()}}
    with pytest.warns(DataWarning, match='probably those of other users or items'):
        r = collapse_report(**hurt(w, 'image'), reference=mixed, **QUICK)
    assert r.modalities['image']['verdict'] == 'collapsed'
    assert sum('other users or items' in n for n in r.data['notes']) == 1


def test_what_was_never_there_stays_uninformative():
    w = world(1000, 300, 5, mute=['image'])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        r = collapse_report(**w, reference=before(w), **QUICK)
    assert r.modalities['image']['verdict'] == 'uninformative'


@pytest.mark.parametrize(
    'low, value, high, why', [(0.55, 0.6, 0.8, 'worn'), (0.4, 0.5, 0.6, 'damaged'), (0.3, 0.4, 0.5, 'lost')]
)
def test_damage_is_settled_only_by_the_interval(low, value, high, why):
    own = Lift(value, np.linspace(low, high, 100), np.linspace(low, high, 100), True)
    said, ratio = judge(own, sure(1.0), sure(1.0), exactly(0.5), exactly(0.5), ceiling=sure(1.0))
    assert said == why
    assert low <= ratio.low <= ratio.high <= high


def part_dead(w, share, seed=0):
    "A world in which a share of the users has lost its image."
    rng, x = np.random.default_rng(seed), w['sequences']['image'].copy()
    gone = rng.random(len(x)) < share
    x[gone] = rng.normal(size=(gone.sum(), x.shape[1])) * x.std()
    return {**w, 'sequences': {**w['sequences'], 'image': x}}


def test_a_modality_dead_for_half_of_the_users_is_damaged():
    w = world(600, 300, 1)
    r = judged(part_dead(w, 0.5), before(w))
    x = r.modalities['image']
    assert (x['verdict'], x['reason']) == ('undecided', 'damaged')
    assert x['sentence'].startswith('Damaged: under-used or collapsed.')
    assert 'Damaged' in r.data['summary'] and 'Nothing can be said' not in r.data['summary']
    assert severity(r.modalities) == VERDICTS['under-used'] > VERDICTS[r.verdict]


def test_damage_does_not_pass_a_gate(tmp_path, capsys):
    w, old = part_dead(world(600, 300, 1), 0.5), before(world(600, 300, 1))
    for name, sides in (('now', w), ('old', old)):
        arrays = {f'{side}/{m}': x for side in SIDES for m, x in sides[side].items()}
        np.savez(tmp_path / f'{name}.npz', targets=w['targets'], **arrays)
    argv = ['report', str(tmp_path / 'now.npz'), '--reference', str(tmp_path / 'old.npz'), '--out']
    argv += [str(tmp_path / 'r.json'), '--fail-on']
    assert main([*argv, 'under-used']) == 3
    assert 'undecided, but damaged: fails on under-used' in capsys.readouterr().err
    assert not main([*argv, 'collapsed'])


def heavy(users, seed=0, power=1.5):
    "Both modalities with a heavy-tailed spectrum, and users who look at every direction."
    rng, dims = np.random.default_rng(seed), 24
    z, taste = rng.normal(size=(400, dims)), rng.normal(size=(users, dims))
    y = (taste @ z.T / dims**0.5 + 0.2 * rng.gumbel(size=(users, 400))).argmax(1)
    loud = np.arange(1, dims + 1) ** (-power / 2)
    out = dict(items={}, sequences={}, targets=y, fuse='concat')
    for m, noise in (('text', 0.2), ('image', 0.4)):
        out['items'][m], out['sequences'][m] = [(x + noise * rng.normal(size=x.shape)) * loud for x in (z, taste)]
    return out


@pytest.mark.parametrize('users', [300, 1000, 5000])
@pytest.mark.parametrize('power', [1.0, 2.0])
def test_heavy_tails_stay_healthy_as_users_come(users, power):
    w = heavy(users, power=power)
    assert {x['verdict'] for x in judged(w).modalities.values()} == {'healthy'}
    if users == 5000:
        assert 'linear probe on the same vectors finds more' in judged(w).modalities['text']['sentence']


def test_all_that_may_be_the_best_are_rivals():
    rng = np.random.default_rng(0)
    near = {m: Lift(v, v + 0.02 * rng.normal(size=999), v + 0.02, True) for m, v in (('a', 1.0), ('b', 0.99))}
    far = near | {'c': Lift(0.5, 0.5 + 0.02 * rng.normal(size=999), np.full(999, 0.5), True)}
    assert rivals(far) == ['a', 'b']
    e = far['c'].beside([far[m] for m in rivals(far)])
    each = [far['c'].over(far[m]) for m in 'ab']
    assert (e.value, e.low, e.high) == (each[0].value, min(x.low for x in each), max(x.high for x in each))


def test_a_report_says_what_its_hits_can_show():
    clear = judged(world())
    assert 'hits' in clear.data['power'] and 'can be told from none' in clear.data['power']
    assert clear.data['power'] in repr(clear) and clear.data['notes'] == []
    found = fused_gain(Task.of(**world()), modalities=['text'], metric='HR').sum()
    assert abs(clear.data['hits'] - found) < 0.1
    poor = judged(world(150, 2000, 1, noise={'text': 1.5, 'image': 1.6}), fuse='concat')
    assert 'a collapse could not be told from half a loss' in poor.data['power']
    assert poor.data['hits'] < 20


def test_health_without_a_reference_is_relative():
    r, known = judged(world()), judged(world(), before(world()))
    assert 'Healthy relative to the best modality (text)' in r.modalities['image']['sentence']
    assert 'relative to the best modality' in r.data['summary']
    assert 'relative' not in known.data['summary'] + known.modalities['image']['sentence']


def test_what_popularity_ranks_better_is_no_health():
    r = judged(world(popular=3, noise={'text': 0.3, 'image': 0.4}))
    sold = popularity_gain(Task.of(**world(popular=3))).mean()
    said = f'Popularity ranks better: NDCG@10 {sold:.3f}, and '
    assert said in r.data['summary'] and 'Popularity ranks better' in headline(r.data)['said']
    assert all(said in x['sentence'] for x in r.modalities.values() if x['verdict'] == 'healthy')
    assert 'Popularity' not in judged(world()).data['summary']


def test_popularity_is_counted_from_what_was_seen():
    task = Task.of({'a': np.eye(4)}, {'a': np.eye(4)[:3]}, [1, 0, 3], seen=[[0, 2], [1, 2], [2]], k=3)
    assert popularity_gain(task) == pytest.approx([1, 1, 0.5])


def test_different_dimensions_are_concatenated_and_it_is_said():
    w = world()
    w['items']['image'], w['sequences']['image'] = (
        np.hstack([x['image'], 0 * x['image'][:, :4]]) for x in before(w).values()
    )
    with pytest.warns(DataWarning, match="'concat'"):
        r = collapse_report(**w, **QUICK)
    assert r.data['fuse'] == 'concat' and any("fused by 'concat'" in n for n in r.data['notes'])
    with pytest.raises(ValueError, match='equal dims'):
        collapse_report(**w, fuse='sum', **QUICK)
    assert read_fusion(None, world()['items']) == 'sum' == judged(world()).data['fuse']


@pytest.mark.parametrize('bad, said', [(np.zeros(20), 'has shape'), ([[1.0], [1.0, 2.0]] * 10, 'different lengths')])
def test_what_is_no_table_of_vectors_is_named_before_a_fusion_is_chosen(bad, said):
    side = dict(text=np.eye(20), image=bad)
    with pytest.raises(ValueError, match=rf"items\['image'\] .*{said}"):
        collapse_report(items=side, sequences=side, targets=np.arange(20))


@pytest.mark.parametrize('fuse', ['sum', 'concat'])
def test_missing_vectors_are_named_and_training_is_not_blamed(fuse):
    w = world(1000, 300, 2)
    x = image(hurt(w, 'image', 'absent', 0.6) | dict(fuse=fuse), before(w))
    assert '180 of 300 items have no image vector' in x['sentence']
    assert 'missing' in x['advice'] and 'train' not in x['advice'].lower()
    worse = image(hurt(hurt(w, 'image', 'noise in items'), 'image', 'absent', 0.6) | dict(fuse=fuse), before(w))
    assert (worse['verdict'], worse['reason']) == ('collapsed', 'missing')
    assert 'That is not all' in worse['sentence']


def test_users_without_vectors_are_named_too():
    w = world(1000, 300, 2)
    gone = dict(w, sequences={**w['sequences'], 'image': w['sequences']['image'].copy()})
    gone['sequences']['image'][:700] = 0
    x = image(gone | dict(fuse='concat'), before(w))
    assert (x['verdict'], x['reason']) == ('collapsed', 'missing')
    assert '700 of 1,000 users have no image vector' in x['sentence']


def test_nothing_is_missing_where_nothing_was_lost():
    task = Task.of(**world())
    assert where_missing(task, 'image', {'image': task}, dict(reason='used')) == {}
    assert where_missing(task, 'image', {'image': task}, dict(reason='lost')) == {}


@pytest.mark.parametrize('which', [('image',), ('text', 'image')])
@pytest.mark.parametrize('fuse', ['sum', 'concat'])
def test_vectors_that_are_all_alike_are_named(which, fuse):
    w, one = world(), np.random.default_rng(0).normal(size=16)
    same = {m: np.tile(one, (200, 1)) if m in which else x for m, x in w['items'].items()}
    r = judged(dict(w, items=same, fuse=fuse))
    for m in which:
        assert (r.modalities[m]['verdict'], r.modalities[m]['reason']) == ('collapsed', 'alike')
    assert 'nan' not in repr(r).lower()


def test_weak_with_something_of_its_own_but_badly_fused_is_a_matter_of_the_fusion():
    apart = world(1000, 200, 100, sees={'text': range(6), 'image': range(6, 8)})
    x = image(apart)
    assert (x['verdict'], x['reason']) == ('healthy', 'misheard')
    assert 'at its best weight it would add +0.' in x['sentence']
    assert x['evidence']['drop_mean']['high'] < 0 and 'changes NDCG by +0.' in x['sentence']


# ---------------------------------------------------------------- what a fresh tester found


def drawn(users=600, seed=0, spread=0.5, zipf=0.0):
    "Latent items and users, and what the users took: {'z', 't', 'y', 'rng'}."
    rng = np.random.default_rng(seed)
    z, p = rng.normal(size=(400, 8)), (1 + np.arange(400)) ** -zipf
    y = rng.choice(400, users, p=p / p.sum())
    return z, z[y] + spread * rng.normal(size=(users, 8)), y, rng


def noisy(x, rng, noise=0.2):
    "Vectors of 24 dimensions that hold these eight."
    return np.c_[x, np.zeros((len(x), 16))] + noise * rng.normal(size=(len(x), 24))


def test_popularity_blames_the_vectors_that_it_beats_and_no_others():
    """The text ranks better than a list of best sellers, the fused ranking does not: the headline says it, the card of
    the text does not."""
    z, t, y, rng = drawn(spread=0.9, zipf=1.0)
    items = dict(text=noisy(z, rng), image=rng.normal(size=(400, 24)))
    r = judged(dict(items=items, sequences=dict(text=noisy(t, rng), image=rng.normal(size=(600, 24))), targets=y))
    e, text = r.evidence, r.modalities['text']
    assert e['fused_ndcg']['value'] < e['popularity_ndcg']['value'] < text['evidence']['ndcg']['value']
    assert 'best sellers' not in text['advice'] and 'Popularity' not in text['sentence']
    assert 'Popularity ranks better' in headline(r.data)['said'] and headline(r.data)['tone'] == 'bad'


def test_a_weight_of_zero_is_said():
    z, t, y, rng = drawn()
    items, users = ({m: noisy(x, rng) for m in ('text', 'image')} for x in (z, t))
    r = judged(dict(items=items, sequences=users, targets=y), fuse={'text': 1, 'image': 0})
    assert r.modalities['image']['reason'] == 'no weight' and 'weight 0' in r.modalities['image']['sentence']
    assert headline(r.data)['action'].startswith('Give image a weight above 0')


def test_vectors_that_are_all_alike_are_encoded_again_and_not_trained():
    "The headline advises what the card advises, with a reference as without."
    z, t, y, rng = drawn()
    good = noisy(z, rng), noisy(t, rng)
    w = dict(items=dict(text=good[0], image=np.ones((400, 24))), targets=y)
    w |= dict(sequences=dict(text=good[1], image=np.ones((600, 24))))
    for reference in (None, dict(items=dict(image=good[0]), sequences=dict(image=good[1]))):
        r = judged(w, reference)
        assert r.modalities['image']['reason'] == 'alike'
        assert headline(r.data)['action'].startswith('Look at what was encoded')


@pytest.mark.parametrize(
    ('wrong', 'error', 'said'),
    [
        (dict(bootstrap=1), ValueError, 'bootstrap=1: take 2 or more'),
        (dict(permutations=0), ValueError, 'permutations=0: a single permutation misleads'),
        (dict(k='x'), TypeError, "k='x': pass a whole number"),
        (dict(seed=-1), ValueError, 'seed is -1: give a whole number'),
        (dict(missing=0.5), TypeError, 'missing=0.5: pass shares'),
        (dict(missing=(2,)), ValueError, 'missing=.*2 is no share'),
        (dict(history=5), TypeError, 'history: pass what train'),
        (dict(items={}, sequences={}), ValueError, 'items has no modality'),
    ],
    ids=str,
)
def test_what_is_no_number_or_no_share_is_named(wrong, error, said):
    with pytest.raises(error, match=said):
        collapse_report(**world(users=40) | dict(progress=False) | wrong)


def test_items_that_were_bought_may_be_a_set_or_none_at_all():
    for bought in ([], {1, 2}):
        assert judged(world(users=100), bought=bought, missing=()).verdict


def test_the_headline_says_what_missing_contents_cost():
    r = judged(hurt(world(), 'image'))
    said = headline(r.data)['said']
    assert 'If half of the items had no text, this model would lose' in said
    assert 'If half' not in headline(judged(hurt(world(), 'image'), missing=()).data)['said']


@pytest.mark.parametrize(('kept', 'reason'), [(0.9, 'loss unclear'), (0.97, 'unaligned')])
def test_against_a_probe_health_needs_nearly_all(kept, reason):
    "A reference that only a probe can read hides small losses: nine tenths of it clear nobody."
    asked = dict(best=sure(1.0), fused=sure(1.0), drop=exactly(0.1), share=exactly(0.5))
    asked |= dict(ceiling=sure(0.0, above=False), known=sure(1.0), probe=sure(kept))
    assert judge(sure(0.1), **asked)[0] == reason

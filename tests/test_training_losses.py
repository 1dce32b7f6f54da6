"""Every loss of the lab: gradients, order, extreme temperatures, half precision, masks, holes, and what is refused."""

import functools
import inspect
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.training.losses import (
    FUSIONS,
    LOSSES,
    RELATIONS,
    check_batch,
    cmrtr,
    fused_logits,
    get_loss,
    margins,
    modality_dropout,
    modality_logits,
    ogm_scales,
    own_losses,
    per_modality,
    register_loss,
    sft,
    sft_cmrtr,
    vlm2rec,
    weak_infonce,
    wpcl,
)

MORE = [
    ('wpcl', {'gap': 'user'}),
    ('wpcl', {'gap': 'smooth', 'memory': {}}),
    ('vlm2rec', {'over': 'item-item'}),
    ('sft', {'fuse': 'concat'}),
    ('modality-dropout', {'fuse': 'concat'}),
]
EVERY = [(name, {}) for name in LOSSES] + MORE
IDS = [f'{name} {"".join(map(str, kw.values()))}'.strip() for name, kw in EVERY]


def toy_batch(seed=0, B=6, J=5, d=4, modalities=('text', 'image'), dtype=torch.float64):
    "A batch whose image is the weaker modality."
    g = torch.Generator().manual_seed(seed)
    items = {m: torch.randn(J, d, generator=g, dtype=dtype) for m in modalities}
    positives = torch.randint(0, J, (B,), generator=g)
    strength = dict(zip(modalities, (1.5, 0.3, 0.8)))
    sequences = {m: items[m][positives] * w + torch.randn(B, d, generator=g, dtype=dtype) for m, w in strength.items()}
    exclude = torch.rand(B, J, generator=g) < 0.2
    exclude[torch.arange(B), positives] = False
    return dict(sequences=sequences, items=items, positives=positives, exclude=exclude)


@pytest.fixture
def batch():
    return toy_batch()


@pytest.fixture
def holes(batch):
    "The batch where an item and a sequence have no picture."
    both = {k: {m: z.clone() for m, z in batch[k].items()} for k in ('sequences', 'items')}
    both['items']['image'][3] = 0
    both['sequences']['image'][0] = 0
    return {**batch, **both}


def alone(batch, *modalities):
    "The batch with some of its modalities."
    return {**batch, **{k: {m: batch[k][m] for m in modalities} for k in ('sequences', 'items')}}


def close(value, want, within=1e-6):
    assert abs(float(value) - float(want)) < within, (float(value), float(want))


@pytest.mark.parametrize(
    'change, said',
    [
        (lambda b: dict(sequences={m: x[:, :3] for m, x in b['sequences'].items()}), "modality 'text'"),
        (lambda b: dict(sequences={m: x[:4] for m, x in b['sequences'].items()}), 'expected 6 and 5'),
        (lambda b: dict(exclude=b['exclude'][:, :4]), r'expected torch.bool of \(6, 5\)'),
        (lambda b: dict(exclude=b['exclude'].long()), 'torch.int64'),
        (lambda b: dict(positives=b['positives'].float()), 'torch.float32'),
        (lambda b: dict(positives=b['positives'][:0]), '1 or more'),
        (lambda b: dict(positives=b['positives'] + 5), 'columns of the 5 items'),
        (lambda b: dict(sequences={}, items={}), 'at least one'),
        (lambda b: dict(items={'text': b['items']['text']}), r"\['text'\]"),
        (lambda b: dict(exclude=F.one_hot(b['positives'], 5).bool()), 'own positive'),
    ],
)
def test_a_batch_that_does_not_fit_together(batch, change, said):
    bad = {**batch, **change(batch)}
    with pytest.raises(ValueError, match=said):
        check_batch(**bad, tau=0.1)
    with pytest.raises(ValueError, match=said):
        per_modality(**bad)


@pytest.mark.parametrize(
    'call, said',
    [
        (lambda b: wpcl(**b, alpha=math.nan), '0 or more'),
        (lambda b: vlm2rec(**b, lam=-1), 'lam=-1'),
        (lambda b: vlm2rec(**b, lam=0.0, over='item'), "did you mean 'item-item'"),
        (lambda b: vlm2rec(**b, lam=0.0, tau_c=-1), 'tau_c=-1'),
        (lambda b: per_modality(**b, weight=-1), 'weight=-1'),
        (lambda b: weak_infonce(**b, weight=-1), 'weight=-1'),
        (lambda b: modality_dropout(**b, p=-0.1), 'p=-0.1'),
        (lambda b: fused_logits(b['sequences'], b['items'], 1.0, {'text': 1.0}), 'give each modality one'),
    ],
)
def test_settings_that_are_refused(batch, call, said):
    with pytest.raises(ValueError, match=said):
        call(batch)


def test_an_unknown_setting_names_what_there_is(batch):
    with pytest.raises(TypeError, match='It takes tau, fuse'):
        get_loss('sft', alpha=1)
    assert torch.equal(get_loss('cmrtr', lam=0.0)(**batch), sft_cmrtr(**batch, lam=0.0))


def test_a_loss_from_outside_is_known_by_its_name(batch):
    @register_loss('toy')
    def toy(sequences, items, positives, exclude=None, tau=0.07, fuse='sum', beta=2.0):
        return beta * sft(sequences, items, positives, exclude, tau, fuse)

    try:
        close(get_loss('toy', beta=3.0)(**batch), 3 * sft(**batch))
        with pytest.raises(TypeError, match="did you mean 'beta'"):
            get_loss('toy', bta=1.0)
        with pytest.raises(ValueError, match='already'):
            register_loss('sft')(toy)
    finally:
        assert LOSSES.pop('toy') is toy


@pytest.mark.parametrize('fuse', FUSIONS)
def test_lengths_do_not_matter_and_one_modality_is_its_own_fusion(batch, fuse):
    longer = {m: 7 * z for m, z in batch['sequences'].items()}
    plain = fused_logits(batch['sequences'], batch['items'], 0.1, fuse)
    assert torch.allclose(fused_logits(longer, batch['items'], 0.1, fuse), plain)
    one = {k: alone(batch, 'text')[k] for k in ('sequences', 'items')}
    assert torch.allclose(fused_logits(**one, tau=0.1, fuse=fuse), modality_logits(**one, tau=0.1)['text'])


@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(batch, half):
    z = {'a': batch['items']['text'].to(half)}
    assert modality_logits(z, z, 0.01)['a'].dtype == torch.float32


def test_a_sum_with_a_missing_picture():
    u = {'text': torch.tensor([[2.0, 0.0]]), 'image': torch.tensor([[0.0, 3.0]])}
    gap = {'text': torch.tensor([[1.0, 0.0]]), 'image': torch.zeros(1, 2)}
    close(fused_logits(u, gap, 1.0), 1 / math.sqrt(2))


@pytest.mark.parametrize('over', RELATIONS)
def test_cmrtr_is_symmetric_and_a_mean_over_pairs(batch, over):
    three = toy_batch(modalities=('text', 'image', 'sound'))
    pairs = [cmrtr(**alone(three, a, b), over=over) for a, b in itertools.combinations(three['items'], 2)]
    close(cmrtr(**three, over=over), sum(pairs) / 3)
    close(cmrtr(**batch, over=over), cmrtr(**alone(batch, 'image', 'text'), over=over))


def test_cmrtr_with_nothing_to_rank(batch):
    only = ~F.one_hot(batch['positives'], 5).bool()
    assert cmrtr(**{**batch, 'exclude': only}).item() == 0.0
    couple = dict(
        sequences={m: x[:1] for m, x in batch['sequences'].items()},
        items={m: x[:2] for m, x in batch['items'].items()},
        positives=torch.tensor([0]),
    )
    assert cmrtr(**couple, over='item-item').item() == 0.0  # two items: each has one other to look at


def test_wpcl_of_three_modalities_is_finite():
    assert wpcl(**toy_batch(modalities=('text', 'image', 'sound'))).isfinite()


@pytest.mark.parametrize('name', ['sft', 'wpcl', 'vlm2rec', 'per-modality', 'weak-infonce'])
def test_holes_leave_loss_and_gradient_finite(holes, name):
    z = {k: {m: x.clone().requires_grad_() for m, x in holes[k].items()} for k in ('sequences', 'items')}
    value = get_loss(name)(**{**holes, **z})
    value.backward()
    assert value.isfinite() and all(x.grad.isfinite().all() for k in z for x in z[k].values())


def test_missing_pictures_have_no_say_in_the_lag(batch, holes):
    kept = (batch['positives'] != 3) & (torch.arange(6) != 0)
    without = dict(
        sequences={'image': batch['sequences']['image'][kept]},
        items={'image': batch['items']['image']},
        positives=batch['positives'][kept],
        exclude=batch['exclude'][kept].clone(),
    )
    without['exclude'][:, 3] = True
    close(own_losses(**holes, tau=0.07)['image'], own_losses(**without, tau=0.07)['image'])
    close(margins(**holes)['image'].mean(), margins(**without)['image'].mean())


def slopes(f, b):
    "Loss of a batch, and {modality: gradient at its sequences}."
    z = {k: {m: x.clone().requires_grad_() for m, x in b[k].items()} for k in ('sequences', 'items')}
    value = f(**{**b, **z})
    value.backward()
    return value.detach(), {m: x.grad for m, x in z['sequences'].items()}


LEADERS = [('wpcl', dict(gap=gap)) for gap in ('batch', 'user', 'smooth')] + [('weak-infonce', {}), ('ogm-ge', {})]


def in_log(b, modality, tau):
    "Log of the mean probability that a modality alone gives the positive, over rows that have a negative in it."
    u, v = (F.normalize(b[k][modality], dim=-1) for k in ('sequences', 'items'))
    logits = (u @ v.T / tau).masked_fill(b['exclude'], -torch.inf)
    return logits.log_softmax(1).gather(1, b['positives'][:, None]).logsumexp(0) - math.log(len(u))


@pytest.mark.parametrize('name, kw', LEADERS, ids=str)
@pytest.mark.parametrize('fuse', ['sum', 'concat'])
def test_a_modality_that_no_row_has_is_neither_weak_nor_strong(name, kw, fuse):
    "Loss and gradients are those of the batch without it, though its margin is the smallest number, and its share."
    b = toy_batch(modalities=('text', 'image', 'sound'))
    for side in ('sequences', 'items'):
        b[side]['sound'] = torch.zeros_like(b[side]['sound'])
    found, want = (
        slopes(get_loss(name, fuse=fuse, **kw, **({'memory': {}} if kw.get('gap') == 'smooth' else {})), x)
        for x in (b, alone(b, 'text', 'image'))
    )
    close(found[0], want[0])
    assert all(torch.allclose(found[1][m], want[1][m]) for m in ('text', 'image'))


@pytest.mark.parametrize('name, kw', LEADERS, ids=str)
def test_a_modality_without_a_single_negative_is_neither_weak_nor_strong(name, kw):
    "One target has a sound and no other candidate has: there is nothing to be told apart by it."
    b = toy_batch(modalities=('text', 'image', 'sound'))
    for side, kept in (('items', b['positives'][0]), ('sequences', 0)):
        b[side]['sound'] = torch.where(torch.arange(len(b[side]['sound']))[:, None] == kept, b[side]['sound'], 0.0)
    silent = {**b, **{k: b[k] | dict(sound=torch.zeros_like(b[k]['sound'])) for k in ('items', 'sequences')}}
    weights = dict.fromkeys(('text', 'image'), 1.0) | dict(sound=0.0)  # what is fused is the same
    memory = [{'memory': {}} if kw.get('gap') == 'smooth' else {} for _ in range(2)]
    found, want = (slopes(get_loss(name, fuse=weights, **kw, **more), x) for x, more in zip((b, silent), memory))
    close(found[0], want[0])
    assert all(torch.allclose(found[1][m], want[1][m]) for m in ('text', 'image'))


@pytest.mark.parametrize('name, kw', LEADERS, ids=str)
def test_contents_of_nobody_are_no_error(batch, name, kw):
    empty = {k: {m: torch.zeros_like(x) for m, x in batch[k].items()} for k in ('sequences', 'items')}
    f = get_loss(name, **kw, **({'memory': {}} if kw.get('gap') == 'smooth' else {}))
    close(f(**{**batch, **empty}), sft(**{**batch, **empty}))


def test_leads_are_told_where_probabilities_are_too_small_for_a_number():
    "At this temperature the mean probability of a positive is 0 in float64."
    b, tau = toy_batch(B=3, J=3), 1e-4
    b['items']['image'] = b['items']['image'] * 0.5 + b['items']['text']
    b |= dict(positives=torch.arange(3), exclude=torch.zeros(3, 3, dtype=torch.bool))
    b['sequences'] = {m: -v for m, v in b['items'].items()}
    sure = {m: in_log(b, m, tau) for m in ('text', 'image')}
    weak = min(sure, key=sure.get)
    lag = -torch.expm1(sure[weak] - max(sure.values()))
    assert max(sure.values()) < -1000 and lag > 0.5
    want = sft(**b, tau=tau) + lag * own_losses(**alone(b, weak), tau=tau)[weak]
    close(weak_infonce(**b, tau=tau) / want, 1.0)
    assert ogm_scales(**b, tau=tau)[weak] == 1.0 and min(ogm_scales(**b, tau=tau).values()) < 0.1


def test_a_row_is_not_left_with_a_modality_that_it_or_its_target_lacks():
    "No picture anywhere: whatever is dropped, each row has its text."
    b = toy_batch()
    for side in ('sequences', 'items'):
        b[side]['image'] = torch.zeros_like(b[side]['image'])
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        close(modality_dropout(**b, p=0.9, generator=generator), sft(**alone(b, 'text')))


def test_a_candidate_without_what_is_left_is_no_negative():
    "One sequence alone, until its text is dropped: the item without a picture is then no candidate."
    b = toy_batch(B=1, J=3)
    b |= dict(positives=torch.tensor([0]), exclude=torch.zeros(1, 3, dtype=torch.bool))
    b['items']['image'][2] = 0
    drawn = [modality_dropout(**b, p=0.5, generator=torch.Generator().manual_seed(s)) for s in range(12)]
    picture = own_losses(**alone(b, 'image'), tau=0.07)['image']
    text, both = sft(**alone(b, 'text')), sft(**b)
    found = {min(range(3), key=lambda k: abs(float(x - (picture, text, both)[k]))) for x in drawn}
    assert found == {0, 1, 2} and all(min(abs(float(x - y)) for y in (picture, text, both)) < 1e-9 for x in drawn)


@pytest.mark.parametrize('name, kw', [(n, kw) for n, kw in EVERY if n != 'ogm-ge'])
def test_gradients_against_finite_differences(batch, name, kw):
    "With what a stop-gradient hides turned off. OGM-GE changes gradients on purpose, and has a test of its own."
    off = {'wpcl': {'alpha': 0.0}, 'vlm2rec': {'alpha': 0.0}, 'weak-infonce': {'weight': 0.0}}
    kw = {**kw, **off.get(name, {})}
    f, names = get_loss(name, **kw), list(batch['sequences'])
    z = [batch[k][m].clone().requires_grad_() for k in ('sequences', 'items') for m in names]

    def value(*z):
        return f(dict(zip(names, z[:2])), dict(zip(names, z[2:])), batch['positives'], batch['exclude'])

    assert torch.autograd.gradcheck(value, z)


@pytest.mark.parametrize('name, kw', [(n, kw) for n, kw in EVERY if n != 'modality-dropout'])
def test_order_does_not_matter(batch, name, kw):
    p, q = (torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for n, seed in ((6, 1), (5, 2)))
    permuted = dict(
        sequences={m: x[p] for m, x in batch['sequences'].items()},
        items={m: x[q] for m, x in batch['items'].items()},
        positives=q.argsort()[batch['positives'][p]],
        exclude=batch['exclude'][p][:, q],
    )
    fresh = {k: {} if k == 'memory' else v for k, v in kw.items()}
    again = {k: {} if k == 'memory' else v for k, v in kw.items()}
    close(get_loss(name, **fresh)(**batch), get_loss(name, **again)(**permuted), 1e-10)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name, kw', EVERY, ids=IDS)
def test_cold_temperatures_and_half_precision(name, kw, dtype):
    "Also for rows whose candidates are all masked but their own."
    x = toy_batch(dtype=torch.float32)
    cold = {'tau_c': 0.01} if 'tau_c' in inspect.signature(LOSSES[name]).parameters else {}
    lonely = ~F.one_hot(x['positives'], 5).bool()
    for masked in (x['exclude'], torch.cat([lonely[:3], x['exclude'][3:]]), lonely):
        z = {k: {m: v.detach().to(dtype).requires_grad_() for m, v in x[k].items()} for k in ('sequences', 'items')}
        loss = get_loss(name, tau=0.01, **cold, **kw)(**{**x, **z, 'exclude': masked})
        loss.backward()
        assert loss.isfinite() and all(v.grad.isfinite().all() for k in z for v in z[k].values())


def with_gradient(f, b):
    s = {m: z.clone().requires_grad_() for m, z in b['sequences'].items()}
    loss = f(**{**b, 'sequences': s})
    loss.backward()
    return loss.item(), torch.cat([z.grad for z in s.values()])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(-30, 30))
def test_masked_candidates_have_no_influence(seed, scale):
    "Whatever their vectors are, no loss and no gradient of another vector changes."
    b = toy_batch(seed, J=6, modalities=('text', 'image', 'sound'))
    b['positives'] = b['positives'].clamp(max=4)
    b['exclude'][:, 5] = True
    b['exclude'][torch.arange(6), b['positives']] = False
    noise = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + 0.1
    gone = {**b, 'items': {m: v[:5] for m, v in b['items'].items()}, 'exclude': b['exclude'][:, :5]}
    moved = {**b, 'items': {m: torch.cat([v[:5], noise[None]]) for m, v in b['items'].items()}}
    for name, kw in [(n, {}) for n in LOSSES] + [('wpcl', {'gap': 'user'}), ('sft', {'fuse': 'concat'})]:
        (value, slope), *others = (with_gradient(get_loss(name, **kw), x) for x in (b, gone, moved))
        for other, other_slope in others:
            close(other, value, 1e-9)
            assert torch.allclose(other_slope, slope, atol=1e-9), name


def test_settings_may_come_by_partial(batch):
    half = functools.partial(wpcl, gap='user')
    assert torch.equal(get_loss(half, alpha=1.0)(**batch), wpcl(**batch, alpha=1.0, gap='user'))

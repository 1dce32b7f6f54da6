"""The model card: what it says, what it leaves out, whom it lets speak, and whether its code runs."""

import ast
import contextlib
import copy
import itertools
import json
import re
import socket
from importlib.util import find_spec

import numpy as np
import pytest
import small_encoders as small
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pair_encoders import encoders
from shell import said

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.diagnosis.report import collapse_report
from vlm2rec_lab.diagnosis.worlds import hurt, world
from vlm2rec_lab.model.loading import load_embedder
from vlm2rec_lab.model.pair import PairEmbedder
from vlm2rec_lab.model.tiny import tiny_vlm
from vlm2rec_lab.ranking.candidates import with_negatives
from vlm2rec_lab.ranking.evaluate import evaluate
from vlm2rec_lab.share import card as room
from vlm2rec_lab.share.card import Card, card_from_run, library_of, loss_tag, model_card, untried, write_card
from vlm2rec_lab.share.facts import FACTS, data_facts, hub_id, is_hub_id, keep_facts, report_facts, run_facts
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.train import encode_split, train
from vlm2rec_lab.training.history import History


@pytest.fixture(scope='module')
def run():
    "A short training and everything that was measured of it."
    studio = make_studio('balanced', seed=0, items=60, users=300, length=6)
    split = studio.split(train=80, valid=20, test=200, history=4)
    embedder = load_embedder(tiny_vlm('even'), lora=2)
    history = train(embedder, split, 'vlm2rec', steps=3, batch=8, seed=5, progress=False)
    vectors = encode_split(embedder, split, progress=False)
    titles = [split.catalogue.title(i) for i in range(60)]
    report = collapse_report(**vectors, history=history, bootstrap=100, permutations=4, titles=titles)
    figures = evaluate(**vectors, seed=0)
    given = dict(split=split, history=history, report=report, figures=figures)
    return dict(studio=studio, embedder=embedder, vectors=vectors, given=given)


@pytest.fixture(scope='module')
def folder(run, tmp_path_factory):
    "Its folder, as `vlm2rec train` leaves it."
    out = tmp_path_factory.mktemp('run')
    place, g = out / 'vlm2rec', run['given']
    run['embedder'].save_pretrained(place)
    g['history'].save(place / 'history.json')
    kept = dict(data=g['split'].name, split=g['split'].fingerprint, part='test', **g['figures'].to_dict())
    (place / 'metrics.json').write_text(json.dumps(kept))
    keep_facts(place, g['split'], run['studio'], g['report'])
    g['split'].save(out / 'split.safetensors')
    return place


@pytest.fixture(scope='module')
def card(run):
    "The card of all of it."
    return model_card(run['embedder'], **run['given'], name='A test', dataset=run['studio'])


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch):
    "No card asks anybody anything."

    def connect(self, where):
        raise AssertionError(f'asked {where}')

    monkeypatch.setattr(socket.socket, 'connect', connect)


def headings(text):
    return re.findall('^## (.*)$', re.sub('```.*?```', '', text, flags=re.S), re.M)


HEADINGS = {
    'split': ['The data'],
    'history': ['How it was trained'],
    'report': ['Is every modality alive?'],
    'figures': ['How well it ranks'],
}


@pytest.mark.parametrize('names', [n for k in range(5) for n in itertools.combinations(HEADINGS, k)], ids='+'.join)
def test_a_section_stands_where_something_is_known_and_nowhere_else(run, names):
    made = model_card(run['embedder'], **{k: run['given'][k] for k in names}, name='A test')
    there = [h for k in HEADINGS for h in HEADINGS[k] if h in headings(made.text)]
    assert there == [h for k in names for h in HEADINGS[k]]
    assert not re.search(r'\bNone\b(?!,|\])|\bnan\b|n/a|\{\}', made.text.split('## How to load')[0])
    for part in re.split('^## .*$', made.text, flags=re.M):
        assert part.strip(), 'an empty section'
    assert (made.metadata.eval_results is not None) == ('figures' in names)
    assert ModelCard(str(made)).data.to_dict() == made.metadata.to_dict()


def test_figures_are_those_of_the_run(run, card):
    m, text = run['given']['figures'], card.text
    for view, name in itertools.product(m, m['fused']):
        low, high = m.interval(view, name)
        assert f'{m[view][name]:.4f} [{low:.4f}, {high:.4f}]' in text
    assert room.plain(m.protocol, room.SAID) in text
    results = {r.metric_name: r.metric_value for r in ModelCard(str(card)).data.eval_results}
    assert results == {f'{n}, {v}': round(m[v][n], 4) for v in m for n in m[v]}


def test_verdicts_are_those_of_the_report(run, card):
    r = run['given']['report']
    for m, x in r.modalities.items():
        e = x['evidence']['drop_mean']
        row = next(line for line in card.text.splitlines() if line.startswith(f'| {m} | {x["verdict"]} |'))
        assert f'{e["value"]:.4f} [{e["low"]:.4f}, {e["high"]:.4f}]' in row.replace('-0.0000', '0.0000')
        assert room.plain(x['sentence'], room.SAID) in card.text
        assert f'{m} is **{x["verdict"]}**' in card.text
    assert room.plain(r.data['protocol'], room.SAID) in card.text


def test_training_is_that_of_the_history(run, card):
    h = run['given']['history']
    for k, v in h.settings.items():
        if k not in ('split', 'rows'):
            assert f'| {room.inline(k)} | {v} |' in card.text
    ratio = (h.frame['grad/image'] / h.frame['grad/text']).median()
    assert f'median {ratio:.2f} over the last 3 steps' in card.text
    assert 'loss:VLM2Rec' in card.metadata.tags


def test_no_row_of_the_data_is_told(run, card, folder):
    "No title, no id of an item or of a user; of the report not its examples."
    split = run['given']['split']
    examples = run['given']['report'].data['examples']
    assert examples and 'examples' not in json.dumps(card.to_dict()) + (folder / FACTS).read_text()
    told = str(card) + json.dumps(card.to_dict()) + (folder / FACTS).read_text()
    titles = {split.catalogue.title(i) for i in range(60)}
    assert not [t for t in titles if t in told]
    assert not [
        i for i in split.catalogue.ids if re.search(rf'[^\w]{re.escape(str(i))}[^\w]', told) and not str(i).isdigit()
    ]


def test_the_fingerprint_is_that_of_the_split(run, card):
    split = run['given']['split']
    assert split.fingerprint in card.text and split.fingerprint in str(card).split('---')[1]
    other = run['studio'].split(train=80, valid=20, test=200, history=3)
    assert data_facts(other)['fingerprint'] != split.fingerprint
    assert card.facts['data']['interactions'] == len(run['studio'].interactions.items)


@pytest.mark.parametrize(
    'change, gone, come',
    [
        (lambda f: f['report'].update(ceiling='reference'), 'A reference:', ''),
        (lambda f: f['report']['tried'].update(control=True), 'A control with contents', ''),
        (lambda f: f['report']['tried'].update(missing=False), '', 'What it costs when items lack'),
        (lambda f: f.update(report=None), 'A reference:', 'A collapse report:'),
        (lambda f: f['training'].update(finished=False), '', 'it was stopped after 3 of 3 steps'),
        (lambda f: f['training'].update(validated=False), '', 'A look at validation users'),
        (lambda f: f['training']['settings'].pop('seed'), 'Another seed', ''),
        (lambda f: f.update(training=None), 'Another seed', 'How it was trained is not on record'),
        (lambda f: f.update(figures=None), 'Another split', 'A ranking: there is no figure'),
        (lambda f: f['data'].update(cold=0.0), '', 'Items that nobody bought in training'),
        (lambda f: f['data'].update(new_users=0.0), '', 'Customers that training did not know'),
        (lambda f: f['data'].update(ranked='100 negatives'), '', 'among 100 negatives only'),
        (lambda f: f['data']['modalities']['text'].update(missing=0.5), 'A catalogue with gaps', ''),
    ],
)
def test_what_was_never_tried_follows_from_the_facts(card, change, gone, come):
    facts = copy.deepcopy(card.facts)
    change(facts)
    before, after = '\n'.join(untried(card.facts)), '\n'.join(untried(facts))
    assert (gone in before and gone not in after) if gone else before != after
    assert come in after and (not come or come not in before)
    assert all(s in after for s in room.ALWAYS)


def test_sampled_negatives_are_said(run):
    split = with_negatives(run['given']['split'], 20, seed=0)
    facts = model_card(run['embedder'], split, figures=run['given']['figures']).facts
    assert any('was ranked among 20 negatives only' in s for s in untried(facts))


def test_a_control_and_a_reference_are_known_of():
    shop = world(users=300, n_items=80, noise={'text': 0.2, 'image': 0.3}, seed=0)
    sides, quick = {k: shop[k] for k in ('items', 'sequences')}, dict(bootstrap=50, permutations=2)
    gone = {k: hurt(shop, 'image', 'noise', 1.0)[k] for k in ('items', 'sequences')}
    report = collapse_report(**shop, reference=sides, control=gone, **quick)
    found = report_facts(report)
    assert found['tried'] == {'control': True, 'missing': True} and found['ceiling'] == 'reference'
    other = collapse_report(**shop, missing=(), bought=np.arange(80) < 50, **quick)
    assert report_facts(other)['tried'] == {'control': False, 'missing': False} and other.data['memory']


def test_a_control_that_a_report_does_not_tell_of_is_kept(run, tmp_path):
    "Where every view is at chance, the report has nothing to say of the control that was trained."
    g = run['given']
    keep_facts(tmp_path, g['split'], None, g['report'], control=True)
    assert json.loads((tmp_path / FACTS).read_text())['report']['tried']['control'] is True


# words from elsewhere

HOSTILE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            '--- evil: yes',
            '---\nevil: yes\n---',
            'x\n---\n# pwned',
            ': {a: b}',
            '!!python/object:os.system',
            '&a *a',
            '"quoted\' both',
            '[me](javascript:alert(1))',
            '![x](http://evil.example/p.png)',
            '<script>alert(1)</script><!--',
            '**bold** _em_ `code` ~~no~~',
            '```\n# out of the block',
            'a|b||c',
            '\\',
            'ends with \\',
            '\u202e\u2028\x85\x00\ud800',
            '# heading',
            '- list\n1. list',
            'http://evil.example and www.evil.example',
            '[ref]: http://evil.example',
            '&lt;b&gt; &amp;#60;',
            '$x$ @anna',
            ' ',
            '',
        ]
    ),
)


def with_words(facts, words):
    "The facts with text from elsewhere wherever there can be any."
    spare = iter(range(99))
    w = iter(x if room.one_line(x) else f'nothing {next(spare)}' for x in words)
    f = copy.deepcopy(facts)
    f['name'] = next(w)
    f['data'] |= dict(name=next(w), split=next(w), how={f'{next(w)} {next(spare)}': next(w)})
    m = f'{next(w)} {next(spare)}'
    f['data']['modalities'] = {m: dict(kind='text', missing=0.0), 'image': dict(kind='image', missing=0.1)}
    f['training']['settings'] |= {f'{next(w)} {next(spare)}': next(w), 'loss': next(w)}
    f['training']['ratio'] = {m: dict(value=1.0, low=0.5, high=2.0, steps=3)}
    f['figures']['views'] = {m: f['figures']['views']['text'], 'fused': f['figures']['views']['fused']}
    one = dict(f['report']['modalities']['text'], sentence=next(w))
    f['report'] |= dict(modalities={m: one}, fusion=next(w))
    f['model'] = dict(f['model'], family=next(w), reading={'prompts/all/item': next(w)})
    f['model']['bases'] = [dict(name=next(w), hub='', mark='ab', modality=m)]
    f['unknown'] = [next(w)]
    return f


def shape(text):
    "What a page makes of a card: its blocks, its links and its code; only text is left out."
    found = []
    for t in MarkdownIt('commonmark').enable('table').enable('strikethrough').parse(text):
        if t.type == 'inline':
            found += [(c.type, c.attrGet('href')) for c in t.children if c.type != 'text']
        else:
            found.append((t.type, t.tag))
    return found


TAME = [f'plain words {k}' for k in range(16)]


@settings(max_examples=150, deadline=None)
@given(st.lists(HOSTILE, min_size=16, max_size=16))
def test_text_from_elsewhere_is_text(card, words):
    "The front matter reads back as it was meant, and the page has the blocks, links and code of a tame card."
    tame, wild = Card(with_words(card.facts, TAME)), Card(with_words(card.facts, words))
    text = str(wild)
    front = yaml.safe_load(text.split('\n---\n')[0].removeprefix('---\n'))
    assert front == wild.metadata.to_dict() and set(front) == set(tame.metadata.to_dict())
    assert front['model-index'][0]['name'] == room.one_line(wild.facts['name'])
    read = ModelCard(text)
    assert read.data.to_dict() == front and read.text.strip() == wild.text.strip()
    free = ('softbreak', None), ('text_special', None)
    shapes = [[x for x in shape(c.text) if x not in free] for c in (tame, wild)]
    assert shapes[0] == shapes[1]
    code = re.findall('```python\n(.*?)```', wild.text, re.S)
    assert [len(ast.parse(c).body) for c in code] == [
        len(ast.parse(c).body) for c in re.findall('```python\n(.*?)```', tame.text, re.S)
    ]
    assert text.encode() and not re.search('[\x00-\x08\x0b-\x1f\x7f\u202e\u2028]', text)


def test_an_empty_name_is_one_all_the_same(card):
    facts = copy.deepcopy(card.facts) | dict(name='')
    assert Card(facts).metadata.to_dict()['model-index'][0]['name'] == 'model'


@pytest.mark.parametrize(
    'text, is_one',
    [('a/b', True), ('Qwen/Qwen2.5-VL-3B', True), ('a', False), ('a/b/c', False), ('./b', False), ('/a/b', False),
     ('a/..', False), ('a/b.git', False), ('a/b--c', False), ('a/b\n', False), ('', False), ('~/x', False)],
)  # fmt: skip
def test_ids_of_the_hub(text, is_one):
    assert is_hub_id(text) == is_one


def test_a_folder_is_no_id_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / 'runs/sft').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id('runs/sft') == '' and hub_id('runs/other') == 'runs/other'


@pytest.mark.parametrize(
    'words, complaint',
    [
        (dict(repo='shop'), 'repo='),
        (dict(datasets=['a/b', 'my data']), "datasets='my data'"),
        (dict(licence='mit\nevil: yes'), 'licence='),
        (dict(languages='en: x'), 'languages='),
    ],
)
def test_words_of_who_publishes_are_checked(folder, words, complaint):
    with pytest.raises(DataError, match=re.escape(complaint)):
        model_card(folder, **words)
    with pytest.raises(DataError, match=re.escape(complaint)):
        card_from_run(folder, **words)


def test_words_of_who_publishes_are_told(folder):
    made = card_from_run(folder, repo='anna/my-shop', datasets='anna/sales', licence='mit', languages=['en', 'de'])
    front = ModelCard(str(made)).data.to_dict()
    assert (front['datasets'], front['license'], front['language']) == (['anna/sales'], 'mit', ['en', 'de'])
    assert front['model-index'][0]['results'][0]['dataset']['type'] == 'anna/sales'
    assert made.text.startswith('# my-shop\n') and "snapshot_download('anna/my-shop')" in made.text
    assert 'Its licence is mit' in made.text


# the base


def test_a_base_of_the_hub_is_named_and_a_folder_is_not(card, tmp_path, folder):
    assert 'base_model' not in card.metadata.to_dict() and str(tiny_vlm().parent) not in str(card)
    note = json.loads((folder / 'embedder.json').read_text())
    place = tmp_path / 'm'
    place.mkdir()
    (place / 'adapter_config.json').write_text('{"r": 8, "lora_alpha": 16}')
    on_hub = {k: v for k, v in note.items() if k != 'base_from_here'} | dict(base='Qwen/Qwen2.5-VL-3B-Instruct')
    (place / 'embedder.json').write_text(json.dumps(on_hub))
    front = model_card(place).metadata.to_dict()
    assert (front['base_model'], front['base_model_relation']) == ('Qwen/Qwen2.5-VL-3B-Instruct', 'adapter')
    (place / 'embedder.json').write_text(json.dumps(note | dict(base='/data/anna/secret/model')))
    made = model_card(place)
    assert 'base_model' not in made.metadata.to_dict()
    assert 'anna' not in str(made) and '| base | model |' in made.text


def test_a_base_without_a_mark_has_no_line_for_it(card):
    facts = copy.deepcopy(card.facts)
    facts['model']['bases'][0]['mark'] = ''
    assert 'mark of the base' in card.text and 'mark of the base' not in Card(facts).text
    assert 'SHA-256 of the frozen weights' not in Card(facts).text


# libraries, and code that runs


def test_libraries(folder, tmp_path):
    assert [library_of(f) for f in (folder, tiny_vlm())] == ['peft', 'transformers']
    assert library_of(small.sentence_folder(tmp_path / 's')) == 'sentence-transformers'
    load_embedder(tiny_vlm('even'), lora=2, adapters=['text', 'image']).save_pretrained(tmp_path / 'apart')
    assert library_of(tmp_path / 'apart') == 'peft'
    with pytest.raises(DataError, match='holds no model'):
        library_of(folder.parent)


@pytest.mark.parametrize(
    'loss, tag', [('vlm2rec', 'VLM2Rec'), ('per-modality', 'PerModality'), ('my loss: x', 'MyLossX')]
)
def test_losses_as_tags(loss, tag):
    assert loss_tag(loss) == f'loss:{tag}'


def run_code(text, where):
    "What the first block of a card leaves behind, run as it stands in the folder."
    found = {}
    with contextlib.chdir(where):
        exec(re.findall('```python\n(.*?)```', text, re.S)[0], found)
    return found


def test_the_code_of_adapters_runs(folder, run):
    found = run_code(card_from_run(folder).text, folder)
    assert {m: z.shape for m, z in found['items'].items()} == {
        m: (2, z.shape[1]) for m, z in run['vectors']['items'].items()
    }
    assert set(found['sequences']) == {'text', 'image'}


def test_the_code_for_the_hub_runs(folder, monkeypatch):
    "Where the folder comes from the Hub; here it is at hand."
    asked = []
    monkeypatch.setattr('huggingface_hub.snapshot_download', lambda repo: asked.append(repo) or str(folder))
    run_code(card_from_run(folder, repo='anna/my-shop').text, folder)
    assert asked == ['anna/my-shop']


def test_the_code_of_whole_weights_runs(tmp_path):
    load_embedder(tiny_vlm('even')).save_pretrained(tmp_path / 'whole')
    made = ModelCard.load(write_card(tmp_path / 'whole'))
    assert made.data.library_name == 'transformers'
    assert set(run_code(made.text, tmp_path / 'whole')['items']) == {'text'}


@pytest.mark.skipif(find_spec('sentence_transformers') is None, reason='sentence-transformers is not installed')
@pytest.mark.parametrize('prompts', [{}, {'item': 'Product: '}])
def test_the_code_of_sentence_transformers_runs(tmp_path, prompts):
    place = small.sentence_folder(tmp_path / 's')
    file = place / 'config_sentence_transformers.json'
    said_ = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(said_ | dict(prompts=prompts)))
    text = write_card(place, name='Sentences').read_text()
    assert ("prompt_name='item'" in text) == bool(prompts)
    assert ModelCard(text).data.tags[0] == 'sentence-transformers' and 'load_embedder' not in text
    assert run_code(text, place)['vectors'].shape == (1, 32)


def test_a_pair_of_encoders(tmp_path):
    pair = PairEmbedder(encoders(), dims=8)
    made = model_card(pair, name='Two encoders')
    assert made.metadata.library_name == 'vlm2rec_lab' and 'base of text' in made.text and 'base of image' in made.text
    assert ModelCard(str(made)).data.to_dict() == made.metadata.to_dict()
    pair.save_pretrained(tmp_path / 'pair')
    there = model_card(tmp_path / 'pair', name='Two encoders')
    assert there.facts['model'] == made.facts['model'] and library_of(tmp_path / 'pair') == 'vlm2rec_lab'


# folders of runs


def test_the_card_of_a_run_is_that_of_its_objects(folder, card):
    made = card_from_run(folder, name='A test')
    assert str(made) == str(card) and made.facts['unknown'] == []
    assert str(card_from_run(folder.parent, name='A test')) == str(made)
    assert card_from_run(folder).facts['name'] == 'vlm2rec on studio balanced, seed 0'


def copied(folder, tmp_path):
    "The run, to be broken."
    import shutil

    return shutil.copytree(folder.parent, tmp_path / 'run') / 'vlm2rec'


@pytest.mark.parametrize(
    'file, sentence, section',
    [
        ('history.json', 'holds no history.json', 'How it was trained'),
        ('metrics.json', 'holds no metrics.json', 'How well it ranks'),
        (FACTS, 'holds no verdicts', 'Is every modality alive?'),
    ],
)
def test_what_a_run_lacks_is_said(folder, tmp_path, file, sentence, section):
    place = copied(folder, tmp_path)
    (place / file).unlink()
    made = card_from_run(place)
    assert sentence in '\n'.join(made.facts['unknown']) and section not in headings(made.text)
    assert 'What the files did not tell' in headings(made.text)


def test_an_older_run_is_read_from_its_split(folder, tmp_path, run):
    place = copied(folder, tmp_path)
    (place / FACTS).unlink()
    made = card_from_run(place)
    assert (made.facts['data']['users'], made.facts['data']['items']) == (300, 60)
    assert made.facts['data']['fingerprint'] == run['given']['split'].fingerprint
    (place.parent / 'split.safetensors').unlink()
    least = card_from_run(place)
    assert least.facts['data']['fingerprint'] == made.facts['data']['fingerprint'] and '| users |' not in least.text


@pytest.mark.parametrize('file', ['history.json', 'metrics.json', FACTS, 'embedder.json', 'adapter_config.json'])
@pytest.mark.parametrize('content', ['{', '[1, 2]', '"x"', '{"a": 1}', '[' * 5000])
def test_damaged_runs_are_told_of(folder, tmp_path, file, content):
    "One sentence, or a card that does without; never anything else."
    place = copied(folder, tmp_path)
    (place / file).write_text(content)
    try:
        str(card_from_run(place))
    except DataError as e:
        assert str(place) in str(e) and '\n' not in str(e)
    else:
        assert content == '{"a": 1}'


def test_a_damaged_split(folder, tmp_path):
    place = copied(folder, tmp_path)
    (place / FACTS).unlink()
    (place.parent / 'split.safetensors').write_bytes(b'no split')
    with pytest.raises(DataError, match='split.safetensors is damaged'):
        card_from_run(place)


def test_figures_of_another_split_are_refused(folder, tmp_path):
    place = copied(folder, tmp_path)
    metrics = json.loads((place / 'metrics.json').read_text())
    (place / 'metrics.json').write_text(json.dumps(metrics | dict(split='f' * 64)))
    with pytest.raises(DataError, match='is about the split ffffffffffff'):
        card_from_run(place)


def test_of_several_embedders_one_is_named(folder, tmp_path):
    place = copied(folder, tmp_path)
    import shutil

    shutil.copytree(place, place.parent / 'sft')
    with pytest.raises(DataError, match='holds 2 embedders'):
        card_from_run(place.parent)
    assert card_from_run(place.parent, 'sft').facts['name'].startswith('sft on')
    with pytest.raises(DataError, match="did you mean 'sft'"):
        card_from_run(place.parent, 'stf')
    with pytest.raises(DataError, match='holds no embedder'):
        card_from_run(tmp_path / 'nowhere')


def test_a_card_is_written_whole_or_not_at_all(card, tmp_path, monkeypatch):
    before = card.save(tmp_path).read_text()
    assert before == str(card)
    monkeypatch.setattr('os.replace', lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space'):
        Card(card.facts | dict(name='other')).save(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ['README.md'] and (tmp_path / 'README.md').read_text() == before


def test_values(card):
    again = json.loads(json.dumps(card.to_dict()))
    assert again['metadata']['library_name'] == 'peft' and again['data'] == json.loads(json.dumps(card.facts['data']))
    assert repr(card) == "Card of 'A test', for peft, of data, training, figures and report"
    assert card._repr_markdown_() == card.text and str(card).endswith(card.text)


def test_an_embedder_with_its_card_loads(folder, tmp_path):
    "The card takes the place of the one that peft wrote, and the digests of the note do not mind."
    place = copied(folder, tmp_path)
    card_from_run(place).save(place)
    load_embedder(place).save_pretrained(place, keep=('history.json', 'metrics.json', FACTS))


def test_vlm2rec_train_keeps_what_a_card_needs(tmp_path):
    argv = ['train', '--data', 'studio:balanced', '--users', 40, '--steps', 2, '--batch', 8, '--losses', 'sft']
    status, _, err = said(*argv, '--out', tmp_path / 'run')
    assert status == 0, err
    found = run_facts(tmp_path / 'run')
    assert found['unknown'] == [] and found['training']['settings']['loss'] == 'sft'
    assert found['data']['rows']['test'] == found['figures']['users']
    made = card_from_run(tmp_path / 'run')
    assert set(headings(made.text)) >= {h for hs in HEADINGS.values() for h in hs}
    history = History.load(tmp_path / 'run/sft/history.json')
    assert found['data']['fingerprint'].startswith(history.settings['rows'])
    assert said(*argv[:-1], 'sft', '--resume', '--out', tmp_path / 'run')[0] == 0
    assert run_facts(tmp_path / 'run')['data'] == found['data']


@pytest.mark.parametrize('number', [float('nan'), float('inf'), -1, 7, True, 10**400])
def test_a_figure_that_is_none_is_refused(run, folder, tmp_path, number):
    copied = json.loads((folder / 'metrics.json').read_text())
    view, name = next((v, n) for v, found in copied['views'].items() for n in found)
    copied['views'][view][name]['value'] = number
    with pytest.raises(DataError, match='no such number'):
        model_card(run['embedder'], figures=copied)


@pytest.mark.parametrize(
    'path, number',
    [
        (('data', 'users'), -1),
        (('data', 'items'), float('nan')),
        (('data', 'rows', 'test'), True),
        (('data', 'cold'), 1.5),
        (('data', 'modalities', 'text', 'missing'), 2),
        (('report', 'modalities', 'text', 'evidence', 'ndcg', 'value'), float('nan')),
        (('report', 'modalities', 'text', 'evidence', 'drop_mean', 'low'), float('inf')),
    ],
)
def test_a_damaged_number_of_a_run_is_refused(folder, tmp_path, path, number):
    place = copied(folder, tmp_path)
    found = at = json.loads((place / FACTS).read_text())
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = number
    (place / FACTS).write_text(json.dumps(found))
    with pytest.raises(DataError, match='no such number'):
        card_from_run(place)

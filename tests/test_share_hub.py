"""A push to the Hub: what goes, what stays, what the Hub may answer. The Hub is a stand-in on loopback."""

import os
import pickle
import socket
import subprocess

import huggingface_hub.constants as hub_constants
import numpy as np
import pytest
from hub_stand_in import stand_in
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.model.loading import load_embedder
from vlm2rec_lab.model.tiny import tiny_vlm
from vlm2rec_lab.share import hub as room
from vlm2rec_lab.share.card import write_card
from vlm2rec_lab.share.hub import NotPushed, may_go, plan_push, push_to_hub
from vlm2rec_lab.shop.drawn import make_studio

NAME = 'anna/my-shop'
SECRET = 'hf_' + 'A1b2C3d4' * 4  # of nobody


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "The folder of a small embedder, with a card."
    folder = tmp_path_factory.mktemp('push') / 'sft'
    load_embedder(tiny_vlm('even'), lora=2).save_pretrained(folder)
    write_card(folder, name='A test')
    return folder


@pytest.fixture
def model(trained, tmp_path):
    "A copy of it, with much beside it that must not go."
    folder = tmp_path / 'model'
    subprocess.run(['cp', '-r', str(trained), str(folder)], check=True)
    studio = make_studio('balanced', seed=0, items=40, users=70, length=6)
    studio.split(train=50, valid=10, test=10, history=4).save(folder / 'split.safetensors')
    save_file({'w': np.zeros(3), 'optimiser/w': np.zeros(3)}, folder / 'checkpoint-sft.safetensors')
    np.savez(folder / 'vectors-sft.npz', items=np.zeros((3, 2)))
    for name in ('interactions.csv', 'users.jsonl', 'items.parquet', 'history.json', 'facts.json', '.env', 'a.png'):
        (folder / name).write_text('customer 17 bought 4')
    (folder / 'pytorch_model.bin').write_bytes(pickle.dumps({'a': 1}))
    (folder / '.git').mkdir()
    (folder / '.git/config').write_text('token = x')
    (folder / 'old').mkdir()
    (folder / 'old/config.json').write_text('{}')
    return folder


@pytest.fixture
def online(monkeypatch):
    "Only loopback can be reached; the Hub is not forbidden, and large files go by its older protocol."
    monkeypatch.setattr(hub_constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(hub_constants, 'HF_HUB_DISABLE_XET', True)
    monkeypatch.setattr('huggingface_hub.utils._http.time.sleep', lambda s: None)
    true_connect = socket.socket.connect

    def connect(self, where):
        assert where[0] in ('127.0.0.1', '::1', 'localhost'), where
        return true_connect(self, where)

    monkeypatch.setattr(socket.socket, 'connect', connect)


@pytest.fixture
def hub(online):
    "A Hub: (its address, what it keeps)."
    with stand_in() as (address, kept):
        yield address, kept


SENT = ('README.md', 'adapter_config.json', 'adapter_model.safetensors', 'embedder.json')


def test_what_arrives_is_the_model_and_nothing_else(hub, model, capsys):
    address, kept = hub
    found = push_to_hub(model, NAME, token=SECRET, message='first', endpoint=address)
    repo = kept.repos[NAME]
    assert repo['private'] is True and kept.created[0]['visibility'] == 'private'
    assert sorted(repo['files']) == sorted(SENT) == sorted(found.send)
    for name, raw in repo['files'].items():
        assert raw == (model / name).read_bytes(), name
    assert kept.messages == ['first'] and found.url.startswith(f'{address}/{NAME}/commit/')
    assert kept.tokens == {f'Bearer {SECRET}', None} or kept.tokens == {f'Bearer {SECRET}'}
    printed = ''.join(capsys.readouterr())
    assert SECRET not in printed and SECRET not in repr(found)
    assert all(name in printed for name in (*SENT, 'interactions.csv', 'split.safetensors', '.env'))
    assert not any(b'customer 17' in raw for raw in repo['files'].values())


@pytest.mark.parametrize(
    'name, why',
    [
        ('split.safetensors', 'purchases of customers'),
        ('checkpoint-sft.safetensors', 'optimiser'),
        ('vectors-sft.npz', 'arrays'),
        ('interactions.csv', 'a table'),
        ('users.jsonl', 'a table'),
        ('items.parquet', 'a table'),
        ('a.png', 'a picture'),
        ('pytorch_model.bin', 'a pickle'),
        ('history.json', 'the history'),
        ('.env', 'hidden'),
        ('old/config.json', 'no file that an embedder consists of'),
    ],
)
def test_what_stays_says_why(model, name, why):
    plan = plan_push(model, NAME)
    assert plan.private
    assert why in plan.stays[name] and name not in plan.send


@pytest.mark.parametrize(
    'name, put, why',
    [
        ('tokenizer.json', lambda f: f.write_bytes(pickle.dumps([1])), 'a pickle'),
        ('model.safetensors', lambda f: f.write_bytes(b'PK\x03\x04' + b'0' * 99), 'an archive'),
        ('model.safetensors', lambda f: f.write_bytes(b'no weights'), 'no whole file of safetensors'),
        ('heads.safetensors', lambda f: save_file({'train/users': np.arange(4)}, f), 'train/users'),
        ('heads.safetensors', lambda f: save_file({'w': np.zeros(2)}, f, {'run': '{}'}), 'a checkpoint'),
        ('tokenizer_config.json', lambda f: f.write_text(f'{{"token": "{SECRET}"}}'), 'a token'),
        ('config.json', lambda f: f.write_text(f'{{"token": "hf_oauth_{SECRET[3:]}"}}'), 'a token'),
        ('vocab.json', lambda f: f.write_text(f'{{"_{SECRET}": 1}}'), 'a token'),
        ('heads.safetensors', lambda f: save_file({'w': np.zeros(2)}, f, {'by': SECRET}), 'a token'),
        ('LICENSE.csv', lambda f: f.write_text('customer 17 bought 4'), 'a table'),
        ('vocab.txt', lambda f: f.symlink_to('/etc/hostname'), 'a link'),
        ('merges.txt', os.mkfifo, 'no ordinary file'),
    ],
)
def test_right_names_with_wrong_contents(model, name, put, why):
    put(model / name)
    plan = plan_push(model, NAME)
    assert why in plan.stays[name] and name not in plan.send and SECRET not in repr(plan)


def test_folders_that_are_links_are_not_followed(model, tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere/config.json').write_text('{}')
    (model / 'additional_chat_templates').symlink_to(tmp_path / 'elsewhere')
    plan = plan_push(model, NAME)
    assert 'a link' in plan.stays['additional_chat_templates'] and sorted(plan.send) == sorted(SENT)


def test_adapters_of_modalities_go(tmp_path):
    "Their folders are those that the note names."
    load_embedder(tiny_vlm('even'), lora=2, adapters=['text', 'image']).save_pretrained(tmp_path / 'apart')
    plan = plan_push(tmp_path / 'apart', NAME)
    assert {f'{m}/adapter_model.safetensors' for m in ('text', 'image')} <= set(plan.send)
    assert 'adapter_model.safetensors' not in plan.send


@given(st.text(st.characters(codec='utf-8', exclude_characters='/\0'), min_size=1, max_size=20))
def test_no_foreign_name_goes(name):
    "Whatever a file is called: it goes by a name of the list, or not at all."
    hits = [one for one in room.MODEL + room.TOP if room.fnmatch.fnmatchcase(name, one)]
    assert may_go(name) == (bool(hits) and not name.startswith('.'))
    assert not may_go(f'anywhere/{name}')


@pytest.mark.parametrize(
    'repo',
    ['my-shop', 'a/b/c', '../up', '/anna/x', 'anna/', 'an na/x', 'anna/x.git', 'anna/x\ny', 'https://hf.co/a/b', ''],
)
def test_names_of_repositories(model, repo):
    with pytest.raises(DataError, match='give OWNER/NAME'):
        plan_push(model, repo)


def test_offline_nothing_is_asked(model, capsys, monkeypatch):
    "As the tests are run: HF_HUB_OFFLINE is set."
    with stand_in() as (address, kept):
        monkeypatch.setattr(hub_constants, 'HF_HUB_OFFLINE', True)
        found = push_to_hub(model, NAME, token=SECRET, endpoint=address)
    assert not kept.asked and not found.url
    assert 'HF_HUB_OFFLINE forbids the Hub' in capsys.readouterr().out


def test_a_dry_run_asks_nobody(hub, model, capsys):
    address, kept = hub
    found = push_to_hub(model, NAME, token=SECRET, dry_run=True, endpoint=address)
    assert not kept.asked and not found.url and sorted(found.send) == sorted(SENT)
    assert capsys.readouterr().out.startswith(f'to {NAME} (private): 4 files')


def test_without_a_token_nothing_is_asked(hub, model, monkeypatch):
    address, kept = hub
    monkeypatch.setattr('huggingface_hub.get_token', lambda: None)
    with pytest.raises(NotPushed, match='no token here: say `hf auth login`'):
        push_to_hub(model, NAME, endpoint=address)
    assert not kept.asked


def test_the_token_of_the_store_is_used(hub, model, monkeypatch, capsys):
    address, kept = hub
    monkeypatch.setenv('HF_TOKEN', SECRET)
    push_to_hub(model, NAME, endpoint=address)
    assert f'Bearer {SECRET}' in kept.tokens and SECRET not in ''.join(capsys.readouterr())


def test_public_has_to_be_asked_for(hub, model, capsys):
    address, kept = hub
    push_to_hub(model, NAME, private=False, token=SECRET, endpoint=address)
    assert kept.repos[NAME]['private'] is False and '(PUBLIC)' in capsys.readouterr().out


def test_again_into_ones_own_private_repository(hub, model):
    address, kept = hub
    push_to_hub(model, NAME, token=SECRET, message='one', endpoint=address)
    (model / 'README.md').write_text('---\nlicense: mit\n---\n\n# another\n')
    push_to_hub(model, NAME, token=SECRET, message='two', endpoint=address)
    assert kept.messages == ['one', 'two'] and kept.repos[NAME]['files']['README.md'].endswith(b'# another\n')


def test_a_public_repository_that_is_there_gets_nothing(hub, model):
    "A repository keeps who may see it, whatever is asked for."
    address, kept = hub
    kept.repos[NAME] = dict(private=False, files={})
    with pytest.raises(NotPushed, match='is there already, and everybody sees it'):
        push_to_hub(model, NAME, token=SECRET, endpoint=address)
    assert not kept.repos[NAME]['files'] and not kept.blobs


@pytest.mark.parametrize(
    'part',
    ['repos/create', '/api/models/anna/my-shop', 'validate-yaml', 'preupload', 'objects/batch', '/lfs/', '/commit/'],
)
@pytest.mark.parametrize(
    'status, remedy',
    [
        (401, 'hf auth login'),
        (403, 'give it write access to anna'),
        (500, 'push again later'),
        (429, 'wait some minutes'),
        ('drop', 'the connection broke'),
    ],
)
def test_a_hub_that_fails_is_told_in_one_sentence(hub, model, part, status, remedy):
    address, kept = hub
    kept.answers[part] = status
    with pytest.raises(NotPushed) as e:
        push_to_hub(model, NAME, token=SECRET, endpoint=address, say=len)
    text = str(e.value)
    assert text.startswith(f'{NAME} was not pushed: ') and remedy in text, text
    assert '\n' not in text and SECRET not in text and e.value.__cause__ is None
    assert not kept.repos.get(NAME, dict(files={}))['files']


@pytest.mark.parametrize(
    'status, remedy', [(409, 'push again'), (404, 'write access'), (418, 'mend it'), (413, 'too large')]
)
def test_other_refusals_of_a_commit(hub, model, status, remedy):
    address, kept = hub
    kept.answers['/commit/'] = status
    with pytest.raises(NotPushed, match=remedy):
        push_to_hub(model, NAME, token=SECRET, endpoint=address, say=len)


def test_a_hub_that_is_not_there(online, model):
    with pytest.raises(NotPushed, match='the connection broke'):
        push_to_hub(model, NAME, token=SECRET, endpoint='http://127.0.0.1:9', say=len)


def test_a_message_is_wanted(model):
    with pytest.raises(DataError, match='message= is empty'):
        push_to_hub(model, NAME, message=' ')


def test_a_run_folder_is_no_model(model):
    (model / 'README.md').unlink()
    with pytest.raises(DataError, match='holds no model'):
        plan_push(model.parent, NAME)
    assert any('no card yet' in n for n in plan_push(model, NAME).notes)


def test_the_folder_of_a_base_is_told(model):
    said_ = ' '.join(plan_push(model, NAME).notes)
    assert 'embedder.json and adapter_config.json of it name a folder of this machine' in said_ and 'base=' in said_

"""Where a command reads and writes is looked at before it opens its data: one line names the option and the remedy."""

import numpy as np
import pytest

from vlm2rec_lab.cli import main

FOLDERS = {  # command: what it needs beside --out
    'train': (),
    'graph': (),
    'prompts': (),
    'downstream': (),
    'federated': (),
    'study': (),
    'calibrate': (),
    'fetch': ('--hosts', 'example.com'),
}


@pytest.fixture
def shop(tmp_path, monkeypatch):
    "A shop of 12 items in the working directory."
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'shop').mkdir()
    items = ''.join(f'i{k},thing {k}\n' for k in range(12))
    (tmp_path / 'shop' / 'items.csv').write_text('item_id,title\n' + items)
    rng = np.random.default_rng(0)
    rows = [f'u{u},i{i},{t}\n' for u in range(30) for t, i in enumerate(rng.permutation(12)[:8])]
    (tmp_path / 'shop' / 'interactions.csv').write_text('user_id,item_id,timestamp\n' + ''.join(rows))
    return tmp_path


def refused(capsys, *argv):
    "The one line by which a command refuses."
    assert main(list(argv)) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, said
    return said[0]


@pytest.mark.parametrize('out', ['notes.py', 'notes.py/further/down'])
@pytest.mark.parametrize('command', FOLDERS)
def test_a_file_is_no_folder_to_write(shop, capsys, monkeypatch, command, out):
    (shop / 'notes.py').write_text('kept')
    monkeypatch.setattr('vlm2rec_lab.commands.open.open_dataset', lambda *a, **k: pytest.fail('the data were opened'))
    data = () if command in ('study', 'calibrate') else ('--data', 'shop')
    said = refused(capsys, command, *data, *FOLDERS[command], '--out', out)
    assert said == f'vlm2rec {command}: --out {out}: notes.py is a file; name a folder that is there or can be made'
    assert (shop / 'notes.py').read_text() == 'kept'


@pytest.mark.parametrize('prompts, why', [('nope.json', 'No such file'), ('shop', 'Is a directory')])
def test_prompts_that_are_no_file(shop, capsys, prompts, why):
    said = refused(capsys, 'train', '--data', 'shop', '--prompts', prompts)
    assert said.startswith(f'vlm2rec train: --prompts {prompts}: the file cannot be read ({why}')
    assert said.endswith('name a .json file that is there')


def test_a_command_without_studio_says_so(shop, capsys):
    said = refused(capsys, 'graph', '--data', 'studio:text-easy')
    assert said == (
        'vlm2rec graph: --data studio:text-easy: this command takes no studio; give a folder, or READER:FILE'
    )
    assert "no reader 'studo'" in (said := refused(capsys, 'graph', '--data', 'studo:text-easy'))
    assert 'studio' not in said.replace('studo', '')
    assert "did you mean 'studio'?" in refused(capsys, 'train', '--data', 'studo:text-easy')


@pytest.mark.parametrize('model', ['BPR-MF', 'VBPR'])
def test_vectors_of_another_shop_are_refused_whatever_reads_them(shop, capsys, model):
    np.savez('theirs.npz', **{'items/text': np.ones((200, 4)) + np.arange(4)})
    main(['graph', '--data', 'shop', '--encoders', 'theirs.npz', '--models', model, '--epochs', '1', '--seeds', '1'])
    said = capsys.readouterr().err
    assert "the array 'items/text' has 200 rows, and there are 12 items" in said
    assert not (shop / 'runs').exists()

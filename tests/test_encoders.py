"""Ordinary encoders: every family against its model's own methods, in value and gradient; wrong files; notes obeyed."""

import json
import random
import warnings

import pytest
import small_encoders as small
import torch
import transformers
from PIL import Image

from vlm2rec_lab.base.errors import DataError, DataWarning, warned
from vlm2rec_lab.model.encoders import load_encoder
from vlm2rec_lab.model.towers import folder_of

transformers.utils.logging.disable_progress_bar()
TEXT, IMAGE, DUAL = small.text_models(), small.image_models(), small.dual_models()


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Makes the checkpoint of a name once: its folder."
    root = tmp_path_factory.mktemp('encoders')

    def made(name):
        folder = root / name
        if not folder.exists():
            parts = (TEXT[name](), small.tokenizer()) if name in TEXT else (IMAGE | DUAL)[name]()
            fixed = dict(padding_side='left') if name == 'siglip2' else {}
            more = [small.tokenizer(**fixed)] if name in DUAL else []
            small.save(folder, *parts, *more)
        return folder

    return made


def texts(n=30, most=12):
    "Texts of many lengths."
    draw = random.Random(0)
    return [' '.join(draw.choices(small.WORDS, k=1 + k * 5 % most)) for k in range(n)]


def picture(k):
    "A picture that is unlike the others, in shape too."
    draw = random.Random(k)
    out = Image.new('RGB', (40 + 3 * (k % 5), 40 + 2 * (k % 7)), tuple(draw.choices(range(256), k=3)))
    out.paste(tuple(draw.choices(range(256), k=3)), (0, 0, 20, 10 + k))
    return out


def pictures(n=9):
    "Functions that open pictures."
    return [lambda k=k: picture(k) for k in range(n)]


def features(model, kind, inputs):
    "A dual encoder's own method."
    out = getattr(model, f'get_{kind}_features')(**inputs)
    return getattr(out, 'pooler_output', out)


def mean_alone(model, tokens, text):
    "The mean of a text's tokens, without any padding."
    return model(**tokens(text, return_tensors='pt')).last_hidden_state.mean(1)


# ---- values


@pytest.mark.parametrize('name', TEXT)
def test_a_text_model_gives_the_mean_of_its_tokens(home, name):
    decoder = name in ('gpt2', 'qwen3')  # of these it has to be asked for
    encoder = load_encoder(home(name), 'text', pooling='mean' if decoder else None, device='cpu')
    model, tokens = type(encoder.module.model).from_pretrained(home(name)).eval(), small.tokenizer()
    with torch.no_grad():
        want = torch.cat([mean_alone(model, tokens, t) for t in texts()])
    z = encoder.vectors(texts())
    assert (encoder.kind, encoder.size, z.dtype) == ('text', 32, torch.float32)
    torch.testing.assert_close(z, want, atol=1e-5, rtol=0)
    assert (z[0] - z[1]).abs().max() > 1e-3


def test_a_decoder_by_its_last_token(home):
    encoder = load_encoder(home('qwen3'), 'text', pooling='lasttoken', device='cpu')
    model, tokens = transformers.AutoModel.from_pretrained(home('qwen3')).eval(), small.tokenizer()
    with torch.no_grad():
        want = [model(**tokens(t, return_tensors='pt')).last_hidden_state[:, -1] for t in texts()]
    torch.testing.assert_close(encoder.vectors(texts()), torch.cat(want), atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', IMAGE)
def test_an_image_model_gives_its_pooled_output(home, name):
    encoder = load_encoder(home(name), 'image', device='cpu')
    model, processor = transformers.AutoModel.from_pretrained(home(name)).eval(), IMAGE[name]()[1]
    with torch.no_grad():
        want = [model(**processor(images=[picture(k)], return_tensors='pt')).pooler_output for k in range(9)]
    z = encoder.vectors(pictures(), batch=4)
    torch.testing.assert_close(z, torch.cat(want).flatten(1), atol=1e-5, rtol=0)
    assert (z[0] - z[1]).abs().max() > 1e-3


@pytest.mark.parametrize('name', DUAL)
def test_both_sides_of_a_dual_encoder(home, name):
    model, processor = transformers.AutoModel.from_pretrained(home(name)).eval(), DUAL[name]()[1]
    tokens = transformers.AutoTokenizer.from_pretrained(home(name))
    how = dict(padding='max_length', max_length=16, truncation=True) if name != 'clip' else {}
    with torch.no_grad():
        words = [features(model, 'text', tokens(t, return_tensors='pt', **how)) for t in texts()]
        looks = [features(model, 'image', processor(images=[picture(k)], return_tensors='pt')) for k in range(9)]
    for kind, contents, want in (('text', texts(), words), ('image', pictures(), looks)):
        encoder = load_encoder(home(name), kind, device='cpu')
        torch.testing.assert_close(encoder.vectors(contents, batch=4), torch.cat(want), atol=1e-5, rtol=0)
        assert encoder.size == want[0].shape[1]
        other = sum(p.numel() for p in encoder.module.parameters()) / sum(p.numel() for p in model.parameters())
        assert other < 0.7


# ---- the batch has no say, and training sees the same vectors


@pytest.mark.parametrize('name', [*TEXT, *DUAL])
def test_a_text_has_its_vector_in_any_batch(home, name):
    encoder, found = load_encoder(home(name), 'text', device='cpu'), texts()
    z = encoder.vectors(found)
    torch.testing.assert_close(encoder.vectors(found, batch=3), z, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.vectors(found[::-1]).flip(0), z, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.forward(encoder.prepare(found)), z, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.forward(encoder.prepare(found[:1])), z[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', [*IMAGE, *DUAL])
def test_a_picture_has_its_vector_in_any_batch(home, name):
    encoder = load_encoder(home(name), 'image', device='cpu')
    z = encoder.vectors(pictures())
    torch.testing.assert_close(encoder.vectors(pictures(), batch=2), z, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.forward(encoder.prepare(pictures())), z, atol=1e-5, rtol=0)


@pytest.mark.parametrize('name, kind', [(n, 'text') for n in (*TEXT, *DUAL)] + [(n, 'image') for n in (*IMAGE, *DUAL)])
def test_the_gradient_is_that_of_the_model_itself(home, name, kind):
    pooling = 'mean' if name in ('gpt2', 'qwen3') else None
    encoder = load_encoder(home(name), kind, pooling=pooling, device='cpu')
    assert not any(p.requires_grad for p in encoder.module.parameters())
    contents = texts(6) if kind == 'text' else pictures(3)
    encoder.module.requires_grad_(True)
    encoder.forward(encoder.prepare(contents)).square().sum().backward()
    model = type(encoder.module.model).from_pretrained(home(name)).eval()
    if name in TEXT:
        want = torch.cat([mean_alone(model, small.tokenizer(), t) for t in contents])
    elif name in IMAGE:
        want = model(**encoder.prepare(contents)).pooler_output
    else:
        want = features(model, kind, encoder.prepare(contents))
    want.square().sum().backward()
    there = dict(model.named_parameters())
    seen = 0
    for n, p in encoder.module.model.named_parameters():
        if there[n].grad is not None:
            torch.testing.assert_close(p.grad, there[n].grad, atol=1e-4, rtol=1e-3)
            seen += p.grad.abs().sum().item() > 0
    assert seen > 10


def test_modes_of_training_are_as_they_were(home):
    encoder = load_encoder(home('resnet'), 'image', device='cpu')
    assert not encoder.module.training
    encoder.module.model.embedder.train()
    before = {n: m.training for n, m in encoder.module.named_modules()}
    mark = encoder.mark
    encoder.vectors(pictures())
    assert {n: m.training for n, m in encoder.module.named_modules()} == before
    assert encoder.mark == mark  # statistics of batches included


# ---- texts that are cut, contents that are wrong


@pytest.mark.parametrize(
    'name, limit', [('bert', 24), ('mpnet', 24), ('xlm-roberta', 24), ('clip', 16), ('siglip', 16)]
)
def test_long_texts_are_cut_at_the_context_and_counted(home, name, limit):
    encoder = load_encoder(home(name), 'text', device='cpu')
    long, short = ' '.join(['mug'] * 60), 'a red mug'
    (said,) = warned(lambda: encoder.vectors([short, long, long], names=['x', "the 'text' of item 'y'", 'z']))
    assert f"2 of 3 texts are cut to {limit} tokens" in said and "the 'text' of item 'y', 62 tokens" in said
    fits = ' '.join(['mug'] * (limit - 2))
    assert warned(lambda: encoder.vectors([fits])) == []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DataWarning)
        torch.testing.assert_close(encoder.vectors([long]), encoder.vectors([fits]))  # its closing token stays


def test_the_warning_points_at_the_line_that_asked(home):
    encoder = load_encoder(home('bert'), 'text', device='cpu')
    with pytest.warns(DataWarning) as caught:
        encoder.vectors([' '.join(['mug'] * 60)])
    assert caught[0].filename == __file__


def test_names_of_special_tokens_in_a_text_are_words(home):
    encoder = load_encoder(home('clip'), 'text', device='cpu')
    assert encoder.prepare(['a </s> mug'])['input_ids'][0].tolist().count(4) == 1
    z = encoder.vectors(['a </s> mug', 'a </s> lamp'])
    assert (z[0] - z[1]).abs().max() > 1e-4


def test_contents_that_cannot_be_read_are_named(home, tmp_path):
    encoder = load_encoder(home('bert'), 'text', device='cpu')
    with pytest.raises(DataError, match="the 'text' of item 'b' is a NoneType"):
        encoder.vectors(['a', None], names=["the 'text' of item 'a'", "the 'text' of item 'b'"])
    broken = tmp_path / 'x.jpg'
    broken.write_bytes(b'no picture')
    looks = load_encoder(home('vit'), 'image', device='cpu')
    with pytest.raises(DataError, match='image 1 cannot be read'):
        looks.vectors([picture(0), broken])
    with pytest.raises(DataError, match='1 names for 2 contents'):
        looks.vectors([picture(0), picture(1)], names=['a'])
    assert looks.vectors([]).shape == (0, 32) and encoder.vectors([]).shape == (0, 32)


# ---- marks


def test_a_mark_is_of_weights_and_settings(home, tmp_path):
    encoder = load_encoder(home('bert'), 'text', device='cpu')
    assert len(encoder.mark) == 64 and encoder.mark == load_encoder(home('bert'), 'text', device='cpu').mark
    others = [
        load_encoder(home('bert'), 'text', pooling='cls', device='cpu'),
        load_encoder(home('bert'), 'text', prompt='find ', device='cpu'),
        load_encoder(home('xlm-roberta'), 'text', device='cpu'),
    ]
    marks = {encoder.mark, *(e.mark for e in others)}
    before = encoder.mark
    encoder.vectors(texts())
    assert encoder.mark == before and len(marks) == 4
    with torch.no_grad():
        next(encoder.module.parameters()).view(-1)[0] += 1
    assert encoder.mark != before


def test_a_mark_is_of_how_pictures_are_prepared(home, tmp_path):
    folder = small.save(tmp_path / 'vit', *IMAGE['vit']())
    one = load_encoder(folder, 'image', device='cpu').mark
    file = folder / 'preprocessor_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | {'image_mean': [0.1, 0.2, 0.3]}))
    assert load_encoder(folder, 'image', device='cpu').mark != one


# ---- wrong files


def copy_of(home, name, tmp_path):
    "A copy that may be damaged."
    import shutil

    return shutil.copytree(home(name), tmp_path / name)


def test_weights_of_another_model_are_refused(home, tmp_path):
    folder = copy_of(home, 'bert', tmp_path)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | {'num_hidden_layers': 3}))
    with pytest.raises(DataError, match=r'the weights lack .*layer\.2.* and \d+ more'):
        load_encoder(folder, 'text')
    (folder / 'config.json').write_text(json.dumps(config | {'intermediate_size': 64}))
    with pytest.raises(DataError, match='the weights'):
        load_encoder(folder, 'text')


@pytest.mark.parametrize('file', ['config.json', 'model.safetensors', 'tokenizer.json'])
def test_a_damaged_file_is_named(home, tmp_path, file):
    folder = copy_of(home, 'bert', tmp_path)
    (folder / file).write_bytes((folder / file).read_bytes()[:40])
    with pytest.raises(DataError, match=f'{folder}.*cannot be read.*copy or download it again'):
        load_encoder(folder, 'text')


def test_pickles_are_not_read(home, tmp_path):
    folder = copy_of(home, 'bert', tmp_path)
    (folder / 'model.safetensors').unlink()
    torch.save(TEXT['bert']().state_dict(), folder / 'pytorch_model.bin')
    with pytest.raises(DataError, match='the weights cannot be read'):
        load_encoder(folder, 'text')


def test_an_index_that_leads_elsewhere_is_refused(home, tmp_path):
    folder = copy_of(home, 'bert', tmp_path)
    small.note(folder, 'model.safetensors.index.json', {'weight_map': {'x': '../model.safetensors'}})
    with pytest.raises(DataError, match='must lie in the same folder'):
        load_encoder(folder, 'text')


def test_pictures_without_their_settings_are_refused(home, tmp_path):
    folder = copy_of(home, 'vit', tmp_path)
    (folder / 'preprocessor_config.json').unlink()
    with pytest.raises(DataError, match='preprocessor_config.json cannot be read'):
        load_encoder(folder, 'image')


def test_the_wrong_kind_of_model_is_refused(home, checkpoint):
    with pytest.raises(DataError, match="ask for kind='image'"):
        load_encoder(home('resnet'), 'text')
    with pytest.raises(DataError, match="ask for kind='text'"):
        load_encoder(home('bert'), 'image')
    for kind in ('text', 'image'):
        with pytest.raises(DataError, match='vision-language model'):
            load_encoder(checkpoint, kind)
    with pytest.raises(DataError, match="no kind of content 'pictures'"):
        load_encoder(home('bert'), 'pictures')


def test_a_tokenizer_of_another_model_is_refused(home, tmp_path):
    folder = copy_of(home, 'bert', tmp_path)
    words = small.tokenizer()
    words.add_tokens([f'more{k}' for k in range(9)])
    words.save_pretrained(folder)
    with pytest.raises(DataError, match='it is of another model'):
        load_encoder(folder, 'text')


def test_arguments_without_effect_are_refused(home):
    for name, kind, given in (
        ('bert', 'text', dict(prompt_name='query')),
        ('vit', 'image', dict(prompt='a ')),
        ('clip', 'text', dict(pooling='mean')),
        ('clip', 'image', dict(prompt='a ')),
    ):
        with pytest.raises(DataError, match=f'{next(iter(given))}=.* has no effect'):
            load_encoder(home(name), kind, **given)


def test_a_model_from_the_cache_of_the_hub(home, tmp_path, monkeypatch):
    "A hub id is looked up in the cache where there is no network."
    import shutil

    import huggingface_hub

    place = tmp_path / 'models--someone--bert'
    shutil.copytree(home('bert'), place / 'snapshots' / 'abc')
    (place / 'refs').mkdir()
    (place / 'refs' / 'main').write_text('abc')
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, 'snapshot_download', lambda *a, **k: real(*a, **k, cache_dir=tmp_path, local_files_only=True)
    )
    encoder = load_encoder('someone/bert', 'text', device='cpu')
    assert encoder.name == 'someone/bert'
    assert torch.equal(encoder.vectors(['a mug']), load_encoder(home('bert'), 'text', device='cpu').vectors(['a mug']))
    with pytest.raises(OSError):
        folder_of('someone/else')

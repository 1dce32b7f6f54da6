"""The family matrix: tiny random checkpoints of real classes, each measured against its own model, with pictures."""

import random
import shutil

import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import FAST, OTHERS, TOKENIZER, write

from vlm2rec_lab.base.errors import DataError, DataWarning
from vlm2rec_lab.base.ragged import PAD
from vlm2rec_lab.diagnose import collapse_report
from vlm2rec_lab.model.bank import make_bank, vision_key
from vlm2rec_lab.model.check import _tried
from vlm2rec_lab.model.compiled import compiled_layers
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.encode import forward
from vlm2rec_lab.model.families import FAMILIES, empty_model, load_model, lora_targets
from vlm2rec_lab.model.family import language_model, own_forward, sight
from vlm2rec_lab.model.fast import Deep
from vlm2rec_lab.model.general import whole_of
from vlm2rec_lab.model.passes import prefix_pairs, prefix_vectors
from vlm2rec_lab.model.pieces import Prompts, assemble
from vlm2rec_lab.model.prompts import show_prompts
from vlm2rec_lab.model.templates import split_tokens
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.train import train
from vlm2rec_lab.training.shard import _layers, _seeing

ALL = tuple(FAST)
quiet = pytest.mark.filterwarnings('ignore::UserWarning')


@pytest.fixture(scope='session')
def folders(tmp_path_factory):
    "{family: folder of a checkpoint}, made on first use."
    transformers.utils.logging.disable_progress_bar()
    place, made = tmp_path_factory.mktemp('families'), {}

    def folder(name):
        if name not in made:
            made[name] = write((FAST | OTHERS)[name], place / name)
        return made[name]

    return folder


@pytest.fixture(scope='module')
def studio():
    return make_studio('balanced', seed=0, items=24, users=40, length=6)


@pytest.fixture(scope='module')
def history(studio):
    "Three histories, of 4, 2 and 3 items."
    rows = studio.split(train=20, valid=10, test=10, history=4).test.history[:3].copy()
    rows[1, 2:], rows[2, 3:] = PAD, PAD
    return rows


@pytest.fixture(scope='module')
def embedders(folders):
    "One embedder for each family and fusion, with adapters that do something."
    made = {}

    def embedder(name, fusion='internal'):
        if (name, fusion) not in made:
            e = VLMEmbedder.from_pretrained(folders(name), lora=4, fusion=fusion, device='cpu')
            for k, (_, p) in enumerate(e.adapter_parameters()):
                torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(k))
            made[name, fusion] = e
        return made[name, fusion]

    return embedder


def plain(embedder, catalogue, bank, plan, shown):
    "Vectors of planned prompts by the model's own forward, row by row, from pixels."
    ids, _, feature, last = assemble(bank.views['joint'], plan)
    family, processor, out = embedder.family, embedder.image_processor, []
    for r, items in enumerate(shown):
        pictures = [catalogue.image('image', int(i)) for i in items]
        inputs = family.prepared(processor, pictures, family.settings(processor, embedder.max_pixels))
        row = slice(r, r + 1), slice(0, int(last[r]) + 1)
        out.append(own_forward(embedder.core, inputs, ids[row], feature[row] >= 0)[0, -1])
    return torch.stack(out)


def slopes(embedder, z):
    "Gradient of a fixed weighted sum of vectors, by every adapter matrix."
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad((z * weights).sum(), [p for _, p in embedder.adapter_parameters()])


def apart(x, y):
    "Largest difference, as a share of the largest value."
    return ((x - y).abs().max() / x.abs().max().clamp(min=1e-12)).item()


def gaps(embedder, slow, fast):
    "How far two ways to the same vectors are apart, in value and in gradient."
    return apart(slow, fast), max(map(apart, slopes(embedder, slow), slopes(embedder, fast)))


@quiet
def own_and_fast(embedder, studio, history):
    "The vectors of histories of texts and pictures, by the model's own forward and by the fast path."
    bank = embedder.bank(studio.catalogue, progress=False)
    plan = bank.sequence_plan(history, 'joint')
    shown = [[i for i in row if i != PAD] for row in history]
    return plain(embedder, studio.catalogue, bank, plan, shown), forward(embedder, bank, 'joint', plan)


@pytest.mark.parametrize('name', ALL)
def test_the_fast_path_is_the_plain_model(name, embedders, studio, history):
    e = embedders(name)
    assert e.family is FAMILIES[name] and e.family.tree
    value, gradient = gaps(e, *own_and_fast(e, studio, history))
    assert value < 1e-5 and gradient < 1e-4, (value, gradient)


@pytest.mark.parametrize('name', ALL)
def test_a_tree_of_prefixes_is_separate_passes(name, embedders, studio, history):
    e = embedders(name)
    bank = e.bank(studio.catalogue, progress=False)
    rows, lengths = prefix_pairs(history)
    alone = np.where(np.arange(history.shape[1]) < lengths[:, None], history[rows], PAD)
    one, many = e.sequence_vectors(bank, alone)['joint'], prefix_vectors(e, bank, history)['joint']
    value, gradient = gaps(e, one, many)
    assert value < 1e-5 and gradient < 1e-4, (value, gradient)


@quiet
@pytest.mark.parametrize('name', ALL)
def test_training_saving_and_the_report(name, folders, studio, tmp_path):
    e = VLMEmbedder.from_pretrained(folders(name), lora=4, device='cpu')
    split = studio.split(train=20, valid=10, test=10, history=3)
    before = [p.detach().clone() for _, p in e.adapter_parameters()]
    told = train(e, split, 'sft', steps=5, batch=6, progress=False, positions='all')
    assert np.isfinite(told.frame['loss']).all() and len(told.frame) >= 5
    assert sum(not torch.equal(a, p) for a, (_, p) in zip(before, e.adapter_parameters())) > len(before) / 2
    assert all('lora_' in n for n, _ in e.adapter_parameters())
    again = VLMEmbedder.from_pretrained(e.save_pretrained(tmp_path / 'mine'), device='cpu')
    one, two = (x.encode_items(studio.catalogue, progress=False) for x in (e, again))
    assert all(torch.equal(one[m], two[m]) for m in ('text', 'image'))
    report = collapse_report(again, split)
    assert set(report.to_dict()['modalities']) == {'text', 'image'}


@pytest.mark.parametrize('name', ['qwen3_vl', 'gemma3', 'smolvlm'])
def test_rows_are_the_same_in_memory_on_disk_and_live(name, embedders, studio, history, tmp_path):
    e = embedders(name)
    plan = e.bank(studio.catalogue, progress=False).sequence_plan(history, 'joint')
    banks = [make_bank(e, studio.catalogue, False, vision) for vision in (None, tmp_path, 'live')]
    assert tuple(banks[0].features.shape[1:]) == (e.family.width(e.core),)
    one, *others = (forward(e, bank, 'joint', plan).detach() for bank in banks)
    for z in others:
        assert apart(one, z) < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == [vision_key(e)[:16]]


# ---------------------------------------------------------------- mutations: each must show


WRONG = {  # family -> (method, what is done in its place): the plainest family's way
    'qwen3_vl': ('deeper', lambda self, seen, rows, hidden: {}),
    'gemma3': ('masks', lambda self, config, mask, position, seen: None),
    **dict.fromkeys(
        ('qwen2_vl', 'qwen2_5_vl'),
        ('positions', lambda self, position, mask: torch.arange(position.shape[2]).expand(3, 1, -1)),
    ),
}


@pytest.mark.parametrize('name', WRONG)
def test_a_family_that_is_read_in_another_way_is_noticed(name, embedders, studio, history, monkeypatch):
    e = embedders(name)
    method, to = WRONG[name]
    monkeypatch.setattr(type(e.family), method, to)
    slow, fast = own_and_fast(e, studio, history)
    assert apart(slow, fast) > 1e-2


@quiet
def test_a_fast_path_that_is_wrong_is_left_with_a_warning(folders, studio, history, monkeypatch):
    right = VLMEmbedder.from_pretrained(folders('qwen3_vl'), fusion='internal', device='cpu')
    monkeypatch.setattr(Deep, 'deeper', WRONG['qwen3_vl'][1])
    with pytest.warns(
        DataWarning, match='qwen3_vl.*its fast path: hidden states differ by 1.0e.00 of their spread.*in every pass'
    ):
        e = VLMEmbedder.from_pretrained(folders('qwen3_vl'), fusion='internal', device='cpu')
    monkeypatch.undo()
    assert e.family.whole and not e.family.tree
    bank, other = right.bank(studio.catalogue, progress=False), e.bank(studio.catalogue, progress=False)
    one, two = prefix_vectors(right, bank, history)['joint'], prefix_vectors(e, other, history)['joint']
    assert apart(one, two) < 1e-5


def one_number_towers_over_all(module, args, output):
    "The first token's output with a massive activation, as large language models have it."
    at = torch.zeros_like(output)
    at[:, 0, 3] = 3000
    return output + at


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('name', WRONG)
def test_a_wrong_way_is_noticed_beside_massive_numbers_and_in_half_precision(name, dtype, folders):
    loaded = load_model(folders(name), dtype=dtype, device='cpu')
    language_model(loaded[0]).norm.register_forward_hook(one_number_towers_over_all)
    right, (method, to) = FAMILIES[name], WRONG[name]
    wrong = type('Wrong', (type(right),), {method: to})(**vars(right))
    assert _tried(right, *loaded, 50176)[0]
    said = _tried(wrong, *loaded, 50176)
    assert not said[0] and 'hidden states differ' in said[1]


@pytest.mark.parametrize('only', ['tree', 'second row'])
def test_a_number_that_is_none_is_never_right(only, folders, monkeypatch):
    right = FAMILIES['qwen3_vl']

    def read(self, core, features, ids, position, feature, mask=None):
        out = type(right).read(self, core, features, ids, position, feature, mask)
        if mask is not None if only == 'tree' else len(out) == 2 and (ids[1] == 0).any():
            out[-1] = torch.nan
        return out

    broken = type('Broken', (type(right),), dict(read=read))(**vars(right))
    assert _tried(broken, *load_model(folders('qwen3_vl'), device='cpu'), 50176) == (
        False,
        'hidden states differ by nan of their spread',
    )


@quiet
@pytest.mark.parametrize('name', ['qwen3_vl', 'idefics2'])
def test_the_check_of_loading_draws_nothing(name, folders):
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    VLMEmbedder.from_pretrained(folders(name), lora=2, device='cpu')
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


# ---------------------------------------------------------------- families that are not listed

WAYS = dict(
    internvl=('Learned', True), paligemma=('Encoded', False), idefics2=('Learned', True), llava_next=('Learned', True)
)


@quiet
@pytest.mark.parametrize('name', WAYS)
def test_another_family_is_read_as_its_own_forward_reads_it(name, folders, studio, history, tmp_path):
    with pytest.warns(
        DataWarning, match=f'{name}.* is read on the general path, checked .*not among the fast families'
    ):
        e = VLMEmbedder.from_pretrained(folders(name), lora=4, fusion='internal', device='cpu')
    assert (type(e.family).__name__, e.family.tree) == WAYS[name]
    for k, (_, p) in enumerate(e.adapter_parameters()):
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(k))
    value, gradient = gaps(e, *own_and_fast(e, studio, history))
    assert value < 1e-5 and gradient < 1e-4, (value, gradient)
    whole = VLMEmbedder(e.model, e.tokenizer, e.image_processor, fusion='internal', family=whole_of(e.family))
    trees = [prefix_vectors(x, x.bank(studio.catalogue, progress=False), history)['joint'] for x in (e, whole)]
    assert apart(*trees) < 1e-5
    assert all('lora_' in n for n, _ in e.adapter_parameters())
    split = studio.split(train=20, valid=10, test=10, history=3)
    told = train(e, split, 'sft', steps=2, batch=4, progress=False, positions='all')
    assert np.isfinite(told.frame['loss']).all()
    again = VLMEmbedder.from_pretrained(e.save_pretrained(tmp_path / 'mine'), device='cpu')
    one, two = (x.encode_items(studio.catalogue, progress=False)['joint'] for x in (e, again))
    assert torch.equal(one, two)


def test_pictures_of_another_family_have_the_marks_that_its_processor_writes(folders):
    with pytest.warns(DataWarning):
        e = VLMEmbedder.from_pretrained(folders('idefics2'), device='cpu')
    marks = e.family.marks(e.tokenizer, e.core.config)
    assert (
        TOKENIZER.convert_ids_to_tokens(marks.opening)
        == ['<fake_token_around_image>']
        == (TOKENIZER.convert_ids_to_tokens(marks.closing))
    )


def test_what_cannot_be_read_is_refused(folders):
    with pytest.raises(DataError, match='no way to read this .florence2. agrees with its own forward'):
        VLMEmbedder.from_pretrained(folders('florence2'), device='cpu')


# ---------------------------------------------------------------- pooling, templates, configurations


@pytest.mark.parametrize('pool', ['mean', 'eos'])
def test_pooling_is_the_same_in_trees_and_saved(pool, folders, studio, history, tmp_path):
    e = VLMEmbedder.from_pretrained(folders('gemma3'), lora=2, pool=pool, dims=16, device='cpu')
    bank = e.bank(studio.catalogue, progress=False)
    rows, lengths = prefix_pairs(history)
    alone = np.where(np.arange(history.shape[1]) < lengths[:, None], history[rows], PAD)
    one, many = e.sequence_vectors(bank, alone)['image'], prefix_vectors(e, bank, history)['image']
    assert one.shape == (9, 16) and apart(one, many) < 1e-5
    again = VLMEmbedder.from_pretrained(e.save_pretrained(tmp_path / 'mine'), device='cpu')
    assert (again.pool, again.dims) == (pool, 16)
    z, plain = again.encode_items(studio.catalogue, store=tmp_path / 'store')['text'], embed_last(e, studio)
    assert z.shape == (24, 16) and torch.allclose(z.norm(dim=1), torch.ones(24)) and apart(plain, z) > 0.1


def embed_last(embedder, studio):
    "Texts of the same model by the last token's state, cut and normalised by hand."
    e = VLMEmbedder(embedder.model, embedder.tokenizer, embedder.image_processor)
    return torch.nn.functional.normalize(e.encode_items(studio.catalogue, progress=False)['text'][:, :16], dim=1)


def test_matryoshka_cuts_and_normalises(folders, studio):
    e = VLMEmbedder.from_pretrained(folders('qwen3_vl'), dims=16, device='cpu')
    assert torch.allclose(embed_last(e, studio), e.encode_items(studio.catalogue, progress=False)['text'], atol=1e-6)
    with pytest.raises(ValueError, match='dims=65: a vector of this model has 64'):
        VLMEmbedder.from_pretrained(folders('qwen3_vl'), dims=65, device='cpu')
    with pytest.raises(ValueError, match='mean'):
        VLMEmbedder.from_pretrained(folders('qwen3_vl'), pool='meen', device='cpu')


def test_an_embedding_checkpoint_reads_by_its_instruction(folders, studio, tmp_path):
    folder = tmp_path / 'Qwen3-VL-Embedding-2B'
    shutil.copytree(folders('qwen3_vl'), folder)
    e = VLMEmbedder.from_pretrained(folder, device='cpu')
    shown = show_prompts(e, studio.catalogue)
    text = studio.catalogue.content['text'][0]
    start = "<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\n"
    end = '<|im_end|>\n<|im_start|>assistant\n'
    assert shown['text']['item'] == f'{start}{text}{end}'
    assert shown['image']['item'].startswith(f'{start}<|vision_start|>[')


@quiet
def test_templates_are_in_tokens_that_the_model_knows(folders, tmp_path, studio):
    found = {
        name: VLMEmbedder.from_pretrained(folders(name), device='cpu').prompts.item for name in ('gemma3', 'llava')
    }
    assert found['gemma3'] == '<bos><start_of_turn>user\nProduct:{}<end_of_turn>'
    assert found['llava'] == '<|im_start|>Product:{}<|im_end|>'  # no <s> here
    with pytest.warns(DataWarning, match='<start_of_trun>, which this model does not know'):
        VLMEmbedder.from_pretrained(folders('gemma3'), prompts=Prompts(item='<start_of_trun>{}'), device='cpu')
    for name in FAMILIES:
        e = VLMEmbedder.from_pretrained(folders(name), device='cpu')
        assert not split_tokens(e.tokenizer, e.prompts.item + e.prompts.sequence)


TRUE = {  # configuration -> parameters, layers with adapters, parameters of adapters at rank 16
    'Qwen2.5-VL-3B': (3_754_622_976, 252, 29_933_568),
    'Qwen3-VL-2B': (2_127_532_032, 196, 17_432_576),
    'Qwen3-VL-4B': (4_437_815_808, 252, 33_030_144),
}


def true_config(name):
    "The published configuration, as far as it decides on sizes."
    if name == 'Qwen2.5-VL-3B':
        text = dict(hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16)
        text |= dict(num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True)
        eye = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=2048)
        return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=eye, tie_word_embeddings=True)
    layers, width, inner, heads = (28, 2048, 6144, 16) if name.endswith('2B') else (36, 2560, 9728, 32)
    text = dict(hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads)
    text |= dict(num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True)
    eye = dict(depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16, out_hidden_size=width)
    eye |= dict(deepstack_visual_indexes=[5, 11, 17])
    return transformers.Qwen3VLConfig(text_config=text, vision_config=eye, tie_word_embeddings=True)


@pytest.mark.parametrize('name', TRUE)
def test_a_true_configuration_has_the_published_sizes(name):
    core = empty_model(true_config(name))
    core.tie_weights()
    layers = lora_targets(core)
    sizes = {n: m.in_features + m.out_features for n, m in layers.items()}
    found = sum(p.numel() for p in core.parameters()), len(layers), 16 * sum(sizes.values())
    assert found == TRUE[name]
    assert not [n for n in layers if 'visual' in n]


def test_all_marks_are_tokens():
    for family in FAMILIES.values():
        marks = family.marks(TOKENIZER, FAST[family.name]()[0].config)
        assert len(marks.opening) + len(marks.closing) < 10 and marks.place is not None


@pytest.mark.parametrize('name', ALL)
def test_weights_are_split_by_layers_of_the_decoder_and_the_tower_stays_whole(name, embedders):
    from types import SimpleNamespace

    core = embedders(name).core
    layers = _layers(core, SimpleNamespace(transformer_cls_names_to_wrap=None))
    assert len(layers) == 2 and {id(x) for x in layers} == {id(x) for x in language_model(core).layers}
    seeing, read = {id(p) for p in _seeing(core)}, {id(p) for p in language_model(core).parameters()}
    head = {id(p) for p in core.get_output_embeddings().parameters()}
    assert seeing and not seeing & read
    assert seeing | read | head == {id(p) for p in core.parameters()}


@quiet
@pytest.mark.parametrize('name', ['llava', 'gemma3'])
def test_the_key_of_pictures_is_of_all_that_sees(name, folders):
    e = VLMEmbedder.from_pretrained(folders(name), device='cpu')
    keys = [vision_key(e)]
    for part in sight(e.core).values():
        with torch.no_grad():
            next(part.parameters()).add_(0.1)
        keys.append(vision_key(e))
    with torch.no_grad():
        next(language_model(e.core).parameters()).add_(0.1)
    assert len(keys) == 3 == len(set(keys)) and vision_key(e) == keys[-1]


@pytest.mark.parametrize('name', ['qwen2_5_vl', 'gemma3', 'llava'])
def test_compiled_layers_are_those_of_the_family(name, embedders, studio, history):
    "Each is captured whole; what is made of it is tested in `test_compiled`."
    e = embedders(name)
    bank = e.bank(studio.catalogue, progress=False)
    want = prefix_vectors(e, bank, history)['joint']
    with compiled_layers(language_model(e.core), 'eager'):
        got = prefix_vectors(e, bank, history)['joint']
        value, gradient = gaps(e, want, got)
    assert value < 1e-5 and gradient < 1e-4, (value, gradient)

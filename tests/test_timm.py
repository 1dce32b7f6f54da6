"""Image models of timm as encoders, against timm's and transformers' classes; skipped, and counted, without timm."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_encoders import picture, pictures
from test_loading import same, whole_way

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.model.encoders import load_encoder
from vlm2rec_lab.model.loading import kinds_read, load_embedder
from vlm2rec_lab.model.pair import PairEmbedder
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.drawn import make_studio

try:
    import timm
    import timm.data
except (ImportError, RuntimeError):
    timm = None
there = pytest.mark.skipif(timm is None, reason='timm, or the torchvision that it needs, is not installed')
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
VIT = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
MODELS = {
    'resnet10t': {},
    'vit_tiny_patch16_224': VIT,
    'deit_tiny_distilled_patch16_224': VIT,
    'convnext_atto': dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
    'mobilenetv3_small_050': {},
}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Makes the checkpoint of a name once, as timm saves it: model, folder."
    root, found = tmp_path_factory.mktemp('timm'), {}

    def made(name):
        if name not in found:
            torch.manual_seed(0)
            model = timm.create_model(name, num_classes=7, **MODELS[name]).eval()
            model.pretrained_cfg['input_size'] = (3, 32, 32)
            timm.models.save_for_hf(model, root / name, model_args=MODELS[name], safe_serialization=True)
            found[name] = model, root / name
        return found[name]

    return made


@pytest.fixture(scope='module')
def looks():
    "A shop of pictures."
    split = make_studio('balanced', seed=0, items=30, users=60, length=6).split(train=24, valid=12, test=24, history=4)
    cat = split.catalogue
    return replace(split, catalogue=Catalogue(cat.ids, {'image': cat.content['image']}, {'image': 'image'}, cat.table))


def own(model, opened):
    "What timm gives without the classifier, of pictures prepared by timm."
    prepare = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model), is_training=False)
    pixels = torch.stack([prepare(p) for p in opened])
    return model.forward_head(model.forward_features(pixels), pre_logits=True)


@there
@pytest.mark.parametrize('name', MODELS)
def test_a_folder_and_a_loaded_model_give_what_timm_gives(home, name):
    model, folder = home(name)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    with torch.no_grad():
        want = own(model, [picture(k) for k in range(9)])
    for encoder in (load_encoder(folder, 'image', device='cpu'), load_encoder(model, 'image')):
        z = encoder.vectors(pictures(), batch=4)
        torch.testing.assert_close(z, want, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder.forward(encoder.prepare(pictures())), want, atol=1e-5, rtol=1e-4)
        assert (encoder.kind, encoder.size) == ('image', want.shape[1])
    assert (want[0] - want[1]).abs().max() > 1e-4
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items()) and model.num_classes == 7


@there
@pytest.mark.parametrize('name', ['resnet10t', 'vit_tiny_patch16_224'])
def test_the_vectors_are_those_of_transformers(home, name, tmp_path):
    "Its wrapper saves the same weights under longer names, and reads the same folder."
    from transformers import TimmWrapperModel

    folder = tmp_path / name
    shutil.copytree(home(name)[1], folder)
    note = json.loads((folder / 'config.json').read_text())
    note['model_args'].pop('num_classes')  # which the wrapper of transformers 5.23 gives twice
    (folder / 'config.json').write_text(json.dumps(note))
    wrapper = TimmWrapperModel.from_pretrained(folder).eval()
    encoder = load_encoder(folder, 'image', device='cpu')
    batch = encoder.prepare(pictures())
    with torch.no_grad():
        want = wrapper(**batch).pooler_output
    torch.testing.assert_close(encoder.forward(batch), want, atol=1e-5, rtol=1e-4)
    longer = tmp_path / 'by transformers'
    wrapper.save_pretrained(longer)
    torch.testing.assert_close(load_encoder(longer, 'image', device='cpu').forward(batch), want, atol=1e-5, rtol=1e-4)


@there
def test_the_gradient_is_that_of_timm(home):
    model, folder = home('vit_tiny_patch16_224')
    encoder = load_encoder(folder, 'image', device='cpu')
    assert not any(p.requires_grad for p in encoder.module.parameters())
    encoder.module.requires_grad_(True)
    encoder.forward(encoder.prepare(pictures())).square().sum().backward()
    model.zero_grad()
    own(model, [picture(k) for k in range(9)]).square().sum().backward()
    theirs = dict(model.named_parameters())
    moved = [n for n, p in encoder.module.model.named_parameters() if p.grad.abs().max() > 0]
    for n in moved:
        torch.testing.assert_close(encoder.module.model.get_parameter(n).grad, theirs[n].grad, atol=1e-4, rtol=1e-3)
    assert len(moved) > 20
    model.zero_grad()


@there
@pytest.mark.parametrize('lora', [None, 2])
@pytest.mark.parametrize('name', ['resnet10t', 'vit_tiny_patch16_224'])
def test_a_model_of_timm_goes_the_whole_way(home, name, lora, looks, tmp_path):
    embedder = load_embedder(home(name)[1], lora=lora, dims=8, device='cpu')
    assert isinstance(embedder, PairEmbedder) and bool(embedder.tuned) == (lora is not None)
    whole_way(embedder, looks, tmp_path / 'trained', 'sft')


@there
def test_a_pair_of_a_loaded_model_is_given_it_again(home, looks, tmp_path):
    encoder = load_encoder(home('resnet10t')[0], 'image')
    folder = PairEmbedder({'image': encoder}, dims=8, device='cpu').save_pretrained(tmp_path / 'pair')
    with pytest.raises(FileNotFoundError, match="pass encoders={'image': encoder}"):
        load_embedder(folder, device='cpu')
    pair = PairEmbedder({'image': encoder}, dims=8, device='cpu')
    same(pair, load_embedder(folder, encoders={'image': encoder}, device='cpu'), looks)


# ---- what is refused


def noted(folder, **more):
    "A folder with timm's note, changed."
    folder.mkdir(exist_ok=True)
    said = dict(architecture='resnet10t', num_classes=7, pretrained_cfg=dict(input_size=[3, 32, 32]))
    (folder / 'config.json').write_text(json.dumps(said | more))
    return folder


def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split('.')[0] == 'timm']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'timm', None)
    folder = noted(tmp_path / 'model')
    assert kinds_read(folder) == ('image',)
    with pytest.raises(ImportError, match='a model of timm needs timm, and timm .* pip install timm torchvision'):
        load_encoder(folder, 'image')
    with pytest.raises(DataError, match="is a model of timm and reads pictures: ask for kind='image'"):
        load_encoder(folder, 'text')


def test_a_torchvision_of_another_torch_says_so_too(tmp_path, monkeypatch):
    "It fails while it is imported, with an error that names an operator and no remedy."
    (tmp_path / 'timm').mkdir()
    (tmp_path / 'timm' / '__init__.py').write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    for name in [n for n in sys.modules if n.split('.')[0] == 'timm']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match='a torchvision that fits this torch: pip install.*torchvision::nms'):
        load_encoder(noted(tmp_path / 'model'), 'image')


@there
@pytest.mark.parametrize(
    'more, said',
    [
        (dict(architecture='hf-hub:someone/model'), "has no model 'hf-hub:someone/model'"),
        (dict(architecture='local-dir:/tmp'), 'has no model'),
        (dict(model_args=dict(checkpoint_path='x.pth')), 'model_args names checkpoint_path'),
        (dict(model_args=dict(pretrained=True)), 'model_args names pretrained'),
        (dict(model_args=dict(features_only=True)), 'model_args names features_only'),
        (dict(model_args=[1]), 'has no model|model_args'),
    ],
)
def test_names_and_arguments_that_lead_elsewhere_are_refused(tmp_path, more, said):
    with pytest.raises(DataError, match=said):
        load_encoder(noted(tmp_path / 'model', **more), 'image')


@there
def test_weights_that_do_not_fit_are_refused(home, tmp_path):
    _, folder = home('resnet10t')
    other = noted(tmp_path / 'other')
    with pytest.raises(DataError, match='model.safetensors is missing; only safetensors are read'):
        load_encoder(other, 'image')
    weights = load_file(folder / 'model.safetensors')
    save_file({n: x for n, x in weights.items() if n != 'bn1.weight'}, other / 'model.safetensors')
    with pytest.raises(DataError, match="bn1.weight.*do not fit"):
        load_encoder(other, 'image')
    save_file(weights | {'more.weight': torch.ones(2)}, other / 'model.safetensors')
    with pytest.raises(DataError, match='more.weight.*do not fit'):
        load_encoder(other, 'image')
    save_file(weights | {'bn1.weight': torch.ones(2)}, other / 'model.safetensors')
    with pytest.raises(DataError, match='the weights cannot be read.*size mismatch'):
        load_encoder(other, 'image')
    (other / 'model.safetensors').write_bytes(b'nothing')
    with pytest.raises(DataError, match='model.safetensors cannot be read'):
        load_encoder(other, 'image')


@there
def test_a_model_without_pooling_and_arguments_without_effect(home):
    with pytest.raises(DataError, match='make it with a global_pool'):
        load_encoder(timm.create_model('resnet10t', global_pool=''), 'image')
    for wrong in (dict(pooling='mean'), dict(prompt='a '), dict(revision='main')):
        with pytest.raises(DataError, match='has no effect on a loaded model of timm'):
            load_encoder(home('resnet10t')[0], 'image', **wrong)
    with pytest.raises(DataError, match="reads pictures: ask for kind='image'"):
        load_encoder(home('resnet10t')[0], 'text')

"""Pre-trained encoders that come as packages: refused where they are others, equal to their own code if installed."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from PIL import Image

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.model import packaged
from vlm2rec_lab.model.efficientnet import EfficientNetLite0, SameConv, lite_pixels
from vlm2rec_lab.model.encoders import Encoder
from vlm2rec_lab.model.pixels import PictureReader
from vlm2rec_lab.model.tuned import read_contents, tuned_copy

there = pytest.mark.skipif(not packaged.is_packaged(), reason='the pre-trained encoders are not installed')
library = pytest.mark.skipif(
    find_spec('sentence_transformers') is None, reason='sentence-transformers is not installed'
)
theirs = pytest.mark.skipif(
    find_spec('efficientnet_lite_pytorch') is None, reason='efficientnet_lite_pytorch is not installed'
)
TEXTS = ['Toy Story (1995). Animation, comedy.', 'a war in the desert', 'Zürich 東京 ', 'long ' * 400, 'a mug']


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    "A package with other weights, whose code must never run."
    for kind, one in packaged.PACKAGED.items():
        name = f'stand_in_{kind}'
        for file in one.files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(b'other weights')
        (tmp_path / name / '__init__.py').write_text('raise SystemExit("code of a package ran")')
        (tmp_path / f'{name}-1.dist-info').mkdir()
        (tmp_path / f'{name}-1.dist-info' / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1\n')
        monkeypatch.setitem(packaged.PACKAGED, kind, replace(one, package=name, module=name))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize('kind', packaged.PACKAGED)
def test_other_weights_are_refused_and_no_code_runs(stand_in, kind):
    assert packaged.is_packaged() and packaged.find_packaged(kind).parent == stand_in
    with pytest.raises(DataError, match='is not the file of stand_in_.* install that version again'):
        packaged.packaged_encoder(kind)


def test_a_file_that_is_gone_is_named(stand_in):
    (stand_in / 'stand_in_text' / 'model' / 'model.safetensors').unlink()
    with pytest.raises(DataError, match='model/model.safetensors cannot be read'):
        packaged.packaged_encoder('text')


def test_what_is_missing_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(packaged.PACKAGED, 'image', replace(packaged.PACKAGED['image'], package='no-such-package'))
    assert not packaged.is_packaged() and not packaged.is_packaged('image')
    with pytest.raises(ImportError, match=r'needs no-such-package: pip install "vlm2rec_lab\[real\]"'):
        packaged.packaged_encoder('image')
    with pytest.raises(DataError, match="did you mean 'image'"):
        packaged.find_packaged('Image')


def test_the_network_learns():
    "A gradient goes through all of it."
    model = EfficientNetLite0().eval()
    model(lite_pixels([Image.new('RGB', (60, 90), 'teal')])['pixel_values']).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_adapters_fit_on_the_network():
    torch.manual_seed(0)
    encoder = Encoder('lite', EfficientNetLite0().eval().requires_grad_(False), PictureReader(lite_pixels, 'lite'))
    pictures = [Image.effect_noise((40, 60), 90).convert('RGB'), Image.new('RGB', (30, 30), 'red')]
    twin = tuned_copy(encoder, 2)
    start = encoder.vectors(pictures, progress=False)
    assert torch.allclose(twin.vectors(pictures, progress=False), start, atol=1e-4)
    names = [n for n, p in twin.module.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 32  # two halves on each convolution of single points
    read_contents(twin, pictures).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in twin.module.parameters() if p.requires_grad)


class Windows(Encoder):
    "An encoder whose only layers are convolutions of a class of their own, which peft cannot make more of."

    def __init__(self):
        module = torch.nn.Sequential(SameConv(3, 4, 1), torch.nn.Flatten()).requires_grad_(False).eval()
        self.module, self.kind, self.name = module, 'image', 'windows'

    def prepare(self, contents):
        return {'pixels': torch.ones(len(contents), 3, 2, 2)}

    def forward(self, batch):
        return self.module(batch['pixels'])


def test_layers_of_classes_of_their_own_are_refused_by_name():
    with pytest.raises(ValueError, match="'windows' has no layer that adapters fit on"):
        tuned_copy(Windows(), 2)


@pytest.mark.parametrize('where', ['cpu', 'meta'])  # meta: any place that is no processor
def test_channels_lie_side_by_side_on_a_processor_alone(where):
    net, seen = EfficientNetLite0().eval().to(where), []
    net.conv_stem.register_forward_hook(lambda layer, given, z: seen.append(given[0]))
    with torch.no_grad():
        net(torch.zeros(2, 3, 224, 224, device=where))
    assert [x.is_contiguous(memory_format=torch.channels_last) for x in seen] == [where == 'cpu']


@there
@theirs
def test_the_network_is_that_of_the_weights_own_package():
    from efficientnet_lite_pytorch import EfficientNet

    encoder = packaged.packaged_encoder('image', device='cpu')
    model = EfficientNet.from_name('efficientnet-lite0').eval()
    file = packaged.find_packaged('image') / next(iter(packaged.PACKAGED['image'].files))
    model.load_state_dict(torch.load(file, weights_only=True))
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = model.extract_features(pixels).mean((2, 3))
    torch.testing.assert_close(encoder.forward({'pixel_values': pixels}), want, atol=1e-5, rtol=0)
    assert encoder.size == 1280


@there
@library
@pytest.mark.filterwarnings('ignore')
def test_minilm_is_that_of_the_library():
    from sentence_transformers import SentenceTransformer

    want = SentenceTransformer(str(packaged.find_packaged('text') / 'model'), device='cpu').encode(TEXTS)
    encoder = packaged.packaged_encoder('text', device='cpu')
    torch.testing.assert_close(encoder.vectors(TEXTS), torch.from_numpy(want), atol=1e-5, rtol=0)
    assert (encoder.size, encoder.reader.limit) == (384, 256)


@there
def test_a_content_has_its_vector_in_any_batch():
    found = packaged.packaged_encoders(device='cpu')
    pictures = [Image.new('RGB', (80 + k, 60), (40 * k, 10, 99)) for k in range(4)]
    for kind, contents in (('text', [TEXTS[k] for k in (0, 1, 2, 4)]), ('image', pictures)):
        z = found[kind].vectors(contents)
        torch.testing.assert_close(found[kind].vectors(contents[::-1], batch=1).flip(0), z, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[kind].forward(found[kind].prepare(contents)), z, atol=1e-4, rtol=1e-4)
        assert len({found[kind].mark, packaged.packaged_encoder(kind, device='cpu').mark}) == 1


@there
def test_near_texts_are_near():
    z = packaged.packaged_encoder('text', device='cpu').vectors(
        ['toys come alive', 'puppets that live', 'a desert war']
    )
    near, far = (z[0] @ z[1]).item(), (z[0] @ z[2]).item()
    assert near > far + 0.1

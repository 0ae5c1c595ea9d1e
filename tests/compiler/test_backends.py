"""Every backend builds every kind of model, or says what it misses or cannot take."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from loadwise.compiler.backends import BACKENDS, exported
from loadwise.compiler.backends.exported import ExportedBackend
from loadwise.compiler.verify import difference, distance
from loadwise.errors import BuildDeclinedError
from loadwise.ports import BuildRequest
from loadwise.testing.backend_contract import BuildBackendContract

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("quiet_export")]
FORMS = [(name, mode, form) for name, kind in BACKENDS.items() for mode, form in kind.forms.items()]
FIRST = {name: next(iter(kind.forms)) for name, kind in BACKENDS.items()}
QUANTISED = [(name, mode) for name, mode, form in FORMS if form.quantised]


@pytest.fixture
def quiet_export() -> Iterator[None]:
    """Exporting warns about torch's own use of its deprecated parts."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Encoder(torch.nn.Module):
    """Two layers of attention over token embeddings; the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layers(self.embed(tokens)).mean(1)


class Vision(torch.nn.Module):
    """Convolutions, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        found = torch.relu(self.norm(self.conv(image)))
        return {"classes": self.head(found.mean((2, 3))), "map": found}


class Causal(torch.nn.Module):
    """Logits of every position, each from those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 64)
        self.qkv = torch.nn.Linear(64, 192)
        self.head = torch.nn.Linear(64, 50)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length = tokens.shape
        heads = self.qkv(self.embed(tokens)).view(batch, length, 3, 4, 16).permute(2, 0, 3, 1, 4)
        q, k, v = heads  # [B, H, T, D] each
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(seen.transpose(1, 2).reshape(batch, length, 64))


TOKENS = torch.arange(24).remainder(50).reshape(3, 8)
MODELS: dict[str, tuple[type[torch.nn.Module], torch.Tensor]] = {
    "encoder": (Encoder, TOKENS),
    "vision": (Vision, torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)),
    "causal": (Causal, TOKENS),
}


def usable(name: str, scratch: Path) -> ExportedBackend:
    backend = BACKENDS[name](scratch)
    availability = backend.available()
    if not availability.ok:
        pytest.skip(f"unavailable: {availability.reason}")
    return backend


def request_of(kind: str, mode: str, *, dynamic: bool = True) -> BuildRequest:
    torch.manual_seed(5)
    model, example = MODELS[kind]
    return BuildRequest(
        model=model().eval(), model_id="m", mode=mode, examples=[((example,), {})], dynamic=dynamic
    )


@pytest.mark.parametrize("name", list(FIRST))
def test_what_is_installed_is_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = BACKENDS[name]().available()

    def read_again(distribution: str) -> str:
        raise AssertionError(f"the loop asks once a second, and {distribution} was read again")

    monkeypatch.setattr(exported, "version", read_again)
    assert BACKENDS[name]().available() == before


# Every kind of model in a backend's first mode, and every other mode with one of them.
EXACT = [
    (name, mode, kind)
    for name, mode, form in FORMS
    for kind in (MODELS if mode == FIRST[name] else ["causal"])
    if not form.quantised
]


@pytest.mark.parametrize(("name", "mode", "kind"), EXACT)
def test_build_answers_as_the_model_in_its_precision(name: str, mode: str, kind: str, tmp_path: Path) -> None:
    backend, request = usable(name, tmp_path), request_of(kind, mode)
    (example,) = request.examples[0][0]
    with torch.no_grad():
        built = backend.build(request)
        assert built.accepts((example,), {})
        form = backend.forms[mode]
        assert difference(request.model(example), built.call(example), form=form) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "mode"), QUANTISED)
def test_variant_is_near_the_model_and_its_distance_is_measured(name: str, mode: str, tmp_path: Path) -> None:
    backend, request = usable(name, tmp_path), request_of("causal", mode)
    if name == "openvino":
        pytest.importorskip("nncf", reason="nncf makes its small weights")
    with torch.no_grad():
        built = backend.build(request)
        assert 0.0 < distance(request.model, built.call, request.examples) < 0.2


@pytest.mark.parametrize("name", ["inductor", "openvino", "onnxruntime"])
def test_dynamic_build_takes_other_sizes_and_a_static_one_does_not(name: str, tmp_path: Path) -> None:
    backend = usable(name, tmp_path)
    mode, other = next(iter(backend.forms)), torch.arange(25).reshape(5, 5)
    with torch.no_grad():
        for dynamic in (True, False):
            request = request_of("causal", mode, dynamic=dynamic)
            built = backend.build(request)
            assert built.accepts((other,), {}) is dynamic
            if dynamic:
                assert difference(request.model(other), built.call(other)) is None


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_model_that_writes_into_its_arguments_is_declined_by_array_runtimes(
    name: str, tmp_path: Path
) -> None:
    class Writing(torch.nn.Module):
        def forward(self, x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
            cache[0] = x
            return cache * 2.0

    backend = usable(name, tmp_path)
    request = BuildRequest(
        model=Writing().eval(),
        model_id="m",
        mode=next(iter(backend.forms)),
        examples=[((torch.ones(4), torch.zeros(3, 4)), {})],
    )
    with pytest.raises(BuildDeclinedError, match="writes into its arguments"):
        backend.build(request)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_array_runtimes_answer_several_threads_at_once(name: str, tmp_path: Path) -> None:
    backend = usable(name, tmp_path)
    request = request_of("causal", next(iter(backend.forms)))
    built, wrong = backend.build(request), []

    def ask(seed: int) -> None:
        tokens = torch.arange(seed, seed + 16).remainder(50).reshape(2, 8)
        with torch.no_grad():
            for _ in range(20):
                if difference(request.model(tokens), built.call(tokens)) is not None:
                    wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="unavailable: g++")
class TestInductor(BuildBackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> ExportedBackend:
        return usable("inductor", tmp_path)


class TestOpenVino(BuildBackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> ExportedBackend:
        return usable("openvino", tmp_path)


class TestOnnxRuntime(BuildBackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> ExportedBackend:
        return usable("onnxruntime", tmp_path)


class TestTensorRt(BuildBackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> ExportedBackend:
        return usable("tensorrt", tmp_path)

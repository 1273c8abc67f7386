"""PixArt, Flux.1 and Stable Diffusion 3.5 as towers give what their stock pipelines compute.

Every pipeline is a tiny random one in the published layout. Expected tokens are seen by hooks on
the whole network while the stock pipeline itself runs a step over latents that are made here.
"""

import dataclasses
import functools
import io
import json
import shutil

import diffusers
import pytest
import sentencepiece
import torch
import transformers
from repository import ROOT

from llava.errors import UsageError
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.registry import resolve, tower_class

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIDE = 64
T = 250
"""A time step whose share of flow matching's noise, 0.25, is exact in float32."""
PROMPT = "a cat"
CLIP_TOKENIZER = ROOT / "tests" / "golden" / "diffusion" / "sd15" / "tokenizer"
TEXT = ["a photo of a cat on a mat", "the dog sat on the cat", "photos of two dogs and a hat"]

DEPTHS = {
    "alpha": 3,
    "alpha-sizes": 3,
    "sigma": 3,
    "flux-dev": 4,
    "flux-schnell": 4,
    "sd3.5": 3,
}
"""Pipeline -> blocks. `alpha-sizes` is told image sizes, as PixArt-alpha of 1024 px is; only
`flux-dev` is told a guidance; `sd3.5` has a second attention in its first two blocks."""
BLOCKS = [(kind, block) for kind, depth in DEPTHS.items() for block in range(depth)]
DIM = 24
"""Width of a token before 2 x 2 of them are joined."""


def t5_tokenizer(folder) -> transformers.T5Tokenizer:
    """T5's tokenizer as sentencepiece's file, which PixArt's repositories hold alone."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir()
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    return transformers.T5Tokenizer.from_pretrained(folder)


def t5(tokenizer) -> transformers.T5EncoderModel:
    """T5's encoder, 12 wide."""
    sizes = {"d_model": 12, "d_kv": 6, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(tokenizer),
            feed_forward_proj="gated-gelu",
            initializer_factor=5.0,
            **sizes,
        )
    )


def clip(model_class):
    """CLIP's text encoder, 12 wide, for the 22 tokens of the tokenizer above."""
    return model_class(
        transformers.CLIPTextConfig(
            vocab_size=22,
            hidden_size=12,
            intermediate_size=16,
            projection_dim=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=20,
            eos_token_id=21,
            pad_token_id=21,
        )
    )


def vae(channels: int, **changes) -> diffusers.AutoencoderKL:
    """Halves an image three times, as all of them do."""
    return diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=2,
        **changes,
    )


def pixart(tokenizer, pipeline, scaling: float, **config):
    """PixArt-alpha or -Sigma."""
    return pipeline(
        tokenizer=tokenizer,
        text_encoder=t5(tokenizer),
        vae=vae(4, scaling_factor=scaling),
        transformer=diffusers.PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=DIM,
            num_layers=3,
            caption_channels=12,
            **config,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
    )


def as_published(folder, tokenizer) -> None:
    """Changes a PixArt pipeline to what its repositories hold since before diffusers 0.28."""
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(tokenizer, folder / "tokenizer")
    name = {"_class_name": "Transformer2DModel", "_diffusers_version": "0.22.0.dev0"}
    old = dict.fromkeys(("double_self_attention", "only_cross_attention"), False)
    change(folder / "transformer" / "config.json", **name, **old, num_vector_embeds=None)
    change(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])


def change(path, **values) -> None:
    """Writes values into a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def flux(tokenizer, guidance_embeds: bool):
    """Two blocks of either kind."""
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(
            16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=clip(transformers.CLIPTextModel),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(CLIP_TOKENIZER),
        text_encoder_2=t5(tokenizer),
        tokenizer_2=tokenizer,
        transformer=diffusers.FluxTransformer2DModel(
            num_layers=2,
            num_single_layers=2,
            num_attention_heads=2,
            attention_head_dim=12,
            axes_dims_rope=(4, 4, 4),
            joint_attention_dim=12,
            pooled_projection_dim=12,
            guidance_embeds=guidance_embeds,
        ),
    )


def stable_diffusion_35():
    """The medium kind."""
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=16,
            num_layers=3,
            num_attention_heads=2,
            attention_head_dim=12,
            joint_attention_dim=40,
            caption_projection_dim=DIM,
            pooled_projection_dim=24,
            pos_embed_max_size=8,
            dual_attention_layers=(0, 1),
            qk_norm="rms_norm",
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(
            16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=clip(transformers.CLIPTextModelWithProjection),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(CLIP_TOKENIZER),
        text_encoder_2=clip(transformers.CLIPTextModelWithProjection),
        tokenizer_2=transformers.CLIPTokenizer.from_pretrained(CLIP_TOKENIZER),
        text_encoder_3=None,
        tokenizer_3=None,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind -> folder of a tiny random pipeline."""
    root = tmp_path_factory.mktemp("pipelines")
    tokenizer = t5_tokenizer(root / "tokenizer")
    alpha, sigma = diffusers.PixArtAlphaPipeline, diffusers.PixArtSigmaPipeline
    makers = {
        "alpha": lambda: pixart(tokenizer, alpha, 0.18215, sample_size=64),
        "alpha-sizes": lambda: pixart(tokenizer, alpha, 0.18215, sample_size=128),
        "sigma": lambda: pixart(
            tokenizer, sigma, 0.13025, sample_size=128, use_additional_conditions=False
        ),
        "flux-dev": lambda: flux(tokenizer, True),
        "flux-schnell": lambda: flux(tokenizer, False),
        "sd3.5": stable_diffusion_35,
    }
    with torch.random.fork_rng():
        for kind, make in makers.items():
            torch.manual_seed(7)
            make().save_pretrained(root / kind)
            if kind in ("alpha", "alpha-sizes", "sigma"):
                as_published(root / kind, root / "tokenizer")
    return {kind: root / kind for kind in makers}


@functools.cache
def stock(folder):
    """The whole pipeline as diffusers reads it, without T5 where its folder has none."""
    index = json.loads((folder / "model_index.json").read_text())
    left_out = dict.fromkeys((name for name, part in index.items() if part == [None, None]), None)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **left_out)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def spec_of(folders, kind: str, **changes):
    """The spec of a tower at 64 px and a time step with much noise, computed as trained."""
    (spec,) = resolve(f"{folders[kind]}@{SIDE}").parts
    return dataclasses.replace(spec, **{"t": T, "compat": "clean", "prompt": PROMPT, **changes})


tower_of = functools.cache(build_tower)


def given(folders, kind: str, images: int = 2) -> dict[str, torch.Tensor]:
    """Pixels and both kinds of noise."""
    generator = torch.Generator().manual_seed(3)
    channels = stock(folders[kind]).vae.config.latent_channels
    pixels = torch.rand(images, 3, SIDE, SIDE, generator=generator) * 2 - 1
    noise = torch.randn(2, images, channels, SIDE // 8, SIDE // 8, generator=generator)
    return {"pixels_BCSS": pixels, "vae_eps": noise[0], "noise": noise[1]}


def clean_latents(pipeline, pixels_BCSS, vae_eps, shift: float) -> torch.Tensor:
    """Latents as the pipeline's decoder takes them, image by image."""
    latents = []
    for pixels, eps in zip(pixels_BCSS, vae_eps, strict=True):
        with torch.no_grad():
            posterior = pipeline.vae.encode(pixels[None]).latent_dist
        latents.append(posterior.mean + posterior.std * eps[None])
    return (torch.cat(latents) - shift) * pipeline.vae.config.scaling_factor


def noisy_latents(pipeline, pixels_BCSS, vae_eps, noise) -> torch.Tensor:
    """Latents with as much noise as the model met at T in training."""
    clean = clean_latents(pipeline, pixels_BCSS, vae_eps, pipeline.vae.config.shift_factor or 0)
    if isinstance(pipeline.scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        return (1 - T / 1000) * clean + T / 1000 * noise
    kept = float(torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000), 0)[T])
    return kept**0.5 * clean + (1 - kept) ** 0.5 * noise


def stock_tokens(pipeline, latents: torch.Tensor, t: float = T, **call) -> list[torch.Tensor]:
    """The image's tokens after every block, 2 x 2 joined, in one step of the stock pipeline."""
    network, seen = pipeline.transformer, {}
    flow = isinstance(pipeline.scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
    blocks = [*network.transformer_blocks, *getattr(network, "single_transformer_blocks", [])]
    handles = [
        block.register_forward_hook(lambda _block, _given, made, i=i: seen.setdefault(i, made))
        for i, block in enumerate(blocks)
    ]
    if isinstance(pipeline, diffusers.FluxPipeline):
        sides = latents.shape[2:]
        latents = pipeline._pack_latents(latents, *latents.shape[:2], *sides)
        assert pipeline._unpack_latents(latents, SIDE, SIDE, 8).shape[2:] == sides
    elif not flow:
        call = {
            "use_resolution_binning": False,
            "clean_caption": False,
            "guidance_scale": 1,
            **call,
        }
    if isinstance(pipeline, diffusers.StableDiffusion3Pipeline):
        call = {"guidance_scale": 1, **call}
    pipeline(
        prompt=call.pop("prompt", PROMPT),
        num_images_per_prompt=len(latents),
        latents=latents,
        height=SIDE,
        width=SIDE,
        output_type="latent",
        **({"sigmas": [t / 1000], "num_inference_steps": 1} if flow else {"timesteps": [t, 0]}),
        **call,
    )
    for handle in handles:
        handle.remove()
    images = [made[1] if isinstance(made, tuple) else made for _, made in sorted(seen.items())]
    return [joined(image) for image in images]


def joined(tokens_BNC: torch.Tensor) -> torch.Tensor:
    """Tokens of 2 x 2 places side by side: left column from above, then the right one."""
    grid = tokens_BNC.unflatten(1, (SIDE // 16, SIDE // 16))
    corners = [grid[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return torch.cat(corners, -1).flatten(1, 2)


@functools.cache
def expected_tokens(folder, kind: str) -> list[torch.Tensor]:
    """What the stock pipeline gives after every block for `given`."""
    pipeline = stock(folder)
    return stock_tokens(pipeline, noisy_latents(pipeline, **given({kind: folder}, kind)))


@pytest.mark.parametrize(("kind", "block"), BLOCKS)
def test_tokens_are_the_stock_pipelines(folders, kind, block):
    tokens = tower_of(spec_of(folders, kind, up_ft_index=block))(**given(folders, kind))
    expected = expected_tokens(folders[kind], kind)
    assert len(expected) == DEPTHS[kind]
    torch.testing.assert_close(tokens, expected[block], rtol=1e-6, atol=1e-6)


def test_stable_diffusion_35_as_published_code_would_compute_it(folders):
    """The clean latent without a shift, and 77 zeros in place of T5's tokens."""
    pipeline, inputs = stock(folders["sd3.5"]), given(folders, "sd3.5")
    tower = tower_of(spec_of(folders, "sd3.5", t=1, compat="reference"))
    latents = clean_latents(pipeline, inputs["pixels_BCSS"], inputs["vae_eps"], 0)
    expected = stock_tokens(pipeline, latents, t=1, max_sequence_length=77)[-1]
    torch.testing.assert_close(tower(**inputs), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["alpha", "sigma", "flux-dev", "sd3.5"])
@pytest.mark.parametrize("prompt", ["", "a photo of two dogs"])
def test_prompts_are_embedded_as_stock_pipelines_do(folders, kind, prompt):
    """Including how many tokens a prompt is padded to, and which of them count."""
    tower = tower_of(spec_of(folders, kind, prompt=prompt, up_ft_index=0))
    pipeline = stock(folders[kind])
    with torch.no_grad():
        if kind == "flux-dev":
            embeds, pooled, text_ids = pipeline.encode_prompt(prompt)
            assert not text_ids.any()
        elif kind == "sd3.5":
            embeds, _, pooled, _ = pipeline.encode_prompt(
                prompt, None, None, do_classifier_free_guidance=False
            )
        else:
            embeds, mask, _, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
            assert torch.equal(tower.prompt_attention_mask, mask.float())
            assert 0 < mask.sum() < mask.numel() == {"alpha": 120, "sigma": 300}[kind]
    assert torch.equal(tower.prompt_embeds, embeds)
    if kind in ("flux-dev", "sd3.5"):
        assert torch.equal(tower.pooled_prompt_embeds, pooled)


@pytest.mark.parametrize("kind", DEPTHS)
def test_the_spec_says_what_comes_out(folders, kind):
    """Read from configs alone, as the parameters that are kept are counted."""
    (spec,) = resolve(f"{folders[kind]}@{SIDE}").parts
    assert (spec.depth, spec.dim, spec.patch, spec.grid) == (DEPTHS[kind], 4 * DIM, 32, (2, 2))
    assert spec.up_ft_index == spec.depth - 1
    tower = tower_of(spec)
    assert tower_class(spec).cost(spec).parameters == parameters(tower)
    pixels = given(folders, kind)["pixels_BCSS"]
    assert tower(pixels).shape == (2, spec.tokens, spec.dim)
    larger = dataclasses.replace(spec, size=96)
    assert tower_of(larger)(torch.zeros(1, 3, 96, 96)).shape == (1, 9, spec.dim)


@pytest.mark.parametrize("kind", DEPTHS)
def test_a_batch_is_its_images_one_by_one(folders, kind):
    tower = tower_of(spec_of(folders, kind))
    pixels = given(folders, kind, 3)["pixels_BCSS"]
    together, alone = tower(pixels), torch.cat([tower(image[None]) for image in pixels])
    assert (together - alone).norm() <= 1e-5 * alone.norm()
    assert (together[0] - together[1]).norm() > 0.01 * alone[0].norm()


@pytest.mark.parametrize("kind", DEPTHS)
def test_an_ensemble_is_the_mean_of_its_draws(folders, kind):
    """Draw k is that of the next seed."""
    pixels = given(folders, kind)["pixels_BCSS"]
    spec = spec_of(folders, kind, seed=5)
    draws = [tower_of(dataclasses.replace(spec, seed=seed))(pixels) for seed in (5, 6)]
    both = tower_of(dataclasses.replace(spec, ensemble_size=2))(pixels)
    torch.testing.assert_close(both, (draws[0] + draws[1]) / 2, rtol=1e-6, atol=1e-6)
    assert (draws[0] - draws[1]).norm() > 0.01 * both.norm()


@pytest.mark.parametrize(("kind", "block"), BLOCKS)
def test_only_what_is_run_is_kept(folders, kind, block):
    """No block after the tap, no output layer, no text encoder and no decoder."""
    spec = spec_of(folders, kind, up_ft_index=block)
    tower, whole = tower_of(spec), stock(folders[kind])
    network = whole.transformer
    blocks = [*network.transformer_blocks, *getattr(network, "single_transformer_blocks", [])]
    left_out = [*blocks[block + 1 :], network.norm_out, network.proj_out]
    assert parameters(tower.network) == parameters(network) - sum(map(parameters, left_out))
    seen = parameters(whole.vae.encoder)
    if whole.vae.quant_conv is not None:
        seen += parameters(whole.vae.quant_conv)
    assert parameters(tower.vae) == seen
    assert parameters(tower) == parameters(tower.network) + seen


def parameters(module) -> int:
    """How many numbers a module holds."""
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("kind", DEPTHS)
def test_a_prompt_in_a_name(folders, kind):
    name = f"{folders[kind]}@{SIDE}"
    inputs = given(folders, kind)
    plain, prompted = (
        tower_of(resolve(f"{name}{option}"))(**inputs) for option in ("", ":prompt=a%20cat")
    )
    (spec,) = resolve(name).parts
    assert spec.prompt == ""
    assert torch.equal(prompted, tower_of(dataclasses.replace(spec, prompt=PROMPT))(**inputs))
    assert (prompted - plain).norm() > 1e-3 * plain.norm()


def test_the_digest_is_of_what_is_read(folders, tmp_path):
    """Sentencepiece's file, and not T5 in float16, which a download may leave out."""
    folder = shutil.copytree(folders["alpha"], tmp_path / "alpha")
    before = hash_of(folder)
    assert before == hash_of(folders["alpha"])
    (folder / "text_encoder" / "model.fp16-00001-of-00002.safetensors").write_bytes(b"")
    (folder / "text_encoder" / "model.safetensors.index.fp16.json").write_text("{}")
    assert hash_of(folder) == before
    tokenizer = folder / "tokenizer" / "spiece.model"
    tokenizer.write_bytes(tokenizer.read_bytes() + b"\0")
    assert hash_of(folder) != before


def hash_of(folder) -> str:
    """Of the spec read from a folder."""
    (spec,) = resolve(str(folder)).parts
    return spec.hash()


@pytest.mark.parametrize("kind", ["alpha", "alpha-sizes", "sigma", "flux-dev", "flux-schnell"])
def test_there_is_no_published_code_to_be_like(folders, kind, tmp_path):
    """Which is said before weights are looked for."""
    spec = spec_of(folders, kind, t=1, compat="reference", weights=str(tmp_path))
    with pytest.raises(UsageError, match=rf"no {spec.family} tower to be like; take compat clean"):
        build_tower(spec)


@pytest.mark.parametrize(
    ("name", "family", "width", "depth"),
    [
        ("PixArt-alpha/PixArt-XL-2-512x512", "pixart-alpha", 1152, 28),
        ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "pixart-sigma", 1152, 28),
        ("black-forest-labs/FLUX.1-dev", "flux", 3072, 19 + 38),
        ("black-forest-labs/FLUX.1-schnell", "flux", 3072, 19 + 38),
        ("stabilityai/stable-diffusion-3.5-medium", "stable-diffusion-3", 1536, 24),
        ("stabilityai/stable-diffusion-3.5-large", "stable-diffusion-3", 2432, 38),
    ],
)
def test_known_models(name, family, width, depth):
    """Four tokens of the network, of 16 px each, are one of the tower's."""
    (spec,) = resolve(name).parts
    assert (spec.family, spec.dim, spec.depth) == (family, 4 * width, depth)
    assert (spec.size, spec.patch, spec.grid, spec.tokens) == (512, 32, (16, 16), 256)
    assert spec.up_ft_index == depth - 1

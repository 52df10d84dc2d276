# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch CLIPN model: CLIP with a second, "no" text encoder.

Wang et al., "CLIPN for Zero-Shot OOD Detection: Teaching CLIP to Say No", ICCV 2023, arXiv 2308.12213. The learnable
prompts follow the authors' published code: they are added to the token and position embeddings of that encoder.
"""

import difflib
import os
from dataclasses import dataclass
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings
from transformers.utils import logging
from transformers.utils.auto_docstring import auto_docstring
from transformers.utils.generic import ModelOutput, TransformersKwargs, can_return_tuple

from ..dtypes import floating_dtype
from .completeness import check_complete, refuse_damaged
from .configuration_clipn import CLIPNConfig, build_config
from .loss_clipn import clipn_loss
from .prompt_settings import HUB_ARGUMENTS, PROMPT_SETTINGS, find_file, save_prompt_settings, select_hub_arguments

logger = logging.get_logger(__name__)

# Of a CLIP vocabulary without additions, which ends with the end token
ORIGINAL_VOCAB_SIZE = 49408
# Arguments of `from_pretrained` that `CLIPNModel.from_clip` passes on
LOADING_ARGUMENTS = ("attn_implementation", "device_map", *HUB_ARGUMENTS)


@auto_docstring
@dataclass
class CLIPNOutput(ModelOutput):
    r"""
    loss (`torch.Tensor` of shape `()`, *optional*):
        `0.5 * (itbo_yes_loss + itbo_no_loss + tso_loss)`, returned when `return_loss` is `True` and there are as many
        images as texts and "no" texts.
    itbo_yes_loss (`torch.Tensor` of shape `()`, *optional*):
        Image-text binary-opposite loss of the matching pairs, returned with `loss`.
    itbo_no_loss (`torch.Tensor` of shape `()`, *optional*):
        Image-text binary-opposite loss of the other pairs, returned with `loss`.
    tso_loss (`torch.Tensor` of shape `()`, *optional*):
        Text semantic-opposite loss, returned with `loss`.
    logits_per_image (`torch.Tensor` of shape `(image_batch_size, text_batch_size)`, *optional*):
        Cosines of images and texts times `logit_scale.exp()`, in float32 whatever the dtype of the model.
    logits_per_text (`torch.Tensor` of shape `(text_batch_size, image_batch_size)`, *optional*):
        `logits_per_image`, transposed.
    no_logits_per_image (`torch.Tensor` of shape `(image_batch_size, no_text_batch_size)`, *optional*):
        Cosines of images and "no" texts times `logit_scale.exp()`, in float32.
    text_embeds (`torch.Tensor` of shape `(text_batch_size, projection_dim)`):
        Unit-norm text embeddings, float32.
    no_text_embeds (`torch.Tensor` of shape `(no_text_batch_size, projection_dim)`, *optional*):
        Unit-norm "no" text embeddings, float32.
    image_embeds (`torch.Tensor` of shape `(image_batch_size, projection_dim)`):
        Unit-norm image embeddings, float32.
    text_model_output (`BaseModelOutputWithPooling`):
        Output of [`~CLIPNModel.get_text_features`].
    no_text_model_output (`BaseModelOutputWithPooling`, *optional*):
        Output of [`~CLIPNModel.get_no_text_features`].
    vision_model_output (`BaseModelOutputWithPooling`, *optional*):
        Output of [`~CLIPNModel.get_image_features`], `None` when `image_embeds` were given.
    """

    loss: Tensor | None = None
    itbo_yes_loss: Tensor | None = None
    itbo_no_loss: Tensor | None = None
    tso_loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    no_logits_per_image: Tensor | None = None
    text_embeds: Tensor | None = None
    no_text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    no_text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class CLIPNTextEmbeddings(CLIPTextEmbeddings):
    """Token and position embeddings plus one of `num_no_prompts` learnable prompts, or their mean.

    In training mode every text draws its prompt uniformly from the `num_no_prompts` prompts and their mean; in
    evaluation mode it is always the mean. `prompt_index` overrules both while it is set.
    """

    def __init__(self, config: CLIPTextConfig, num_no_prompts: int) -> None:
        super().__init__(config)
        self.no_prompts = nn.Parameter(torch.zeros(num_no_prompts, config.max_position_embeddings, config.hidden_size))
        # `CLIPTextModel.forward` hands nothing but ids to its embeddings, so the index comes as an attribute
        self.prompt_index: Tensor | None = None  # (batch,)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        embeddings = super().forward(input_ids, position_ids, inputs_embeds)  # (batch, length, width)
        positions = self.position_ids[:, : embeddings.shape[1]] if position_ids is None else position_ids
        mean_prompt = self.no_prompts.mean(dim=0)  # (max_positions, width)
        prompt_index = self.prompt_index
        if prompt_index is None and not self.training:
            return embeddings + mean_prompt[positions]
        prompts = torch.cat([self.no_prompts, mean_prompt[None]])  # (num_no_prompts + 1, max_positions, width)
        if prompt_index is None:
            prompt_index = torch.randint(prompts.shape[0], (embeddings.shape[0],), device=embeddings.device)
        return embeddings + prompts[prompt_index[:, None], positions]


@auto_docstring(
    custom_intro="""
    CLIP with a "no" text encoder that says what an image does not show. The sub-modules of CLIP keep their names; the
    "no" text encoder has its own token and position embeddings, transformer, norm and projection.
    """
)
class CLIPNModel(CLIPModel):
    config: CLIPNConfig
    config_class = CLIPNConfig
    # A plain list, as transformers declares and reads it
    _no_split_modules = [*CLIPModel._no_split_modules, "CLIPNTextEmbeddings"]  # noqa: RUF012
    # The loss is a mean: the Trainer must divide it by the accumulation steps although forward takes **kwargs.
    accepts_loss_kwargs = False
    # The revision of the CLIP that `from_clip` loaded
    clip_revision: str | None = None

    def __init__(self, config: CLIPNConfig) -> None:
        # CLIPModel.__init__ would run post_init before the "no" encoder exists.
        super(CLIPModel, self).__init__(config)
        text_config: Any = config.text_config
        vision_config: Any = config.vision_config
        projection_dim: Any = config.projection_dim

        self.projection_dim = projection_dim
        self.text_embed_dim = text_config.hidden_size
        self.vision_embed_dim = vision_config.hidden_size

        self.text_model = CLIPTextModel._from_config(text_config)
        self.vision_model = CLIPVisionModel._from_config(vision_config)
        # Built from the same config object, so that attention implementation and dtype switch together
        self.no_text_model = CLIPTextModel._from_config(text_config)
        if config.no_prompt_type == "learnable":
            self.no_text_model.embeddings = CLIPNTextEmbeddings(text_config, config.num_no_prompts)

        self.visual_projection = nn.Linear(self.vision_embed_dim, projection_dim, bias=False)
        self.text_projection = nn.Linear(self.text_embed_dim, projection_dim, bias=False)
        self.no_text_projection = nn.Linear(self.text_embed_dim, projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value, dtype=torch.get_default_dtype()))

        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        # CLIP's own initialisation, which respects loaded weights, is left out for code outside of transformers
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CLIPNModel):
            logit_scale: Any = self.config.logit_scale_init_value
            init.constant_(module.logit_scale, logit_scale)
            # The "no" encoder starts as a copy, whether the model is new or a checkpoint lacks it; parameters that
            # were loaded carry a flag. The prompts are set here because the CLIPTextModel that owns them, and that
            # transformers would ask, does not know them.
            init.copy_(module.no_text_projection.weight, module.text_projection.weight)
            for name, parameter in module.no_text_model.named_parameters():
                if name == "embeddings.no_prompts":
                    init.zeros_(parameter)
                elif not getattr(parameter, "_is_hf_initialized", False):
                    init.copy_(parameter, module.text_model.get_parameter(name))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        model, loading_info = loaded
        if "no_text_projection.weight" in loading_info["missing_keys"]:
            logger.warning(
                f"{str(pretrained_model_name_or_path)!r} has no 'no' text encoder; a copy of its text encoder stands "
                "in and cannot tell anything until it is trained. To start from a CLIP checkpoint use "
                "`CLIPNModel.from_clip`."
            )
            # Here, too, because plain peft loads the base model of an adapter this way.
            text_config = model.config.text_config
            if text_config.eos_token_id == 2:
                source = pretrained_model_name_or_path
                source = None if source is None else os.fspath(source)
                text_config.eos_token_id = _end_token_id(source, text_config.vocab_size, kwargs)
                for tower in (model.text_model, model.no_text_model):
                    tower.eos_token_id = text_config.eos_token_id
        return loaded if output_loading_info else model

    @classmethod
    def from_clip(
        cls,
        clip: CLIPModel | str | os.PathLike[str],
        *,
        dtype: str | torch.dtype = torch.float32,
        eos_token_id: int | None = None,
        **kwargs: Any,
    ) -> Self:
        r"""Make a CLIPN model that is ready for training from any CLIP: the "no" text encoder starts as a copy of the
        text encoder, the learnable prompts start at zero.

        Configurations of OpenAI checkpoints carry `eos_token_id=2`, which pools each text at its highest token id and
        breaks as soon as tokens are added. It is replaced by the id of the tokenizer's end token when `clip` is, or
        was loaded from, an id or folder with a tokenizer, and by `vocab_size - 1` otherwise.

        The model remembers the CLIP as its `name_or_path`, and `revision` as its `clip_revision`, from which peft
        learns the base model of an adapter. Of a CLIPN it remembers nothing, because loading that again would give its
        "no" text encoder, too.

        Args:
            clip ([`CLIPModel`], `str` or `os.PathLike`):
                A model, which is neither modified nor shared, or the Hub id or folder of one. Of a CLIPN model only
                the CLIP in it is used.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `torch.float32`):
                Of the new model, whatever that of `clip` is; `"auto"` keeps that of `clip`.
            eos_token_id (`int`, *optional*):
                The token that ends texts, at which they are pooled. By default that of `clip`, replaced as said above.
            kwargs:
                `no_prompt_type`, `num_no_prompts`, `templates`, `no_templates`, as in [`CLIPNConfig`]; and with an id
                or folder `attn_implementation`, `cache_dir`, `device_map`, `force_download`, `local_files_only`,
                `revision`, `subfolder`, `token`, as in [`~transformers.PreTrainedModel.from_pretrained`].

        Returns:
            [`CLIPNModel`]: In evaluation mode, on the device of `clip`.

        Raises:
            TypeError: `clip` is neither a [`CLIPModel`] nor an id or folder, or an argument that is not listed above
                or does not go with a model.
            ValueError: `clip` names a checkpoint that is not a CLIP, `dtype` is not a floating-point type,
                `eos_token_id` not a token, or the "no" prompts are none that [`CLIPNConfig`] accepts.
            OSError: There is no such checkpoint.
            IncompleteCheckpointError: The checkpoint is damaged or lacks weights of a CLIP.

        Example:

        ```python
        >>> from transformers import CLIPConfig, CLIPModel
        >>> from clipn_hf import CLIPNModel

        >>> clip = CLIPModel(CLIPConfig())  # or "openai/clip-vit-base-patch16"
        >>> model = CLIPNModel.from_clip(clip, num_no_prompts=8)
        >>> model.freeze_clip()

        ```
        """
        wanted_dtype = floating_dtype(dtype)
        for name in kwargs:
            _check_argument(name)
        loading = {name: value for name, value in kwargs.items() if name in LOADING_ARGUMENTS and value is not None}
        prompts = {name: value for name, value in kwargs.items() if name in PROMPT_SETTINGS}
        source = None
        if isinstance(clip, CLIPModel):
            if loading:
                raise TypeError(
                    f"{', '.join(f'`{name}`' for name in loading)} say how a checkpoint is loaded, but `clip` is a "
                    f"{type(clip).__name__}, which is loaded already; leave them out, or give its Hub id or folder."
                )
        elif isinstance(clip, str | os.PathLike):
            source = os.fspath(clip)
            clip = _load_clip(source, wanted_dtype or "auto", loading)
        else:
            raise TypeError(f"`clip` must be a CLIPModel, a Hub id or a folder, got {type(clip).__name__}: {clip!r}.")

        clip_config = clip.config.to_dict()
        for key in (
            *PROMPT_SETTINGS,
            *("model_type", "architectures", "dtype", "transformers_version", "_name_or_path", "auto_map"),
        ):
            clip_config.pop(key, None)
        config = build_config(**{**clip_config, **prompts})
        if not isinstance(clip.config, CLIPNConfig):
            config.name_or_path = clip.name_or_path
        text_config: Any = config.text_config
        if eos_token_id is not None:
            if not 0 <= eos_token_id < text_config.vocab_size:
                raise ValueError(
                    f"`eos_token_id` must lie between 0 and {text_config.vocab_size - 1}, got {eos_token_id}; give "
                    f"the id of the token that ends texts."
                )
            text_config.eos_token_id = eos_token_id
        elif text_config.eos_token_id == 2:
            text_config.eos_token_id = _end_token_id(source or clip.name_or_path, text_config.vocab_size, loading)

        model = cls(config)
        model.clip_revision = loading.get("revision")
        if "attn_implementation" in loading:
            model.set_attn_implementation(loading["attn_implementation"])
        weights = {name: value for name, value in clip.state_dict().items() if not name.startswith("no_")}
        for name in list(weights):
            if name.startswith(("text_model.", "text_projection.")):
                weights[f"no_{name}"] = weights[name]
        if config.no_prompt_type == "learnable":
            weights["no_text_model.embeddings.no_prompts"] = model.no_text_model.embeddings.no_prompts.detach()
        model.load_state_dict(weights)
        # transformers wraps `to` in a decorator that hides from type checkers that it is a method.
        return model.to(device=clip.device, dtype=wanted_dtype or clip.dtype).eval()  # type: ignore[call-arg]

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        # With an adapter on the model transformers saves nothing but the adapter, which may belong to a plain CLIP.
        if getattr(self, "_hf_peft_config_loaded", False) and is_main_process:
            save_prompt_settings(self.config, save_directory)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)

    def no_parameters(self) -> list[nn.Parameter]:
        """The parameters that CLIPN adds to CLIP: "no" text encoder with its prompts, and "no" projection."""
        return [*self.no_text_model.parameters(), *self.no_text_projection.parameters()]

    def freeze_clip(self) -> None:
        """Make the "no" parameters trainable and all others, `logit_scale` included, not. The frozen encoders then
        stay in evaluation mode when `train()` is called."""
        self.requires_grad_(False)
        for parameter in self.no_parameters():
            parameter.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for tower in (self.text_model, self.vision_model):
            if not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Resize the token embeddings of both text encoders, which share one `text_config` and so one vocabulary size.
        Arguments and result (the embeddings of the text encoder) as in transformers."""
        self.no_text_model.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        return self.text_model.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)

    # Here and in `forward`, `TransformersKwargs` lists `position_ids` a second time.
    @can_return_tuple
    @auto_docstring
    def get_no_text_features(  # type: ignore[misc]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        no_prompt_index: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Any, ...] | BaseModelOutputWithPooling:
        r"""
        no_prompt_index (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            The learnable prompt of each text, `num_no_prompts` standing for their mean. Defaults to a random draw in
            training mode and to the mean in evaluation mode.

        Example:

        ```python
        >>> import torch
        >>> from clipn_hf import CLIPNConfig, CLIPNModel

        >>> model = CLIPNModel(CLIPNConfig()).eval()
        >>> features = model.get_no_text_features(torch.tensor([[49406, 320, 2368, 49407]])).pooler_output
        >>> tuple(features.shape)
        (1, 512)

        ```"""
        embeddings = self.no_text_model.embeddings
        if no_prompt_index is not None:
            self._check_no_prompt_index(no_prompt_index, input_ids.shape[0])
            embeddings.prompt_index = no_prompt_index
        try:
            no_text_outputs: BaseModelOutputWithPooling = self.no_text_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                return_dict=True,
                **kwargs,
            )
        finally:
            if no_prompt_index is not None:
                embeddings.prompt_index = None
        no_text_outputs.pooler_output = self.no_text_projection(no_text_outputs.pooler_output)
        return no_text_outputs

    def _check_no_prompt_index(self, no_prompt_index: Tensor, batch_size: int) -> None:
        if self.config.no_prompt_type != "learnable":
            raise ValueError(
                "`no_prompt_index` selects a learnable prompt, but this model has `no_prompt_type="
                f'"{self.config.no_prompt_type}"`; leave it out.'
            )
        if tuple(no_prompt_index.shape) != (batch_size,):
            raise ValueError(
                f"`no_prompt_index` must have one entry per text, shape {(batch_size,)}, "
                f"got {tuple(no_prompt_index.shape)}."
            )
        last = self.config.num_no_prompts
        # Reading the values would break the graph under torch.compile.
        if not torch.compiler.is_compiling() and not bool(((no_prompt_index >= 0) & (no_prompt_index <= last)).all()):
            raise ValueError(
                f"`no_prompt_index` must lie between 0 and {last} ({last} being the mean), "
                f"got {no_prompt_index.tolist()}."
            )

    @can_return_tuple
    @auto_docstring
    def forward(  # type: ignore[misc]
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        no_input_ids: Tensor | None = None,
        no_attention_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        return_loss: bool = True,
        return_logits: bool = True,
        interpolate_pos_encoding: bool = False,
        no_prompt_index: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CLIPNOutput:
        r"""
        no_input_ids (`torch.LongTensor` of shape `(no_text_batch_size, sequence_length)`, *optional*):
            Token ids for the "no" text encoder. Defaults to `input_ids` when the "no" prompts are learnable; when they
            are hand-crafted, the "no" outputs and the losses are `None` without it.
        no_attention_mask (`torch.Tensor` of shape `(no_text_batch_size, sequence_length)`, *optional*):
            Attention mask that belongs to `no_input_ids`.
        image_embeds (`torch.Tensor` of shape `(image_batch_size, projection_dim)`, *optional*):
            Projected image embeddings of any norm, computed before, in place of `pixel_values`.
        return_loss (`bool`, *optional*, defaults to `True`):
            Whether to compute the losses. They are `None` when the numbers of images, texts and "no" texts differ.
        return_logits (`bool`, *optional*, defaults to `True`):
            Whether to compute the logits. `None` otherwise, and memory grows with the batch instead of its square.
        no_prompt_index (`torch.LongTensor` of shape `(no_text_batch_size,)`, *optional*):
            The learnable prompt of each "no" text, `num_no_prompts` standing for their mean. Defaults to a random draw
            in training mode and to the mean in evaluation mode.

        Example:

        ```python
        >>> import torch
        >>> from clipn_hf import CLIPNConfig, CLIPNModel

        >>> model = CLIPNModel(CLIPNConfig()).eval()
        >>> outputs = model(
        ...     input_ids=torch.tensor([[49406, 320, 2368, 49407], [49406, 320, 1929, 49407]]),
        ...     pixel_values=torch.zeros(1, 3, 224, 224),
        ... )
        >>> tuple(outputs.logits_per_image.shape), tuple(outputs.no_logits_per_image.shape)
        ((1, 2), (1, 2))

        ```"""
        if input_ids is None:
            raise ValueError("`input_ids` is missing; for images alone use `get_image_features`.")
        if (pixel_values is None) == (image_embeds is None):
            raise ValueError(
                "Give either `pixel_values` or `image_embeds`, got "
                f"{'neither' if pixel_values is None else 'both'}; for texts alone use `get_text_features`."
            )

        # `return_dict=False` and `config.return_dict` are about the result of this method alone
        kwargs["return_dict"] = True
        vision_outputs = None
        if image_embeds is None:
            vision_outputs = self.get_image_features(
                pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
            )
            image_embeds = vision_outputs.pooler_output
        text_outputs = self.get_text_features(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        if no_input_ids is None and self.config.no_prompt_type == "learnable":
            no_input_ids, no_attention_mask = input_ids, attention_mask
        no_text_outputs = None
        if no_input_ids is not None:
            no_text_outputs = self.get_no_text_features(
                input_ids=no_input_ids,
                attention_mask=no_attention_mask,
                position_ids=position_ids if no_input_ids is input_ids else None,
                no_prompt_index=no_prompt_index,
                **kwargs,
            )

        # float32 from here on: a logit near 100 has steps of 0.06 in float16 and of 0.5 in bfloat16
        image_embeds = _unit_norm(image_embeds)
        text_embeds = _unit_norm(text_outputs.pooler_output)
        no_text_embeds = None if no_text_outputs is None else _unit_norm(no_text_outputs.pooler_output)
        with torch.autocast(device_type=image_embeds.device.type, enabled=False):
            scale = self.logit_scale.to(device=image_embeds.device, dtype=image_embeds.dtype).exp()
            logits_per_image = no_logits_per_image = None
            if return_logits:
                logits_per_image = scale * image_embeds @ text_embeds.to(image_embeds).T
            if return_logits and no_text_embeds is not None:
                no_logits_per_image = scale * image_embeds @ no_text_embeds.to(image_embeds).T

        losses: dict[str, Tensor] = {}
        if (
            return_loss
            and no_text_embeds is not None
            and image_embeds.shape[0] == text_embeds.shape[0] == no_text_embeds.shape[0]
        ):
            losses = clipn_loss(
                image_embeds, text_embeds.to(image_embeds), no_text_embeds.to(image_embeds), scale
            )._asdict()

        return CLIPNOutput(
            **losses,
            logits_per_image=logits_per_image,
            logits_per_text=None if logits_per_image is None else logits_per_image.T,
            no_logits_per_image=no_logits_per_image,
            text_embeds=text_embeds,
            no_text_embeds=no_text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            no_text_model_output=no_text_outputs,
            vision_model_output=vision_outputs,
        )


def _unit_norm(features: Tensor) -> Tensor:
    """Rows of unit length in float32 (float64 for float64 input)."""
    return normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def _check_argument(name: str) -> None:
    known = sorted((*PROMPT_SETTINGS, *LOADING_ARGUMENTS, "dtype", "eos_token_id"))
    if name not in known:
        meant = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean `{meant[0]}`?" if meant else ""
        raise TypeError(f"`from_clip` has no argument `{name}`.{hint} Known ones are {', '.join(known)}.")


def _load_clip(source: str, dtype: str | torch.dtype, loading: dict[str, Any]) -> CLIPModel:
    with refuse_damaged(source):
        config = AutoConfig.from_pretrained(source, **select_hub_arguments(loading))
    if not isinstance(config, CLIPConfig):
        raise ValueError(
            f"{source!r} is a checkpoint of type {config.model_type!r}, expected 'clip'; a CLIPN model can be built "
            f"from CLIP checkpoints only."
        )
    with refuse_damaged(source):
        # Weights of other shapes are reported, and refused then.
        loaded: Any = CLIPModel.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **loading
        )
    clip, report = loaded
    check_complete(source, "CLIPModel", report["missing_keys"], report["mismatched_keys"])
    if isinstance(config, CLIPNConfig):
        clip.name_or_path = ""
    # The folder inside a repository cannot be told to peft, which knows repositories alone.
    elif subfolder := loading.get("subfolder"):
        clip.name_or_path = os.path.join(source, subfolder) if os.path.isdir(source) else ""
    return clip


def _end_token_id(source: str | None, vocab_size: int, loading: dict[str, Any]) -> int:
    """Id of the end token: the tokenizer's where `source` has one, else the last id of a CLIP vocabulary."""
    hub_arguments = select_hub_arguments(loading)
    # AutoTokenizer answers even for a folder without a tokenizer, with an empty one.
    if source and any(_has_file(source, name, hub_arguments) for name in ("tokenizer.json", "vocab.json")):
        end_token_id: int | None = AutoTokenizer.from_pretrained(source, **hub_arguments).eos_token_id
        if end_token_id is not None and end_token_id < vocab_size:
            return end_token_id
    if vocab_size != ORIGINAL_VOCAB_SIZE:
        logger.warning(
            f"The configuration has `eos_token_id=2`, and no tokenizer says which token ends texts; {vocab_size - 1}, "
            f"the last of the vocabulary, is assumed. If tokens were added, or rows to fill it up, pass "
            f"`eos_token_id` to `CLIPNModel.from_clip`."
        )
    return vocab_size - 1


def _has_file(source: str, name: str, hub_arguments: dict[str, Any]) -> bool:
    try:
        return find_file(source, name, **hub_arguments) is not None
    except (OSError, ValueError):
        # A model object may remember a name that is neither a folder nor an id any more.
        return False


__all__ = ["CLIPNModel", "CLIPNOutput", "CLIPNTextEmbeddings"]

"""What is trained, asked as its own pipeline asks it: conditions, level and states of any pipeline of diffusers.

A pipeline is called with captions and stopped at the first question to its network (`nag.seams.run.first_question`). The
arguments of that question which have one row per caption are its *conditions*: embeddings, pooled embeddings, masks, sizes. The
others (ids of positions, the layout of a batch) are *shared*, and go along as they are. So no network needs code of its own
here, and what is trained is what will be sampled: the pipeline's own encoders, lengths, sizes and timesteps.

A condition is a number: a class, or a caption in the list of those that the data have. One number more means none (the null
class, the empty caption).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

from nag.network.table import architecture_of, unwrap
from nag.noise.checks import require
from nag.pipelines import UNet2DPipeline
from nag.seams.asking import rows_of
from nag.seams.run import autoencoder_of, denoisers, first_question
from nag.shift.calls import batch_of, image_size, main_network, silent, sizes, takes

if TYPE_CHECKING:
    from nag.finetune.cache import Shards

__all__ = ["Subject"]

Told = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A network, its scheduler, and how it is asked.

    Args:
        pipeline: with all its parts; None for a UNet2DModel alone.
        network: what is trained, or its teacher.
        scheduler: says what the network predicts, and of which process.
        null: the condition that means none; None for a network without conditions.
        captions: rows for each caption, the empty one last; None for classes.
        texts: the captions.
        rows: arguments of the network's call with one row per caption, dotted for the entries of a dict.
        shared: its other arguments.
        told: from the scheduler's timesteps `(B,)` to the network's.
        sign: of the network's output, as the scheduler takes it.
        shape: of a state, `(1, *shape)`.
        sized: arguments of the pipeline's call for its resolution.
    """

    network: Any
    scheduler: Any
    pipeline: Any = None
    null: int | None = None
    captions: Shards | None = None
    texts: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    shared: Mapping[str, Any] = field(default_factory=dict)
    told: Told = staticmethod(lambda timestep: timestep)
    sign: int = 1
    shape: tuple[int, ...] | None = None
    sized: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_unet(cls, unet: Any, scheduler: Any) -> Subject:
        """A UNet2DModel on pixels."""
        return cls(network=unet, scheduler=scheduler, null=architecture_of(unet).null_class(unwrap(unet)))

    @classmethod
    def of(cls, pipeline: Any, resolution: int | None = None) -> Subject:
        """The denoiser of a pipeline; captions are given to it afterwards (`with_captions`).

        Raises:
            ValueError: if the pipeline cannot be asked about one state and one caption at a time.
        """
        if not takes(pipeline, "prompt") and autoencoder_of(pipeline) is None:
            return cls.of_unet(main_network(pipeline), pipeline.scheduler)
        network, scheduler = main_network(pipeline), pipeline.scheduler
        null = architecture_of(network).null_class(unwrap(network))
        asked = first_of(pipeline, ["", ""], resolution)
        for module in network.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = (
                    0.0  # in training it drops the class anew in each block; ours is dropped once for all
                )
        rows, shared = parted(asked, first_of(pipeline, [""] * 3, resolution))
        question: Any = asked.question
        return cls(
            pipeline=pipeline,
            network=network,
            scheduler=scheduler,
            null=null,
            rows=tuple(name for name in rows if name != "class_labels"),
            shared=shared,
            told=question.run.clock.as_told,
            sign=question.run.layout.sign,
            shape=(1, *asked.u.shape[1:]),
            sized=sizes(pipeline, resolution),
        )

    def caption_rows(self, captions: Sequence[str], resolution: int | None = None) -> dict[str, Tensor]:
        """What the network is told of some captions: rows by argument, on the CPU."""
        arguments = flat(first_of(self.pipeline, captions, resolution).question.call.arguments)
        return {name: arguments[name].detach().cpu().contiguous() for name in self.rows}

    def with_captions(self, texts: Sequence[str], captions: Shards) -> Subject:
        """One that knows the rows of some captions, the empty one last."""
        return replace(self, texts=tuple(texts), captions=captions, null=len(texts))

    def having(self, network: Any) -> Subject:
        """Another network, asked in the same way."""
        return replace(self, network=network)

    @property
    def name(self) -> str:
        """The component's name in the pipeline."""
        return "unet" if self.pipeline is None else next(iter(denoisers(self.pipeline)))

    @property
    def image_size(self) -> tuple[int, Any]:
        """Channels of its images, and their height and width, which is no number if they are not square."""
        if self.pipeline is not None:
            return image_size(self.pipeline)
        return self.network.config.in_channels, self.network.config.sample_size

    @property
    def reads_captions(self) -> bool:
        """Whether the pipeline takes captions."""
        return self.pipeline is not None and takes(self.pipeline, "prompt")

    def conditions(self, labels: Tensor) -> dict[str, Any]:
        """What the network is asked with for some conditions `(B,)`, on their device."""
        if self.captions is not None:
            found = self.captions[labels.cpu()]
            return nested({name: value.to(labels.device) for name, value in found.items()})
        return {} if self.null is None else {"class_labels": labels}

    def dropped(self, labels: Tensor, mask: Tensor) -> Tensor:
        """Conditions `(B,)`, none where the mask is set."""
        return labels if self.null is None else torch.where(mask, self.null, labels)

    def ask(self, model: nn.Module, u: Tensor, timestep: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """What the network says of states `(B, *shape)` at the scheduler's timesteps `(B,)`, with the scheduler's sign."""
        arguments = merged(self.shared, conditions, u.device)
        row = architecture_of(model)
        value = rows_of(model(u, **{row.timestep: self.told(timestep)}, **arguments))
        return value if self.sign == 1 else -value

    def pipeline_with(self, network: Any, scheduler: Any = None) -> Any:
        """The pipeline with another network, and scheduler, everything else its own."""
        scheduler = self.scheduler if scheduler is None else scheduler
        if self.pipeline is None:
            return UNet2DPipeline(unet=network, scheduler=scheduler)
        pipe = copy(self.pipeline)
        pipe.__dict__["_internal_dict"] = copy(self.pipeline._internal_dict)
        pipe.register_modules(**{self.name: network, "scheduler": scheduler})
        return pipe

    def sampled(self, count: int) -> dict[str, Any]:
        """Arguments of the pipeline's call for some samples: captions in turn, classes in turn, or their number."""
        if self.reads_captions:
            return {"prompt": [self.texts[i % len(self.texts)] for i in range(count)], **self.sized}
        classes = [i % max(self.null, 1) for i in range(count)] if self.null else None
        if self.pipeline is None:
            return {"batch_size": count, "class_labels": classes}
        return {"batch_size": count} if classes is None else {"class_labels": classes}


def first_of(pipe: Any, captions: Sequence[str], resolution: int | None = None) -> Any:
    """The first question of a pipeline about some captions, or as many states, without class guidance."""
    count = len(captions)
    arguments: dict[str, Any] = {"prompt": list(captions)} if takes(pipe, "prompt") else {}
    if takes(pipe, "class_labels"):
        arguments["class_labels"] = [0] * count
    call = batch_of(pipe, arguments | sizes(pipe, resolution), 0, count, num_samples=count, seed=0) | {
        "num_inference_steps": 4
    }
    for guidance in ({}, {"guidance_scale": 1.0}):
        with silent(pipe), torch.no_grad():
            at = first_question(pipe, lambda: pipe(**call | guidance))  # noqa: B023
        question: Any = at.question
        if not question.several and len(question) == count:
            break
    else:
        raise ValueError(
            f"model must ask its network once for each caption to be trained, got a {type(pipe).__name__}, which asks "
            f"{len(question.call.sample)} rows about {count}."
        )
    timestep = question.call.timestep
    plain = isinstance(question.call.arguments[question.call.sample_name], Tensor)
    known = plain and timestep is not None and timestep.ndim < 2 and at.u.shape == question.call.sample.shape
    must = "give its network one state and one timestep for each sample to be trained"
    require(("model", type(pipe).__name__, must, known))
    return at


def flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with entries of dictionaries by dotted names."""
    found = dict[str, Any]()
    for name, value in arguments.items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": one for key, one in value.items()}
        else:
            found[name] = value
    return found


def nested(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `flat`."""
    found = dict[str, Any]()
    for name, value in arguments.items():
        first, dot, key = name.partition(".")
        if dot:
            found.setdefault(first, {})[key] = value
        else:
            found[name] = value
    return found


def merged(shared: Mapping[str, Any], conditions: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Both kinds of arguments together, on a device."""
    both = flat(shared) | flat(conditions)
    return nested({k: v.to(device) if isinstance(v, Tensor) else v for k, v in both.items()})


def parted(at: Any, other: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arguments of a question that have one row per sample, and the others; seen from one about another number of samples.

    Raises:
        ValueError: if a caption's rows depend on the captions beside it.
    """
    first, second = (one.question.call for one in (at, other))
    count, counted = len(first.sample), len(second.sample)
    left = (first.sample_name, first.timestep_name, "return_dict")
    ours, theirs = (
        flat({k: v for k, v in call.arguments.items() if k not in left and v is not None})
        for call in (first, second)
    )
    rows, shared = dict[str, Tensor](), dict[str, Any]()
    for name, value in ours.items():
        twin = theirs.get(name)
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else () for one in (value, twin)]
        if shapes[0] and shapes == [(count, *shapes[0][1:]), (counted, *shapes[0][1:])]:
            rows[name] = value
            continue
        if isinstance(value, list) and len(value) == count != len(twin or ()):
            raise ValueError(
                f"model must be told tensors with one row per caption to be trained, got a list for {name} of "
                f"{type(unwrap(first.network)).__name__}."
            )
        shared[name] = value
    return rows, shared

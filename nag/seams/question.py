"""What a pipeline asks its network at one step, with the means to ask it again; answers are kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from nag.network.regressor import tapped
from nag.network.table import row_of, split_output, unwrap
from nag.seams.asking import Call, rows_of

__all__ = ["AskedQuestion", "Unheard", "split_prediction"]


class AskedQuestion:
    """What the network is being asked at a step; answers are kept, so that nothing is asked twice."""

    def __init__(self, run: Any, call: Call, questions: int, *, hidden: bool = False) -> None:
        self.run, self.call, self.questions = run, call, questions
        size = len(call.sample) // questions
        place = run.layout.conditional % questions if questions > 1 else 0
        self.block = slice(place * size, (place + 1) * size)
        self.network = call.network
        self.answer: Any = None
        self.features: dict[str, Tensor] = {}
        self.hidden = hidden

    @property
    def several(self) -> bool:
        """Whether the pipeline asks without the condition too, in this very call."""
        return self.questions > 1

    @property
    def other(self) -> slice:
        """Rows of the call that are asked without the condition."""
        return slice(0, len(self)) if self.block.start else slice(len(self), 2 * len(self))

    @property
    def class_labels(self) -> Tensor | None:
        labels = self.call.arguments.get("class_labels")
        return labels[self.block] if isinstance(labels, Tensor) and labels.ndim else None

    def conditioning(self) -> dict[str, Any]:
        if self.several and not self.call.can_be_cut():
            return {"all": self.call}  # cannot be passed on by name; `ask` can repeat it
        arguments = (
            self.call._rows(lambda tensor: tensor[self.block]) if self.several else self.call.arguments
        )
        left = (self.call.sample_name, self.call.timestep_name, "class_labels", "return_dict")
        return {name: value for name, value in arguments.items() if name not in left and value is not None}

    def whole(self) -> Any:
        """The answer to the pipeline's call, all its rows."""
        if self.answer is None:
            self.answer = self._heard(self.call.hidden if self.hidden else self.call.answer)
            self.run.count(len(self.call.sample))
        return self.answer

    def _heard(self, ask: Callable[[], Any]) -> Any:
        """What the pipeline's own call gives; its features are kept, if a correction wants them."""
        with ExitStack() as stack:
            heard = {
                layer: stack.enter_context(tapped(self.network, middle=layer == "middle"))
                for layer in self.run.listens
            }
            found = ask()
        self.features = {layer: kept[-1][: len(self.call.sample)] for layer, kept in heard.items()}
        return found

    def read(self, head: Callable[[Tensor], Tensor], layer: str = "last") -> Tensor:
        if self.hidden:
            raise ValueError(
                "corrections must let the network know its level for a direction head, got one that hides it. Leave one out."
            )
        self.whole()
        return head(self.features[layer][self.block]) * self.run.layout.sign

    def told(self) -> Tensor:
        return self._value(rows_of(self.whole())[self.block])

    def null(self, *, form: str, joint: bool = False, head: Any = None) -> tuple[Tensor, Tensor | None]:
        call, mixed = self.call, self.run.layout.rows_mix
        if self.hidden:
            self.whole()  # nobody is told the level
        if joint and self.several and self.answer is None:
            mask = torch.ones(len(call.sample), dtype=torch.bool, device=call.sample.device)
            mask[self.block] = False
            self.answer = self._heard(lambda: call.hidden(mask))
            self.run.count(len(call.sample))
            rows = rows_of(self.answer)
            return self._value(rows[self.other]), None
        if joint:
            return self.ask(unconditional=True, null=True, head=head)
        batched = self.answer is None and not mixed and call.can_be_batched()
        if form == "batched" and not batched and not self.hidden:
            raise ValueError(
                f"null_pass must be 'auto', 'sequential' or 'whole' for this call of {type(unwrap(self.network)).__name__}, got "
                "'batched'. It is not known which of its arguments have one row per sample, or its rows may not be joined."
            )
        if form in ("auto", "batched") and batched:
            self.answer, rows, features = self._heard(lambda: call.told_and_null(self.block, head))
            self.run.count(len(call.sample) + len(self))
            return self._value(rows), features
        self.whole()
        return self._asked(null=True, head=head, whole=mixed or form == "whole")

    def ask(
        self,
        *,
        u: Tensor | None = None,
        timestep: Tensor | None = None,
        network: nn.Module | None = None,
        unconditional: bool = False,
        null: bool = False,
        head: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        block, changes = self.block, dict[str, Any]()
        asked = unwrap(self.network if network is None else network)
        if unconditional:
            row = row_of(asked)
            null_class = None if row is None else row.null_class(asked)
            if null_class is not None:
                changes["class_labels"] = torch.full((len(self),), null_class, device=self.call.sample.device)
            elif self.several:
                block = self.other
                labelled = "class_labels" in self.call.arguments
                if labelled and network is not None and getattr(asked, "class_embedding", True) is None:
                    changes["class_labels"] = None  # an unconditional ancestor
            elif network is not None and "class_labels" in self.call.arguments:
                changes["class_labels"] = None
            elif not _unconditional(self.call):
                raise ValueError(
                    "guidance_scale of the pipeline must be above 1 to ask without a prompt, got a call with the prompt alone. "
                    "Switch class guidance on."
                )
        if timestep is not None:
            timestep = self.run.clock.as_told(timestep)
        return self._asked(
            block=block,
            u=u,
            timestep=timestep,
            network=network,
            changes=changes,
            null=null or (self.hidden and timestep is None),
            head=head,
            whole=self.run.layout.rows_mix,
        )

    def _asked(
        self, *, block: slice | None = None, u: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        block = self.block if block is None else block
        if u is not None:
            every = self.call.sample[block].clone()
            state = self.run.state_in(every, self.call)
            if state.shape == u.shape:
                state.copy_(u)
                u = every
        rows, features, count = self.call.ask(block, u=u, **options)
        self.run.count(count)
        return self._value(rows), features

    def _value(self, rows: Tensor) -> Tensor:
        """The prediction without a learned variance, with the scheduler's sign."""
        value = split_prediction(rows, self.run.channels(self.call))[0]
        return value if self.run.layout.sign == 1 else -value

    def __len__(self) -> int:
        return self.block.stop - self.block.start


class Unheard(AskedQuestion):
    """Stands for the question of a step that was not heard."""

    def __init__(self) -> None:
        self.block, self.questions = slice(0, 0), 1

    def _asked(self, **_: Any) -> Any:
        raise RuntimeError("no question of this step was heard, so none can be repeated.")

    def whole(self) -> Any:
        return self._asked()


def _unconditional(call: Call) -> bool:
    names = ("encoder_hidden_states", "class_labels", "pooled_projections")
    return all(call.arguments.get(name) is None for name in names)


def split_prediction(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Separates a learned variance, which doubles the channels, from a prediction of any layout."""
    if output.ndim > 3 and output.shape[1] == 2 * channels:
        return split_output(output, channels)
    if output.ndim == 3 and output.shape[2] == 2 * channels:  # tokens
        prediction, variance = output.chunk(2, dim=2)
        return prediction, variance
    return output, None

"""The variance-preserving process of a network that was trained on a table of integer timesteps.

    t = (timestep + 1) / T,      log_snr(t) linear in the timestep between the entries of the table,

and alpha_t^2 = sigmoid(log_snr), sigma_t^2 = sigmoid(-log_snr). With lambda = log_snr the derivatives are
d alpha / dt = (1/2) alpha sigma^2 d lambda / dt and d sigma / dt = -(1/2) sigma alpha^2 d lambda / dt.

References:
    Denoising Diffusion Probabilistic Models, Ho 2020, arXiv 2006.11239, eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from nag.noise.process import VarianceKeeping

__all__ = ["DiscreteVP"]


@dataclass(frozen=True, kw_only=True)
class DiscreteVP(VarianceKeeping):
    """The VP process of a network trained on T integer timesteps: t = (timestep + 1) / T.

    The log-SNR is linear in the timestep between two integers, as in diffusers' own interpolation of levels.

    Args:
        log_snr_table: T values, strictly falling: the log-SNR of timestep 0, 1, ..., T - 1.
    """

    log_snr_table: tuple[float, ...]

    def __post_init__(self) -> None:
        table = self.log_snr_table
        if len(table) < 2 or any(b >= a for a, b in pairwise(table)):
            raise ValueError(
                f"log_snr_table must fall strictly over at least 2 timesteps, got {len(table)} values. "
                "Give the log-SNR of timestep 0 first."
            )

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> DiscreteVP:
        """Reads diffusers' table alphas_cumprod = alpha^2, of shape `(T,)`.

        A table with a terminal value of 0 (zero terminal SNR) is taken as the smallest positive normal number, so that
        its log-SNR is finite (about -87) and the level is still pure noise to rounding.
        """
        squared = alphas_cumprod.double().clamp_min(torch.finfo(torch.float32).tiny)
        return cls(log_snr_table=tuple((squared.log() - torch.log1p(-squared)).tolist()))

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return len(self.log_snr_table)

    @property
    def t_min(self) -> float:
        return 1 / self.num_train_timesteps

    @cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self.log_snr_table, dtype=torch.float64)

    def timestep(self, t: Tensor) -> Tensor:
        """The network's label timestep = T t - 1, not rounded."""
        return self.num_train_timesteps * t - 1

    def t_from_timestep(self, timestep: Tensor) -> Tensor:
        """t = (timestep + 1) / T."""
        return (timestep + 1) / self.num_train_timesteps

    def _cell(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lower end of the cell of the table that holds t, its slope per timestep, and the place within the cell."""
        last = self.num_train_timesteps - 1
        timestep = self.timestep(t.double()).clamp(0, last)
        low = timestep.floor().clamp(max=last - 1)
        table = self._table.to(t.device)
        start = table[low.long()]
        return start, table[low.long() + 1] - start, timestep - low

    def log_snr(self, t: Tensor) -> Tensor:
        start, slope, place = self._cell(t)
        return (start + slope * place).to(t.dtype)

    def t_from_log_snr(self, log_snr: Tensor) -> Tensor:
        table = self._table.to(log_snr.device)
        value = log_snr.double().clamp(table[-1], table[0])
        low = (torch.searchsorted(-table, -value.contiguous(), right=True) - 1).clamp(0, len(table) - 2)
        place = (value - table[low]) / (table[low + 1] - table[low])
        return self.t_from_timestep(low + place).to(log_snr.dtype)

    def alpha(self, t: Tensor) -> Tensor:
        return self.alpha_sigma(self.log_snr(t))[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.alpha_sigma(self.log_snr(t))[1]

    def _log_snr_dot(self, t: Tensor) -> Tensor:
        return (self._cell(t)[1] * self.num_train_timesteps).to(t.dtype)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return 0.5 * self.alpha(t) * self.sigma(t) ** 2 * self._log_snr_dot(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -0.5 * self.sigma(t) * self.alpha(t) ** 2 * self._log_snr_dot(t)

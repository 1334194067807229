# SPDX-License-Identifier: Apache-2.0
"""The U-Net of DDPM, as a set of hyper-parameters of the NCSN++ family.

As in the networks of arXiv:2011.13456, a decoder level has one attention layer after its blocks;
DDPM has one after each block. Source: Ho et al. 2020, arXiv:2006.11239, Appendix B.
"""

import functools

from scorejax.models.ncsnpp import NCSNpp

DDPM = functools.partial(
    NCSNpp, num_res_blocks=2, num_groups=32, embedding_type="positional", resblock_type="ddpm",
    fir=False, progressive="none", progressive_input="none", skip_rescale=False, init_scale=0.0,
)  # fmt: skip
"""NCSNpp with 32 groups in every normalisation, plain resampling and unscaled residual sums."""

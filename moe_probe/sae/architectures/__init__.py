"""SAE architectures: which latents can be active, and the loss of each.

In: normalised activations. Out: active latents (`Sparse`), reconstructions and losses.

- `base` what all share: parameters, initialisation, normalisation, encoding, decoding.
- `topk`, `batchtopk`, `matryoshka`, `standard` (ReLU and L1), `jumprelu`: one file per architecture; `registry` names them.
- `ops` gradients of active latents only.
- `bags` sums of chosen rows; `bag_kernels` the same for GPUs, once `trial` has seen them agree.
"""

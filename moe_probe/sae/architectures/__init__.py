"""SAE architectures: which latents can be active, and the loss of each.

In: normalised activations. Out: active latents (`Sparse`), reconstructions and losses (`base`).

- `topk`, `batchtopk`, `matryoshka`, `standard`, `jumprelu`: one file per architecture; `registry` names them.
- `ops` has the sparse gradients that they share.
"""
